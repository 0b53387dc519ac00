"""The licence policy: licence id → family → verdict for training, distribution and commerce → obligations.

A policy is a cautious reading for engineers, not legal advice. It fails closed: a licence that it does not know denies
distribution and commerce until the recipe asserts, with a reason, what the licence is.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from finetune.release._hub_ids import HUB_LICENSES, SPDX_ALIASES

Verdict = Literal["allow", "conditions", "review", "deny"]
Right = Literal["train", "distribute", "commercial"]

SEVERITY: dict[Verdict, int] = {"allow": 0, "conditions": 1, "review": 2, "deny": 3}

USES: dict[str, tuple[Right, ...]] = {
    "research": ("train", "distribute"),
    "internal": ("train", "commercial"),
    "commercial": ("train", "distribute", "commercial"),
}
"""Intended use → the rights that it needs."""


@dataclass(frozen=True)
class Family:
    """Licences that are treated alike."""

    title: str
    train: Verdict
    distribute: Verdict
    commercial: Verdict
    obligations: tuple[str, ...] = ()


_NOTICES = "Pass on the licence's text, its copyright notices and any NOTICE file with the model."
_CHANGED = "Say that the weights were changed by fine-tuning."
_CREDIT = "Credit the source by name, link it and its licence, and say that it was changed."
_SAME_LICENSE = "Publish what counts as adapted material under the same licence."
_NON_COMMERCIAL = "Use and share the model for non-commercial purposes only, and tell recipients so."
_COPY = "Give recipients a copy of the licence."
_FIND_OUT = "Find out the licence and assert it in the recipe, with the reason, before using the model."

FAMILIES: dict[str, Family] = {
    "permissive": Family("Permissive", "allow", "allow", "allow", (_NOTICES, _CHANGED)),
    "public_domain": Family("Public domain, or no conditions", "allow", "allow", "allow"),
    "attribution": Family("Attribution", "allow", "allow", "allow", (_CREDIT,)),
    "share_alike": Family("Share-alike", "allow", "review", "allow", (_CREDIT, _SAME_LICENSE)),
    "copyleft": Family(
        "Copyleft",
        "allow",
        "review",
        "allow",
        (
            _NOTICES,
            "Distribute what counts as a derived work under the same licence, with its source: recipe, code and changes.",
        ),
    ),
    "non_commercial": Family("Non-commercial", "allow", "conditions", "deny", (_NON_COMMERCIAL, _CREDIT)),
    "research_only": Family(
        "Research only",
        "allow",
        "conditions",
        "deny",
        ("Use and share the model for non-commercial research only, and bind recipients to that.", _COPY),
    ),
    "no_derivatives": Family(
        "No derivatives",
        "allow",
        "deny",
        "deny",
        ("Keep the fine-tuned model to yourself: adapted material may not be shared.",),
    ),
    "rail": Family(
        "Responsible AI (RAIL)",
        "allow",
        "conditions",
        "allow",
        ("Bind recipients to the licence's use restrictions, and keep to them.", _COPY, _CHANGED),
    ),
    "community": Family(
        "Community licence of a model's maker",
        "allow",
        "conditions",
        "review",
        (_COPY, "Keep to the licence's acceptable use policy."),
    ),
    "gemma": Family(
        "Gemma terms",
        "allow",
        "conditions",
        "allow",
        (
            "Give recipients a copy of the Gemma Terms of Use, and bind them to its use restrictions.",
            "Carry the notice “Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms”.",
            _CHANGED,
        ),
    ),
    "ambiguous": Family("A family of licences, not one", "review", "deny", "deny", (_FIND_OUT,)),
    "unknown": Family("Unknown", "review", "deny", "deny", (_FIND_OUT,)),
}

ASSERTABLE_FAMILIES = (
    "permissive",
    "public_domain",
    "attribution",
    "share_alike",
    "copyleft",
    "non_commercial",
    "no_derivatives",
)
"""Families that a recipe may assert for a licence that the policy has no row for."""


def _llama(product: str, built: str, prefix: str | None, copyright_line: str) -> tuple[str, ...]:
    notice = f"Carry in a NOTICE file: “{product} is licensed under the {copyright_line}, Copyright © Meta Platforms, Inc. All Rights Reserved.”"
    if prefix is None:
        return (notice,)
    return (notice, f"Show “{built}” prominently, and begin the model's name with “{prefix}”.")


_EXTRA: dict[str, tuple[str, ...]] = {
    "llama2": _llama("Llama 2", "", None, "LLAMA 2 Community License"),
    "llama3": _llama("Meta Llama 3", "Built with Meta Llama 3", "Llama 3", "Meta Llama 3 Community License"),
    "llama3.1": _llama("Llama 3.1", "Built with Llama", "Llama", "Llama 3.1 Community License"),
    "llama3.2": _llama("Llama 3.2", "Built with Llama", "Llama", "Llama 3.2 Community License"),
    "llama3.3": _llama("Llama 3.3", "Built with Llama", "Llama", "Llama 3.3 Community License"),
    "llama4": _llama("Llama 4", "Built with Llama", "Llama", "Llama 4 Community License"),
    "grok2-community": ("Show “Powered by xAI” as the licence asks.",),
    "c-uda": ("Use the data for computation only, and pass the data itself on only under the same agreement.",),
    "apple-ascl": ("Do not rely on a patent licence: this licence grants copyright only.",),
}

_CC = re.compile(r"cc-by(?P<nc>-nc)?(?P<limit>-nd|-sa)?-(1\.0|2\.0|2\.1|2\.5|3\.0|4\.0)(-[a-z]{2,4})?")


def hub_id(name: str) -> str:
    """The Hub's spelling of a licence id: lower case, SPDX spellings mapped where the Hub has its own."""
    lowered = name.strip().lower()
    return SPDX_ALIASES.get(lowered, lowered)


def family_of(license_id: str) -> str:
    """Family of a licence id in the Hub's spelling; `unknown` for anything the policy has no row for.

    Creative Commons licences say their family in their id, so versions and ports that the Hub does not list are read too.
    """
    if license_id in HUB_LICENSES:
        return HUB_LICENSES[license_id].family
    creative_commons = _CC.fullmatch(license_id)
    if creative_commons is None:
        return "unknown"
    if creative_commons["limit"] == "-nd":
        return "no_derivatives"
    if creative_commons["nc"]:
        return "non_commercial"
    return "share_alike" if creative_commons["limit"] == "-sa" else "attribution"


def obligations_of(license_id: str, family: str) -> tuple[str, ...]:
    """What the user of a licence must do: the family's obligations and the licence's own."""
    extra = _EXTRA.get(license_id, ())
    if family == "non_commercial" and license_id.startswith("cc-by-nc-sa-"):
        extra = (_SAME_LICENSE, *extra)
    return (*FAMILIES[family].obligations, *extra)


def link_of(license_id: str) -> str | None:
    """Where the text of a licence can be read, or None."""
    row = HUB_LICENSES.get(license_id)
    place = row.place if row else spdx_id(license_id)
    if not place:
        return None
    return place if "://" in place else f"https://spdx.org/licenses/{place}.html"


def title_of(license_id: str) -> str:
    """Full name of a licence; its id when the Hub does not list it."""
    row = HUB_LICENSES.get(license_id)
    return row.title if row else spdx_id(license_id) or license_id


def spdx_id(name: str) -> str | None:
    """The SPDX spelling if `name` is one SPDX licence id, else None.

    For recognition only: it makes an error precise and a name exact, and never decides what a licence allows. Without
    the library license-expression (extra `train`) nothing is recognised, which fails closed like any unknown licence.
    """
    if importlib.util.find_spec("license_expression") is None:
        return None
    return _spdx_spellings().get(name.strip().lower())


@functools.cache
def _spdx_spellings() -> dict[str, str]:
    from license_expression import get_spdx_licensing

    symbols = get_spdx_licensing().known_symbols
    return {key.lower(): key for key, symbol in symbols.items() if not symbol.is_exception}


def strictest(verdicts: Iterable[Verdict]) -> Verdict:
    """The strictest of some verdicts; `allow` of none."""
    return max(verdicts, key=SEVERITY.__getitem__, default="allow")

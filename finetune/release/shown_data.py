"""Test rows that a bundle shows are the data themselves: what passing them on asks, and whose they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def with_samples(
    license_report: Mapping[str, Any], samples: Mapping[str, Any] | None, passages: int = 0
) -> dict[str, Any]:
    """report["license"] of a bundle that shows test rows: what passing those rows on asks is added to the obligations.

    `samples` is report["samples"] or None, `passages` what `passages_shown` counts. Rows of the data set in the bundle are
    the data themselves, under the data's own licence, whatever becomes of the weights.
    """
    shown = describe_samples(samples, passages)
    if not shown:
        return dict(license_report)
    without = _WITHOUT[bool(passages)]
    duties = [
        f"{_PASSING_ON[part['distribute']].format(shown=shown, without=without)} ({part['role']} {part['name']}: {_label(part)})"
        for part in license_report["components"]
        if part["role"] == "data"
    ]
    return {**license_report, "obligations": list(dict.fromkeys([*license_report["obligations"], *duties]))}


_WITHOUT = {
    False: "evaluation.samples: 0",
    True: "evaluation.generation.prompts of your own, evaluation.memorisation.samples: 0",
}
"""How a bundle is made that shows none, for rows and for passages."""
_TAKE_OUT = "before passing the bundle on, or make it without them ({without})"
_PASSING_ON: dict[str, str] = {
    "allow": "Pass the {shown} on under the data's own licence, with its credits: they are copies of the data.",
    "conditions": "Pass the {shown} on only under the data's own licence and conditions: they are copies of the data.",
    "review": f"Have it reviewed whether the {{shown}}, which are copies of the data, may be passed on, or take them out {_TAKE_OUT}.",
    "deny": f"Take the {{shown}} out {_TAKE_OUT}: they are copies of the data, whose licence does not let you pass them on.",
}
"""By the data's verdict on distribution."""


def passages_shown(report: Mapping[str, Any]) -> int:
    """Passages of a language model's texts that its report shows: prompts that the recipe does not give, and what was recited."""
    language = report.get("language") or {}
    asked = ((report["recipe"].get("evaluation") or {}).get("generation") or {}).get("prompts") or ()
    borrowed = [one for one in language.get("generations") or () if one["prompt"] not in asked]
    return len(borrowed) + len((language.get("memorisation") or {}).get("examples") or ())


def describe_samples(samples: Mapping[str, Any] | None, passages: int = 0) -> str:
    """The rows of the data set that a bundle shows, in words; "" if it shows none."""
    if passages:
        return f"short passages of the texts ({passages}) in report.json and report.html"
    rows = (samples or {}).get("rows") or []
    pictures = sum(1 for row in rows if row.get("image"))
    texts = sum(1 for row in rows if row.get("text"))
    if pictures:
        return f"{pictures} small picture{'s' if pictures > 1 else ''} of test images in samples/ and report.html"
    return f"beginnings of validation texts ({texts}) in report.json and report.html" if texts else ""


def _label(part: Mapping[str, Any]) -> str:
    return str(part["license_name"] or part["license"]) if part["license"] == "other" else str(part["license"])

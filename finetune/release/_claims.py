"""What somebody says a licence is: a card in its front matter, or the recipe in its assertion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from finetune.errors import LicenseError, nearest
from finetune.release._hub_ids import HUB_LICENSES
from finetune.release.policy import (
    ASSERTABLE_FAMILIES,
    FAMILIES,
    Verdict,
    family_of,
    hub_id,
    link_of,
    obligations_of,
    spdx_id,
    strictest,
)

if TYPE_CHECKING:
    from finetune.recipe.types import LicenseAssertion


@dataclass(frozen=True)
class Claim:
    """A licence as claimed, with what the policy makes of it."""

    license: str
    name: str | None
    link: str | None
    family: str
    train: Verdict
    distribute: Verdict
    commercial: Verdict
    obligations: tuple[str, ...]

    @classmethod
    def of(cls, license_id: str, family: str, *, name: str | None = None, link: str | None = None) -> Claim:
        """A claim with the verdicts and obligations that the policy gives to `family`."""
        rules = FAMILIES[family]
        place = link or link_of(license_id)
        duties = obligations_of(license_id, family)
        return cls(license_id, name, place, family, rules.train, rules.distribute, rules.commercial, duties)

    @property
    def label(self) -> str:
        """The licence as people write it."""
        return self.name or self.license if self.license == "other" else self.license

    def publishable(self) -> Claim:
        """The claim as a card's front matter can carry it: name and link only beside `other`, and then both."""
        if self.license in HUB_LICENSES and self.license != "other":
            return replace(self, name=None, link=None)
        one_link = self.link is not None and not any(character.isspace() for character in self.link)
        return replace(self, license="other", name=self.name or self.license, link=self.link if one_link else "LICENSE")


def declared_claim(metadata: Mapping[str, object]) -> Claim | None:
    """What a card's front matter says, or None when it says nothing usable.

    Several licences in a list all bind: the strictest verdicts and every obligation.
    """
    value = metadata.get("license")
    ids = [
        hub_id(entry)
        for entry in (value if isinstance(value, list) else [value])
        if isinstance(entry, str) and entry.strip()
    ]
    claims = [_declared_one(entry, metadata) for entry in dict.fromkeys(ids)]
    if len(claims) <= 1:
        return claims[0] if claims else None
    label = " AND ".join(claim.label for claim in claims)
    return Claim(
        license="other",
        name=label,
        link="; ".join(claim.link for claim in claims if claim.link) or None,
        family=" + ".join(dict.fromkeys(claim.family for claim in claims)),
        train=strictest(claim.train for claim in claims),
        distribute=strictest(claim.distribute for claim in claims),
        commercial=strictest(claim.commercial for claim in claims),
        obligations=tuple(dict.fromkeys(duty for claim in claims for duty in claim.obligations)),
    )


def _declared_one(license_id: str, metadata: Mapping[str, object]) -> Claim:
    if license_id == "other":
        return Claim.of(
            "other", "unknown", name=_text(metadata.get("license_name")), link=_text(metadata.get("license_link"))
        )
    return _named(license_id, family_of(license_id))


def _named(license_id: str, family: str, link: str | None = None) -> Claim:
    if license_id in HUB_LICENSES:
        return Claim.of(license_id, family, link=link)
    # The Hub has no id for it, so its spelling is `other` with the licence's own name.
    known = Claim.of(license_id, family, link=link)
    return replace(known, license="other", name=spdx_id(license_id) or license_id)


def _text(value: object) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


def assert_claim(place: str, assertion: LicenseAssertion, declared: Claim | None) -> Claim:
    """The recipe's assertion as a claim; `place` is its key in the recipe. Raises LicenseError when it is unusable."""
    license_id = hub_id(assertion.id)
    if license_id == "other":
        return _assert_other(place, assertion, declared)
    family = family_of(license_id)
    if family not in ("unknown", "ambiguous"):
        if assertion.family not in (None, family):
            raise LicenseError(
                f"{place}.family: {license_id} belongs to {family}, not {assertion.family}; remove family, or give id: other with name and link"
            )
        return _named(license_id, family, assertion.link)
    if license_id == "unknown" or (license_id not in HUB_LICENSES and spdx_id(license_id) is None):
        raise LicenseError(
            f"{place}.id: '{assertion.id}' is not a licence id of the Hub or SPDX{_hint(license_id)}; give id: other for terms that have none"
        )
    if assertion.family is None:
        what = "a family of licences, not one" if family == "ambiguous" else "a licence that the policy has no row for"
        raise LicenseError(
            f"{place}.id: '{assertion.id}' is {what}; give an exact id, or say which family it belongs to ({', '.join(ASSERTABLE_FAMILIES)})"
        )
    return _named(license_id, assertion.family, assertion.link)


def _assert_other(place: str, assertion: LicenseAssertion, declared: Claim | None) -> Claim:
    said = declared if declared is not None and declared.license == "other" else None
    name = assertion.name or (said.name if said else None)
    link = assertion.link or (said.link if said else None)
    missing = [key for key, value in (("family", assertion.family), ("name", name), ("link", link)) if not value]
    if assertion.family is None or missing:
        families = f"; families: {', '.join(ASSERTABLE_FAMILIES)}" if assertion.family is None else ""
        raise LicenseError(
            f"{place}: id 'other' also needs {', '.join(missing)}, so that others can check the terms{families}"
        )
    return Claim.of("other", assertion.family, name=name, link=link)


def _hint(license_id: str) -> str:
    hint = nearest(license_id, [name for name in HUB_LICENSES if name not in ("other", "unknown")])
    return hint if "did you mean" in hint else ""


def contradicts(declared: Claim, asserted: Claim) -> bool:
    """Whether an assertion says something else than the card, rather than making a vague card precise."""
    if declared.family == "unknown" and declared.name is None:
        return False  # the card says `unknown`, or `other` without a name
    said, now = declared.label.lower(), asserted.label.lower()
    if declared.family == "ambiguous":
        return not now.startswith(said) and not (said == "openrail" and asserted.family == "rail")
    return said != now

"""The licence gate: what may be done with a model, given the licences of the backbone and the data.

Evidence comes from the content's own card, or from the recipe's assertion with its reason. The licence of a package that
carries the content covers the package's code, so it is never read here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import LicenseError, nearest
from finetune.release._claims import Claim, assert_claim, contradicts, declared_claim
from finetune.release.policy import SEVERITY, USES, Verdict, strictest

if TYPE_CHECKING:
    from finetune.recipe.types import LicenseAssertion

_OPEN = frozenset({"permissive", "attribution", "public_domain"})
_RIGHT_WORDS = {"train": "training", "distribute": "distribution", "commercial": "commercial use"}


@dataclass(frozen=True)
class Component:
    """One part of the model and what its licence allows."""

    role: str
    name: str
    license: str
    """Hub spelling; `other` with a name for what the Hub does not list, `unknown` when nothing is said."""
    license_name: str | None
    link: str | None
    family: str
    evidence: str
    asserted: bool
    reason: str | None
    train: Verdict
    distribute: Verdict
    commercial: Verdict
    declared: str | None
    """What the content's own card says, whatever the recipe asserts."""
    warning: str | None
    """One sentence when the recipe's assertion contradicts the card."""
    obligations: tuple[str, ...]

    @property
    def label(self) -> str:
        """The licence as people write it: its Hub id, or its name when the Hub does not list it."""
        return self.license_name or self.license if self.license == "other" else self.license

    def verdict(self, use: str) -> Verdict:
        """The strictest verdict over the rights that `use` needs."""
        verdicts: dict[str, Verdict] = {
            "train": self.train,
            "distribute": self.distribute,
            "commercial": self.commercial,
        }
        return strictest(verdicts[right] for right in USES[use])

    def to_json(self) -> dict[str, Any]:
        """JSON-ready form, as report.json keeps it."""
        return {**asdict(self), "obligations": list(self.obligations)}


def card_evidence(card: Path | None, *, revision: str | None = None, package: str | None = None) -> str:
    """Evidence for what a card says: its file name, SHA-256, and the commit or package that it came from.

    `card` is the README.md whose front matter was read, or None when the content has none.
    """
    origin = f" of {package}" if package else f" at revision {revision}" if revision else ""
    if card is None or not card.is_file():
        return f"no model or data card{origin}"
    return f"{card.name} (sha256 {hashlib.sha256(card.read_bytes()).hexdigest()}){origin}"


def resolve_component(
    role: str, name: str, metadata: Mapping[str, object], assertion: LicenseAssertion | None, *, evidence: str
) -> Component:
    """The licence of one part: its card's `license`, unless the recipe asserts another.

    `role` is the key under `license:` in the recipe (`backbone`, `data`), `metadata` the card's front matter ({} if none),
    `evidence` where that came from (`card_evidence`). Nothing said gives family `unknown`, which `judge` denies.
    Raises LicenseError when the assertion itself is unusable: an unknown id, or `other` without family, name and link.
    """
    declared = declared_claim(metadata)
    if assertion is None:
        claim = declared or Claim.of("unknown", "unknown")
        return _component(role, name, claim, declared, evidence if declared else f"no licence in {_no_card(evidence)}")
    claim = assert_claim(f"license.{role}", assertion, declared)
    if declared is not None and claim == declared:
        return _component(role, name, claim, declared, evidence, reason=assertion.reason)
    warning = None
    evidence_used = f"asserted by the recipe: {assertion.reason}"
    if declared is not None and contradicts(declared, claim):
        warning = (
            f"The recipe asserts {claim.label} for the {role} {name}, but its card says {declared.label} ({evidence})."
        )
        evidence_used += f" (contradicts {declared.label} in {evidence})"
    return _component(
        role, name, claim, declared, evidence_used, asserted=True, reason=assertion.reason, warning=warning
    )


def judge(components: Sequence[Component], use: str, reviewed: str | None = None) -> dict[str, Any]:
    """What `use` (research, internal, commercial) may do with a model made of these parts: report["license"].

    The verdict is the strictest over parts and needed rights; obligations are the union, each with the parts and evidence
    that it comes from. Raises LicenseError for an unknown use, or for no parts at all.
    """
    if use not in USES:
        raise LicenseError(f"license.use: unknown use '{use}'{nearest(use, USES)}")
    if not components:
        raise LicenseError(
            "license: no backbone and no data were given, so nothing is known about what the model may be used for"
        )
    verdict = strictest(part.verdict(use) for part in components)
    bundle = _bundle_license(components)
    return {
        "use": use,
        "verdict": verdict,
        "components": [part.to_json() for part in components],
        "obligations": _obligations(components),
        "warnings": [part.warning for part in components if part.warning],
        "reviewed": reviewed,
        "bundle_license": bundle.license,
        "bundle_license_name": bundle.name,
        "bundle_license_link": bundle.link,
        "sentence": _sentence(components, use, verdict, reviewed),
    }


def require_allowed(license_report: Mapping[str, Any]) -> None:
    """Raise LicenseError, naming part, licence, use and the fix, when a report from `judge` forbids its use."""
    verdict, use = license_report["verdict"], license_report["use"]
    if verdict in ("allow", "conditions") or (verdict == "review" and license_report["reviewed"]):
        return
    parts = [
        Component(**{**entry, "obligations": tuple(entry["obligations"])}) for entry in license_report["components"]
    ]
    worst = max(parts, key=lambda part: SEVERITY[part.verdict(use)])
    place = f"license.{worst.role}"
    if worst.family == "unknown" or worst.family == "ambiguous":
        what = (
            "is a family of licences, not one"
            if worst.family == "ambiguous"
            else "is not a licence that the policy knows"
        )
        raise LicenseError(
            f"{place}: '{worst.label}' of the {worst.role} {worst.name} {what} ({worst.evidence}), so {use} use is refused; "
            f"read its terms and assert them in the recipe under {place} with id (and family if the id is other) and reason"
        )
    rights = _rights_at(worst, use, verdict)
    if verdict == "review":
        raise LicenseError(
            f"license.use: {use} use needs a review, because {_named(worst)} leaves {rights} to one "
            f"({worst.evidence}); write who reviewed it and what they decided in license.reviewed"
        )
    possible = [
        other for other in USES if SEVERITY[strictest(part.verdict(other) for part in parts)] < SEVERITY["deny"]
    ]
    choice = f"set license.use to {' or '.join(possible)}, or " if possible else ""
    raise LicenseError(
        f"license.use: {use} use is not allowed, because {_named(worst)} forbids {rights} "
        f"({worst.evidence}); {choice}use another {worst.role}, or assert under {place} the terms that you were granted"
    )


def _component(
    role: str,
    name: str,
    claim: Claim,
    declared: Claim | None,
    evidence: str,
    *,
    asserted: bool = False,
    reason: str | None = None,
    warning: str | None = None,
) -> Component:
    return Component(
        role=role,
        name=name,
        license=claim.license,
        license_name=claim.name,
        link=claim.link,
        family=claim.family,
        evidence=evidence,
        asserted=asserted,
        reason=reason,
        train=claim.train,
        distribute=claim.distribute,
        commercial=claim.commercial,
        declared=declared.label if declared else None,
        warning=warning,
        obligations=claim.obligations,
    )


def _no_card(evidence: str) -> str:
    return f"its metadata: {evidence}" if evidence.startswith("no ") else evidence


def _obligations(components: Sequence[Component]) -> list[str]:
    owners: dict[str, list[Component]] = {}
    for part in components:
        for sentence in part.obligations:
            owners.setdefault(sentence, []).append(part)
    return [f"{sentence} ({'; '.join(_source(part) for part in parts)})" for sentence, parts in owners.items()]


def _source(part: Component) -> str:
    # A full hash stands in the component's evidence; here its beginning is enough to find it.
    evidence = re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28,}\b", r"\1…", part.evidence)
    return f"{part.role} {part.name}: {part.label}, {evidence}"


def _rights_at(part: Component, use: str, verdict: Verdict) -> str:
    verdicts = {"train": part.train, "distribute": part.distribute, "commercial": part.commercial}
    return " and ".join(_RIGHT_WORDS[right] for right in USES[use] if verdicts[right] == verdict)


def _sentence(components: Sequence[Component], use: str, verdict: Verdict, reviewed: str | None) -> str:
    named = use.capitalize()
    if verdict == "allow":
        return f"{named} use is allowed by {_listed(components)}."
    decisive = [part for part in components if part.verdict(use) == verdict]
    because = "; ".join(f"{_named(part)} ({_rights_at(part, use, verdict)})" for part in decisive)
    if verdict == "conditions":
        return f"{named} use is allowed under conditions, set by {because}."
    if verdict == "deny":
        return f"{named} use is not allowed, because of {because}."
    outcome = f"; reviewed: {reviewed.strip().rstrip('.')}" if reviewed else ", and none is recorded"
    return f"{named} use needs a review, because of {because}{outcome}."


def _named(part: Component) -> str:
    label = f"“{part.label}”" if part.license == "other" else part.label
    return f"{label} of the {part.role} {part.name}"


def _listed(components: Sequence[Component]) -> str:
    return " and ".join(map(_named, components))


def _bundle_license(components: Sequence[Component]) -> Claim:
    """A licence for the bundle: the one restrictive licence there is, all of them by name, or the backbone's own.

    Weights are a changed form of the backbone, so open data add credits but do not change the licence; anything
    stricter passes through to the result.
    """
    claims = [
        Claim(p.license, p.license_name, p.link, p.family, p.train, p.distribute, p.commercial, p.obligations)
        for p in components
    ]
    restrictive = list(
        {claim.label: claim for claim in claims if not _OPEN.issuperset(claim.family.split(" + "))}.values()
    )
    if not restrictive:
        return next((claim for claim in claims if claim.family != "public_domain"), claims[0]).publishable()
    if len(restrictive) == 1:
        return restrictive[0].publishable()
    return Claim.of("other", "unknown", name=" AND ".join(claim.label for claim in restrictive), link="LICENSE")

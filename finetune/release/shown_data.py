"""Test rows that a bundle shows are the data themselves: what passing them on asks, and whose they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def with_samples(license_report: Mapping[str, Any], samples: Mapping[str, Any] | None) -> dict[str, Any]:
    """report["license"] of a bundle that shows test rows: what passing those rows on asks is added to the obligations.

    `samples` is report["samples"] or None. Rows of the data set in the bundle are the data themselves, under the data's own
    licence, whatever becomes of the weights.
    """
    shown = describe_samples(samples)
    if not shown:
        return dict(license_report)
    duties = [
        f"{_PASSING_ON[part['distribute']].format(shown=shown)} ({part['role']} {part['name']}: {_label(part)})"
        for part in license_report["components"]
        if part["role"] == "data"
    ]
    return {**license_report, "obligations": list(dict.fromkeys([*license_report["obligations"], *duties]))}


_TAKE_OUT = "before passing the bundle on, or make it without them (evaluation.samples: 0)"
_PASSING_ON: dict[str, str] = {
    "allow": "Pass the {shown} on under the data's own licence, with its credits: they are copies of the data.",
    "conditions": "Pass the {shown} on only under the data's own licence and conditions: they are copies of the data.",
    "review": f"Have it reviewed whether the {{shown}}, which are copies of the data, may be passed on, or take them out {_TAKE_OUT}.",
    "deny": f"Take the {{shown}} out {_TAKE_OUT}: they are copies of the data, whose licence does not let you pass them on.",
}
"""By the data's verdict on distribution."""


def describe_samples(samples: Mapping[str, Any] | None) -> str:
    """The rows of the data set that a bundle shows, in words; "" if it shows none."""
    rows = (samples or {}).get("rows") or []
    pictures = sum(1 for row in rows if row.get("image"))
    texts = sum(1 for row in rows if row.get("text"))
    if pictures:
        return f"{pictures} small picture{'s' if pictures > 1 else ''} of test images in samples/ and report.html"
    return f"beginnings of test texts ({texts}) in report.json and report.html" if texts else ""


def _label(part: Mapping[str, Any]) -> str:
    return str(part["license_name"] or part["license"]) if part["license"] == "other" else str(part["license"])

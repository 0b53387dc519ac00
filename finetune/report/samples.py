"""The hardest test rows as cards, with their pictures inlined, and where each cell of a confusion matrix leads."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from finetune.report import units
from finetune.report.tables import at

ReadFile = Callable[[str], bytes]
"""A name inside the bundle, such as samples/00.jpg, to the file's bytes."""
_NAME = re.compile(r"samples/[0-9]+(-cam)?\.jpg")
"""All that report.json may make the page read."""


def cards(report: Mapping[str, Any], read_file: ReadFile | None) -> list[dict[str, Any]]:
    """One card per sample in the report's order; without `read_file` they have no pictures."""
    rows = [row for row in at(report, "samples", "rows") or [] if isinstance(row, Mapping)]
    kinds = [(str(row.get("truth")), str(row.get("answer"))) for row in rows]
    made = []
    for number, (row, kind) in enumerate(zip(rows, kinds)):
        alike = [other for other, its_kind in enumerate(kinds) if its_kind == kind]
        following = alike[(alike.index(number) + 1) % len(alike)]
        made.append(
            {
                "id": f"sample-{number}",
                "number": number + 1,
                "place": row.get("place"),
                "truth": row.get("truth"),
                "answer": row.get("answer"),
                "wrong": row.get("wrong", kind[0] != kind[1]),
                "about": row.get("about"),
                "score": units.finite(row.get("score")),
                "error": _error(row),
                "text": row.get("text"),
                "image": _inline(row.get("image"), read_file),
                "gradcam": _inline(row.get("gradcam"), read_file),
                "gradcam_of": row.get("gradcam_of"),
                "alike": len(alike),
                "next": f"sample-{following}" if following != number else None,
            }
        )
    return made


def links(labels: Sequence[str], made: Sequence[Mapping[str, Any]]) -> dict[tuple[int, int], str]:
    """Cell (row, column) of the confusion matrix to the first card of that truth and answer."""
    places = {label: index for index, label in enumerate(labels)}
    found: dict[tuple[int, int], str] = {}
    for card in made:
        truth, answer = places.get(str(card["truth"])), places.get(str(card["answer"]))
        if truth is not None and answer is not None:
            found.setdefault((truth, answer), f"#{card['id']}")
    return found


def _inline(name: Any, read_file: ReadFile | None) -> str | None:
    if read_file is None or not isinstance(name, str) or not _NAME.fullmatch(name):
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(read_file(name)).decode('ascii')}"


def _error(row: Mapping[str, Any]) -> float | None:
    """Answer minus truth, where both are numbers and no probability is given instead."""
    if row.get("score") is not None:
        return None
    try:
        return units.finite(float(str(row.get("answer"))) - float(str(row.get("truth"))))
    except ValueError:
        return None

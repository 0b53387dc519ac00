"""The choice of `auto` unfreezing as a bar chart: layer groups by relative gradient norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.report import svg, units


def ranking(rows: Sequence[Mapping[str, Any]], chosen: Sequence[str]) -> str:
    """Bars from the largest norm down, the chosen groups in the accent colour; "" without rows."""
    measured = [(str(row.get("group")), units.finite(row.get("relative_gradient_norm"))) for row in rows]
    bars = sorted(((name, norm) for name, norm in measured if norm is not None), key=lambda bar: -bar[1])
    if not bars:
        return ""
    height, left = 25.0, 118.0
    plot = svg.Plot(460, 8 + height * len(bars), left=left, right=60, top=4, bottom=4)
    x = svg.Scale(0, max(norm for _, norm in bars) or 1.0, *plot.x_range)
    body = []
    for index, (name, norm) in enumerate(bars):
        top = plot.top + index * height
        kind = "ours" if name in chosen else "theirs"
        words = f"{name}: {units.significant(norm)}, {'trained' if name in chosen else 'left frozen'}"
        label = svg.text(left - 8, top + 16, units.shorten(name, 18), class_=f"label {kind}", text_anchor="end")
        body += [
            svg.tag("g", svg.tooltip(words), label),
            svg.rect(
                left, top + 4, max(1.0, x(norm) - left), height - 9, svg.tooltip(words), class_=f"rank {kind}", rx=2
            ),
            svg.text(max(left + 1, x(norm)) + 6, top + 16, units.significant(norm), class_="tick"),
        ]
    said = ", ".join(f"{name} {units.significant(norm)}" for name, norm in bars[:4])
    label = f"Relative gradient norm of {len(bars)} layer groups, largest first: {said}. Chosen: {', '.join(chosen) or 'none'}."
    return svg.picture(plot.width, plot.height, label, body)

"""Charts of the finished model: confusion matrix, reliability diagram, and intervals side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.report import svg, units


def confusion_matrix(
    labels: Sequence[str], confusion: Sequence[Sequence[int]], links: Mapping[tuple[int, int], str] | None = None
) -> str:
    """Counts, rows the truth and columns the prediction, shaded by the share of the row.

    `links` lead from a cell (row, column) to a place on the page. "" where there is no matrix, and for more than 100
    labels, which nobody could read.
    """
    size = len(confusion)
    if not 0 < size <= 100 or size != len(labels):
        return ""
    cell = min(62.0, max(13.0, 380 / size))
    letters = 16 if size <= 12 else 12
    left = 34 + 6.6 * min(letters, max(len(name) for name in labels))
    upright = cell < 20
    top = 30 + (6.6 if upright else 4.6) * min(letters, max(len(name) for name in labels))
    turn = 90 if upright else 42
    body = [
        svg.text(left + cell * size / 2, 12, "predicted", class_="tick", text_anchor="middle"),
        svg.text(-(top + cell * size / 2), 11, "true", class_="tick", text_anchor="middle", transform="rotate(-90)"),
    ]
    for index, name in enumerate(labels):
        short, middle = units.shorten(name, letters), (index + 0.5) * cell
        turned = f"translate({left + middle + 4:.1f} {top - 6:.1f}) rotate(-{turn})"
        body.append(
            svg.tag(
                "g", svg.tooltip(name), svg.text(left - 7, top + middle + 4, short, class_="label", text_anchor="end")
            )
        )
        body.append(svg.tag("g", svg.tooltip(name), svg.text(0, 0, short, class_="label", transform=turned)))
    if size > 20:  # one ground instead of thousands of empty cells
        body.append(svg.rect(left, top, cell * size, cell * size, class_="empty", rx=3))
    for row, counts in enumerate(confusion):
        total = sum(counts)
        for column, number in enumerate(counts):
            if size > 20 and not number:
                continue
            share = number / total if total else 0.0
            words = f"{labels[row]} taken for {labels[column]}: {number} of {total}"
            drawn = _cell(left + column * cell, top + row * cell, cell, number, share, row == column, words)
            place = (links or {}).get((row, column)) if number else None
            body += [svg.tag("a", *drawn, href=place, aria_label=f"{words}; see its hardest row")] if place else drawn
    right = left + cell * size + (0 if upright else 40)
    correct, rows = sum(confusion[i][i] for i in range(size)), sum(map(sum, confusion))
    label = f"Confusion matrix over {size} labels: {correct} of {rows} rows lie on the diagonal."
    # A picture has no parts for those who hear the page, so one with links in it is a group.
    return svg.picture(right, top + cell * size + 4, label, body, role="group" if links else "img")


def _cell(x: float, y: float, cell: float, number: int, share: float, diagonal: bool, words: str) -> list[str]:
    strength = 0.0 if number == 0 else 0.12 + 0.78 * (share if diagonal else math.sqrt(share))
    kind = "empty" if number == 0 else "right" if diagonal else "wrong"
    gap = 1.0 if cell >= 20 else 0.5
    style = f"--s:{strength:.2f}" if number else None
    drawn = [
        svg.rect(x + gap, y + gap, cell - 2 * gap, cell - 2 * gap, svg.tooltip(words), class_=kind, rx=2, style=style)
    ]
    if number and cell >= 7.4 * len(str(number)) + 5:
        tone = f"value on-{kind}" if strength > (0.7 if diagonal else 0.55) else "value"
        drawn.append(svg.text(x + cell / 2, y + cell / 2 + 4, str(number), class_=tone, text_anchor="middle"))
    return drawn


def reliability(bins: Sequence[Mapping[str, Any]], ece: Any, when: str, counted: str = "rows") -> str:
    """Accuracy against confidence per bin, area by what is `counted`, whose numbers stand below; "" without bins."""
    filled = [
        b
        for b in bins
        if b.get("count")
        and units.finite(b.get("confidence")) is not None
        and units.finite(b.get("accuracy")) is not None
    ]
    if not filled:
        return ""
    plot = svg.Plot(420, 444, left=48, right=22, top=14, bottom=106)
    x, y = svg.Scale(0, 1, *plot.x_range), svg.Scale(0, 1, *plot.y_range)
    ticks = [0, 0.25, 0.5, 0.75, 1]
    most, rows = max(b["count"] for b in filled), sum(b["count"] for b in filled)
    base = plot.height - 40
    below = svg.Scale(0, most, base, base - 46)
    body = [
        *plot.y_axis(y, ticks, lambda t: units.percent(t, 0)),
        svg.line(x(0), y(0), x(1), y(1), "ideal"),
    ]
    for one in filled:
        at, accuracy, number = x(one["confidence"]), y(one["accuracy"]), one["count"]
        words = f"confidence {units.percent(one['confidence'])}, accuracy {units.percent(one['accuracy'])}, {number} {counted}"
        left, right = x(one["low"]), x(one["high"])
        body += [
            svg.line(at, y(one["confidence"]), at, accuracy, "gap"),
            svg.tag(
                "circle", svg.tooltip(words), cx=at, cy=accuracy, r=3 + 7 * math.sqrt(number / most), class_="bubble"
            ),
            svg.rect(
                left + 0.5, below(number), right - left - 1, base - below(number), svg.tooltip(words), class_="bar"
            ),
        ]
    body += [
        svg.text(x(0) - 6, base - 36, count_words(most), class_="tick", text_anchor="end"),
        svg.text(x(0) - 6, base, "0", class_="tick", text_anchor="end"),
        svg.line(x(0), base, x(1), base, "axis"),
        *(svg.text(x(t), base + 15, units.percent(t, 0), class_="tick", text_anchor="middle") for t in ticks),
        svg.text((x(0) + x(1)) / 2, base + 32, "confidence", class_="tick", text_anchor="middle"),
    ]
    label = f"Reliability diagram {when} temperature scaling over {rows} {counted}; expected calibration error {units.percent(ece)}."
    return svg.picture(plot.width, plot.height, label, body)


def count_words(number: int) -> str:
    """A count short enough for an axis: 213, 12k."""
    return str(number) if number < 10_000 else f"{number / 1000:.0f}k"


@dataclass(frozen=True)
class Estimate:
    """One row of an interval chart: a measured value and, where known, its confidence interval."""

    name: str
    value: float
    low: float | None
    high: float | None
    ours: bool = False


def intervals(rows: Sequence[Estimate], metric: str, title: str) -> str:
    """Values of a metric, called `title`, with their confidence intervals on one axis; "" without rows."""
    if not rows:
        return ""
    row_height = 46.0
    plot = svg.Plot(500, 4 + row_height * len(rows) + 44, left=16, right=20, top=4, bottom=40)
    ends = [end for row in rows for end in (row.value, row.low, row.high) if end is not None]
    share = metric in units.SHARES
    log = metric in units.RATIOS and min(ends) > 0 and max(ends) > 8 * min(ends)
    ticks = (
        [0, 0.2, 0.4, 0.6, 0.8, 1]
        if share
        else svg.log_ticks(min(ends), max(ends))
        if log
        else svg.linear_ticks(min([0.0, *ends]), max(ends))
    )
    x = svg.Scale(ticks[0], ticks[-1], *plot.x_range, log=log)
    named = f"{title}, log scale" if log else title
    body = plot.x_axis(x, ticks, (lambda t: units.percent(t, 0)) if share else units.plain, named)
    for index, row in enumerate(rows):
        top, tone = plot.top + row_height * index, "ours" if row.ours else "theirs"
        y, between = top + 30, units.interval(row.low, row.high, metric)
        written = units.metric(metric, row.value) + (f" ({between})" if between else "")
        body.append(svg.line(x(ticks[0]), y, x(ticks[-1]), y, "grid"))
        body.append(svg.text(x(ticks[0]), top + 16, units.shorten(row.name, 34), class_=f"label {tone}"))
        body.append(svg.text(x(ticks[-1]), top + 16, written, class_=f"label {tone}", text_anchor="end"))
        if row.low is not None and row.high is not None:
            body.append(
                svg.rect(x(row.low), y - 4, max(2.0, x(row.high) - x(row.low)), 8, class_=f"whisker {tone}", rx=4)
            )
        body.append(
            svg.tag(
                "circle", svg.tooltip(f"{row.name}: {written}"), cx=x(row.value), cy=y, r=5, class_=f"estimate {tone}"
            )
        )
    label = f"Test {title}: " + "; ".join(f"{r.name} {units.metric(metric, r.value)}" for r in rows) + "."
    return svg.picture(plot.width, plot.height, label, body)

"""Charts of a model whose answer is a number: answers against the truth, and how far off they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from finetune.report import svg, units

Point = tuple[float, float]
"""(truth, answer) of one row."""
MOST_POINTS = 1500


def usable(points: Any) -> list[Point]:
    """The (truth, answer) pairs that are finite numbers."""
    pairs = [(units.finite(pair[0]), units.finite(pair[1])) for pair in points or () if len(pair) == 2]
    return [(truth, answer) for truth, answer in pairs if truth is not None and answer is not None]


def scatter(points: Sequence[Point], interval: float | None) -> str:
    """Answers over true values with the line on which they are equal, and the interval's band around it; "" without points."""
    if not points:
        return ""
    plot = svg.Plot(460, 424, left=54, right=16, top=14, bottom=46)
    ends = [value for point in points for value in point]
    ticks = svg.linear_ticks(min(ends), max(ends), 8)
    x, y = svg.Scale(ticks[0], ticks[-1], *plot.x_range), svg.Scale(ticks[0], ticks[-1], *plot.y_range)
    body = [
        *(_band(plot, x, y, ticks, interval) if interval else []),
        *plot.y_axis(y, ticks, units.plain),
        *plot.x_axis(x, ticks, units.plain, "true value"),
        svg.line(x(ticks[0]), y(ticks[0]), x(ticks[-1]), y(ticks[-1]), "ideal"),
        svg.text(plot.left + 4, plot.top + 12, "answer", class_="tick"),
    ]
    step = math.ceil(len(points) / MOST_POINTS)
    for truth, answer in points[::step]:
        words = f"true {units.plain(truth)}, answer {units.significant(answer)}"
        body.append(svg.tag("circle", svg.tooltip(words), cx=x(truth), cy=y(answer), r=3.2, class_="point"))
    label = f"Answers against true values of {units.count(len(points))} test rows; on the dashed line they are equal."
    return svg.picture(plot.width, plot.height, label, body)


def _band(plot: svg.Plot, x: svg.Scale, y: svg.Scale, ticks: Sequence[float], half: float) -> list[str]:
    """The strip within ±half of the identity line, cut at the plot's edges."""
    low, high = ticks[0], ticks[-1]
    half = min(half, high - low)
    corners = [(low, low - half), (low, low + half), (high - half, high), (high, high), (high, high - half)]
    corners += [(low + half, low)]
    inside = [(x(a), y(min(high, max(low, b)))) for a, b in corners]
    path = "M" + "L".join(f"{left:.1f} {top:.1f}" for left, top in inside) + "z"
    return [svg.tag("path", svg.tooltip(f"within {units.significant(half)} of the true value"), d=path, class_="strip")]


def histogram(points: Sequence[Point], bins: int = 25) -> str:
    """Rows by answer − truth, in equal steps that leave zero between two bars or inside one; "" without points."""
    if not points:
        return ""
    errors = [answer - truth for truth, answer in points]
    reach = max(map(abs, errors)) or 1.0
    counts = [0] * bins
    for error in errors:
        counts[min(bins - 1, int((error + reach) / (2 * reach) * bins))] += 1
    plot = svg.Plot(460, 300, left=54, right=16, top=14, bottom=46)
    heights = [tick for tick in svg.linear_ticks(0, max(counts), 4) if tick == int(tick)]
    ticks = svg.linear_ticks(-reach, reach, 6)
    x, y = svg.Scale(ticks[0], ticks[-1], *plot.x_range), svg.Scale(0, heights[-1], *plot.y_range)
    body = [*plot.y_axis(y, heights, units.count)]
    width = 2 * reach / bins
    for index, number in enumerate(counts):
        left, right = x(-reach + index * width), x(-reach + (index + 1) * width)
        words = (
            f"off by {units.significant(-reach + index * width)} to "
            f"{units.significant(-reach + (index + 1) * width)}: {units.plural(number, 'row')}"
        )
        if number:
            body.append(
                svg.rect(left + 0.5, y(number), right - left - 1, y(0) - y(number), svg.tooltip(words), class_="solid")
            )
    body += [
        svg.line(x(0), plot.top, x(0), y(0), "ideal"),
        *plot.x_axis(x, ticks, units.plain, "answer minus true value"),
    ]
    within = sum(abs(error) <= reach / 4 for error in errors)
    label = (
        f"Histogram of the errors of {units.count(len(errors))} test rows: {units.count(within)} are off by at most "
        f"{units.significant(reach / 4)}, the farthest by {units.significant(reach)}."
    )
    return svg.picture(plot.width, plot.height, label, body)

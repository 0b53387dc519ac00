"""What training did to the perplexity of several kinds of text: before and after on one axis, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.report import svg, units

ROW = 66.0


@dataclass(frozen=True)
class Change:
    """A measurement before and after training, {"value", "low", "high"} each."""

    name: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]

    @property
    def written(self) -> str:
        """The two values and how far they lie apart."""
        old, new = self.before["value"], self.after["value"]
        values = f"{units.metric('perplexity', old)} → {units.metric('perplexity', new)}"
        return f"{values} ({units.change(new, old)})"


def forgetting(rows: Sequence[Change]) -> str:
    """Grey is before, blue is after, bars are the intervals; "" without rows.

    The axis is logarithmic where the perplexities differ by more than a factor of eight.
    """
    ends = [end for row in rows for one in (row.before, row.after) for end in _ends(one)]
    if not ends:
        return ""
    plot = svg.Plot(540, 4 + ROW * len(rows) + 44, left=16, right=20, top=4, bottom=40)
    log = min(ends) > 0 and max(ends) > 8 * min(ends)
    ticks = svg.log_ticks(min(ends), max(ends)) if log else svg.linear_ticks(min(0.0, *ends), max(ends))
    x = svg.Scale(ticks[0], ticks[-1], *plot.x_range, log=log)
    body = plot.x_axis(x, ticks, units.plain, "perplexity, log scale" if log else "perplexity")
    for index, row in enumerate(rows):
        body += _row(row, plot.top + ROW * index, x, ticks[0], ticks[-1])
    said = "; ".join(f"{row.name} {row.written}" for row in rows)
    return svg.picture(plot.width, plot.height, f"Perplexity before and after training: {said}.", body)


def _ends(one: Mapping[str, Any]) -> list[float]:
    """The numbers of a measurement."""
    return [number for key in ("value", "low", "high") if (number := units.finite(one.get(key))) is not None]


def _row(row: Change, top: float, x: svg.Scale, first: float, last: float) -> list[str]:
    """Name and numbers above two lanes: before, and below it after."""
    drawn = [
        svg.text(x(first), top + 16, units.shorten(row.name, 30), class_="label ours"),
        svg.text(x(last), top + 16, row.written, class_="label ours", text_anchor="end"),
    ]
    for when, one, lane, tone in (("before", row.before, 31, "theirs"), ("after", row.after, 47, "ours")):
        y = top + lane
        between = units.interval(one.get("low"), one.get("high"), "perplexity")
        words = f"{row.name}, {when}: {units.metric('perplexity', one['value'])}{f' ({between})' if between else ''}"
        drawn.append(svg.line(x(first), y, x(last), y, "grid"))
        low, high = units.finite(one.get("low")), units.finite(one.get("high"))
        if low is not None and high is not None:
            drawn.append(svg.rect(x(low), y - 4, max(2.0, x(high) - x(low)), 8, class_=f"whisker {tone}", rx=4))
        drawn.append(svg.tag("circle", svg.tooltip(words), cx=x(one["value"]), cy=y, r=5, class_=f"estimate {tone}"))
    return drawn

"""A few lines of SVG: elements, scales and ticks. Colours come from the page's CSS, so that charts follow its theme."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".") if abs(value) >= 0.005 else "0"
    return html.escape(str(value), quote=True)


def tag(name: str, *children: str, **attributes: object) -> str:
    """One element. `class_` and `text_anchor` become `class` and `text-anchor`; None is left out; children are markup."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = "".join(children)
    return f"<{name}{written}>{inside}</{name}>" if inside else f"<{name}{written}/>"


def text(x: float, y: float, words: str, **attributes: object) -> str:
    """A text element; the words are escaped here."""
    return tag("text", html.escape(words), x=x, y=y, **attributes)


def tooltip(words: str) -> str:
    """What browsers show while the pointer rests on the parent element."""
    return tag("title", html.escape(words))


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def rect(x: float, y: float, width: float, height: float, *children: str, **attributes: object) -> str:
    """A rectangle."""
    return tag("rect", *children, x=x, y=y, width=max(0.0, width), height=max(0.0, height), **attributes)


def picture(width: float, height: float, label: str, body: Sequence[str], role: str = "img") -> str:
    """The whole drawing; `label` is read aloud in its place and must say what the picture shows."""
    return tag(
        "svg",
        *body,
        class_="chart",
        viewBox=f"0 0 {_value(float(width))} {_value(float(height))}",
        width=float(width),
        height=float(height),
        role=role,
        aria_label=label,
    )


@dataclass(frozen=True)
class Scale:
    """Maps values from [low, high] to coordinates from `start` to `end`, linearly or by the logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, self.low))
        if high == low:
            return (self.start + self.end) / 2
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return self.start + share * (self.end - self.start)


# Below this a step of ticks would leave the range of normal floats; no chart shows anything so small.
_LEAST_SPAN = 1e-290


def linear_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round values that cover [low, high]: steps of 1, 2, 2.5 or 5 times a power of ten."""
    span = high - low
    if span <= max(1e-9 * max(abs(low), abs(high)), _LEAST_SPAN):  # one value: leave room around it
        span = max(abs(low), abs(high)) / 5
        span = span if span > _LEAST_SPAN else 1.0
        low, high = low - span / 2, high + span / 2
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10, 20) if span / (power * factor) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten that cover [low, high]; 1, 2 and 5 times them where fewer than three would show."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    decades = [10.0**power for power in range(first, last + 1)]
    if len(decades) > 3:
        return decades
    fine = [factor * decade for decade in decades[:-1] for factor in (1, 2, 5)] + [decades[-1]]
    start = max(index for index, tick in enumerate(fine) if tick <= low * (1 + 1e-9))
    end = min(index for index, tick in enumerate(fine) if tick >= high * (1 - 1e-9))
    if start == end:  # one value, itself a tick: leave room around it
        start, end = max(0, start - 1), min(len(fine) - 1, end + 1)
    return fine[start : end + 1]


@dataclass(frozen=True)
class Plot:
    """A rectangle with axes: where values land, in the drawing's units."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float

    @property
    def x_range(self) -> tuple[float, float]:
        """Left and right edge of the plotting area."""
        return self.left, self.width - self.right

    @property
    def y_range(self) -> tuple[float, float]:
        """Bottom and top edge of the plotting area."""
        return self.height - self.bottom, self.top

    def y_axis(self, scale: Scale, ticks: Sequence[float], write: Callable[[float], str]) -> list[str]:
        """Horizontal grid lines with their values at the left."""
        start, end = self.x_range
        return [
            part
            for tick in ticks
            for part in (
                line(start, scale(tick), end, scale(tick), "grid"),
                text(start - 6, scale(tick) + 4, write(tick), class_="tick", text_anchor="end"),
            )
        ]

    def x_axis(self, scale: Scale, ticks: Sequence[float], write: Callable[[float], str], title: str) -> list[str]:
        """The base line, its values, and what they mean."""
        start, end = self.x_range
        base = self.y_range[0]
        return [
            line(start, base, end, base, "axis"),
            *(text(scale(tick), base + 15, write(tick), class_="tick", text_anchor="middle") for tick in ticks),
            text((start + end) / 2, base + 31, title, class_="tick", text_anchor="middle"),
        ]


def polyline(points: Sequence[tuple[float, float] | None], **attributes: object) -> str:
    """One path through the points, broken at each None."""
    steps: list[str] = []
    pen_up = True
    for point in points:
        if point is None:
            pen_up = True
            continue
        steps.append(f"{'M' if pen_up else 'L'}{_value(point[0])} {_value(point[1])}")
        pen_up = False
    return tag("path", d="".join(steps), fill="none", **attributes) if steps else ""

"""Charts over epochs: learning curves, rates and drift per layer group, and the map of what trained when.

Epoch k of a run occupies [k-1, k] on the time axis, so what is measured at its end lies at k and a phase that begins
after it begins at k.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.report import svg, units

WIDTH, HEIGHT = 460.0, 268.0
PLOT = svg.Plot(WIDTH, HEIGHT, left=50, right=12, top=34, bottom=40)


@dataclass(frozen=True)
class Span:
    """One phase on the time axis: the epochs (start, end] that it ran, and the layer groups that it set free."""

    number: int
    name: str
    start: int
    end: int
    thawed: tuple[str, ...]


@dataclass(frozen=True)
class Series:
    """One line: (epoch, value) pairs, None where the line breaks, drawn in the CSS colour `colour`."""

    name: str
    colour: str
    points: tuple[tuple[float, float | None] | None, ...]
    dots: bool = True
    thick: bool = False


def spans(history: Sequence[Mapping[str, Any]], phases: Sequence[Mapping[str, Any]]) -> list[Span]:
    """The phases that the history knows, with the groups that trained in each but not in the one before."""
    trainable = {phase.get("index"): list(phase.get("trainable") or ()) for phase in phases}
    found: list[Span] = []
    before: set[str] = set()
    start = 0
    for end, row in enumerate(history, start=1):
        following = history[end]["phase"] if end < len(history) else None
        if following == row["phase"]:
            continue
        groups = trainable.get(row["phase"], [])
        thawed = tuple(name for name in groups if name not in before)
        found.append(Span(len(found) + 1, str(row.get("phase_name") or f"phase {len(found) + 1}"), start, end, thawed))
        before, start = set(groups), end
    return found


def depth_colours(groups: Sequence[str]) -> dict[str, str]:
    """A CSS colour per layer group, input side first: the ramp `--depth-0` … `--depth-19` of the stylesheet."""
    last = max(1, len(groups) - 1)
    return {name: f"var(--depth-{round(index * 19 / last)})" for index, name in enumerate(groups)}


def _bands(phases: Sequence[Span], x: svg.Scale) -> list[str]:
    bottom, top = PLOT.y_range
    drawn: list[str] = []
    for span in phases:
        left, right = x(span.start), x(span.end)
        if span.number % 2 == 0:
            drawn.append(svg.rect(left, top - 22, right - left, bottom - top + 22, class_="band"))
        words = _band_words(span, int((right - left - 6) / 6.4))
        if words:
            drawn.append(svg.text((left + right) / 2, top - 8, words, class_="phase", text_anchor="middle"))
    for span in phases:
        if span.start > 0:
            x0 = x(span.start)
            kind = "thaw" if span.thawed else "boundary"
            drawn.append(svg.line(x0, top - 22, x0, bottom, kind))
            if span.thawed:
                drawn.append(
                    svg.tag(
                        "path", svg.tooltip(_thaw_words(span)), d=f"M{x0 - 4:.1f} {top - 22:.0f}h8l-4 6z", class_="flag"
                    )
                )
    return drawn


def _band_words(span: Span, letters: int) -> str:
    """The phase's name, its number, or in a crowd every fifth number."""
    if len(span.name) <= letters:
        return span.name
    if letters >= 7:
        return units.shorten(span.name, letters)
    return str(span.number) if len(str(span.number)) <= letters or span.number % 5 == 0 else ""


def _thaw_words(span: Span) -> str:
    return f"{span.name}: unfreezes {', '.join(span.thawed)}"


def _draw(series: Series, x: svg.Scale, y: svg.Scale, write: Callable[[Any], str], radius: float) -> list[str]:
    style = f"--c:{series.colour}"
    placed = [None if p is None or p[1] is None else (x(p[0]), y(p[1])) for p in series.points]
    drawn = [svg.polyline(placed, class_="curve thick" if series.thick else "curve", style=style)]
    if series.dots:
        for point, place in zip(series.points, placed):
            if point is not None and place is not None:
                words = f"{series.name}, epoch {point[0]:g}: {write(point[1])}"
                drawn.append(
                    svg.tag("circle", svg.tooltip(words), cx=place[0], cy=place[1], r=radius, class_="dot", style=style)
                )
    return drawn


def epoch_chart(
    label: str,
    phases: Sequence[Span],
    series: Sequence[Series],
    write: Callable[[Any], str],
    write_tick: Callable[[Any], str],
    *,
    log: bool = False,
    floor: float | None = None,
    ceiling: float | None = None,
    marks: Sequence[tuple[float, float]] = (),
) -> str:
    """Lines over epochs with the phases behind them; "" where there is nothing to draw.

    `write` puts values into tooltips, `write_tick` onto the axis. `floor` and `ceiling` bound the axis (not the data); `marks` are (epoch, value) pairs that get a ring.
    """
    values = [p[1] for s in series for p in s.points if p is not None and p[1] is not None and (p[1] > 0 or not log)]
    if not values or not phases:
        return ""
    ticks = (
        svg.log_ticks(min(values), max(values))
        if log
        else svg.linear_ticks(min([*values, *_given(floor)]), max(values))
    )
    if ceiling is not None and ticks[-1] > ceiling >= max(values):
        ticks = [tick for tick in ticks if tick < ceiling] + [ceiling]
    last = phases[-1].end
    x = svg.Scale(0, last, *PLOT.x_range)
    y = svg.Scale(ticks[0], ticks[-1], *PLOT.y_range, log=log)
    step, radius = max(1, math.ceil(last / 10)), 2.6 if last <= 20 else 1.8
    body = [
        *_bands(phases, x),
        *PLOT.y_axis(y, ticks, write_tick),
        *PLOT.x_axis(x, [float(tick) for tick in range(0, last + 1, step)], lambda tick: f"{tick:g}", "epoch"),
    ]
    for one in series:
        body += _draw(one, x, y, write, radius)
    body += [svg.tag("circle", cx=x(at), cy=y(value), r=2 * radius + 0.4, class_="ring") for at, value in marks]
    return svg.picture(WIDTH, HEIGHT, label, body)


def _given(value: float | None) -> list[float]:
    return [] if value is None else [value]


def freeze_map(groups: Sequence[str], phases: Sequence[Mapping[str, Any]]) -> str:
    """Layer groups (head on top) by phases: filled where a group trained, with its peak rate; "" without phases."""
    if not groups or not phases:
        return ""
    left, row = 118.0, 24.0 if len(groups) <= 12 else 17.0
    cell = min(110.0, max(20.0, (860 - left) / len(phases)))
    named = all(len(str(phase.get("name") or "")) <= cell / 6.4 for phase in phases)
    top = 40.0 if named else 22.0
    rates = [
        rate for phase in phases for rate in map(units.finite, (phase.get("learning_rates") or {}).values()) if rate
    ]
    shade = svg.Scale(min(rates, default=1.0), max(rates, default=1.0), 22, 62, log=True)
    body: list[str] = []
    for index, name in enumerate(reversed(groups)):
        words = svg.text(
            left - 8, top + index * row + row / 2 + 4, units.shorten(name, 17), class_="label", text_anchor="end"
        )
        body.append(svg.tag("g", svg.tooltip(name), words))
    before: set[str] = set()
    for column, phase in enumerate(phases):
        trainable = set(phase.get("trainable") or ())
        x = left + column * cell
        body.append(
            svg.text(
                x + cell / 2,
                top - (20 if named else 6),
                f"phase {column + 1}" if cell >= 60 else str(column + 1),
                class_="phase",
                text_anchor="middle",
            )
        )
        if named:
            body.append(
                svg.text(x + cell / 2, top - 6, str(phase.get("name") or ""), class_="tick", text_anchor="middle")
            )
        for index, group in enumerate(reversed(groups)):
            body += _map_cell(
                phase, group, x, top + index * row, cell, row, shade, group in trainable, group not in before
            )
        before = trainable
    described = "; ".join(
        f"phase {n + 1} trains {len(p.get('trainable') or ())} of {len(groups)} layer groups"
        for n, p in enumerate(phases)
    )
    return svg.picture(
        left + cell * len(phases) + 2,
        top + row * len(groups) + 2,
        f"Which layer groups trained in which phase: {described}.",
        body,
    )


def _map_cell(
    phase: Mapping[str, Any],
    group: str,
    x: float,
    y: float,
    cell: float,
    row: float,
    shade: svg.Scale,
    trains: bool,
    new: bool,
) -> list[str]:
    rate = units.finite((phase.get("learning_rates") or {}).get(group))
    words = f"{group} in {phase.get('name') or 'this phase'}: " + (
        f"trains, peak rate {units.scientific(rate)}" if trains else "frozen"
    )
    box = (x + 1, y + 1, cell - 2, row - 2)
    if not trains:
        return [svg.rect(*box, svg.tooltip(words), class_="frozen", rx=2)]
    drawn = [
        svg.rect(
            *box, svg.tooltip(words), class_="trains", rx=2, style=f"--s:{(shade(rate) if rate else 40) / 100:.2f}"
        )
    ]
    if new:
        drawn.append(svg.rect(x + 1, y + 1, 3, row - 2, class_="new"))
    if cell >= 52 and rate:
        drawn.append(
            svg.text(x + cell / 2, y + row / 2 + 4, units.scientific(rate), class_="value", text_anchor="middle")
        )
    return drawn

"""What the page's head and its part on training show that the report does not hold in so many words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.report import charts, language, units
from finetune.report.kinds import MODALITIES, TARGETS, kind_of, words_of
from finetune.report.ranking_chart import ranking
from finetune.report.tables import FORMS, at, ratio

VERDICTS = {"allow": ("Allowed", "good"), "conditions": ("Allowed with conditions", "warn")}
VERDICTS |= {"review": ("Needs review", "warn"), "deny": ("Not allowed", "bad")}


def headline(report: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict at a glance: the tiles of the page's head, each with a value, a note and a tone."""
    served = str(at(report, "export", "served") or "torch")
    measured = at(report, "metrics", "test_served") or at(report, "metrics", "test") or {}
    name = primary_metric(report, measured)
    score = measured.get(name) or {}
    bounds = units.interval(score.get("low"), score.get("high"), name)
    size, before = at(report, "export", served, "size_bytes"), at(report, "export", "torch", "size_bytes")
    gates = at(report, "export", "gates") or []
    passed = sum(bool(gate.get("passed")) for gate in gates)
    verdict, tone = VERDICTS.get(str(at(report, "license", "verdict")), ("Unknown", "warn"))
    smaller = ratio(before, size)
    tiles = [
        (
            f"Test {title(report, name)}",
            units.metric(name, score.get("value")),
            (f"95{units.NARROW}% interval {bounds}" if bounds else f"on {units.count(measured.get('rows'))} rows")
            + language.beginning(report, name),
            "",
        ),
        ("Served as", FORMS.get(served, served), str(at(report, "export", "served_reason") or ""), ""),
        (
            "File size",
            units.size(size),
            f"{units.times(smaller)} smaller than PyTorch" if smaller and smaller > 1.05 else "as large as PyTorch's",
            "",
        ),
        SPEED_TILES.get(kind_of(report)[0], _speed_tile)(report, served),
        ("Licence", verdict, f"for {at(report, 'license', 'use') or 'unstated'} use", tone),
        (
            "Gates",
            f"{passed} of {len(gates)} passed" if passed < len(gates) or not gates else f"All {passed} passed",
            _failed_gates(gates),
            "good" if passed == len(gates) else "warn",
        ),
    ]
    keys = ("title", "value", "note", "tone")
    return {
        "tiles": [dict(zip(keys, tile)) for tile in tiles],
        "rows": measured.get("rows"),
        "form": FORMS.get(served, served),
    }


def primary_metric(report: Mapping[str, Any], measured: Mapping[str, Any]) -> str:
    """The metric that the run was steered by where it was measured, else accuracy, else the first one there.

    Where the report does not say what steered it, it was accuracy.
    """
    steered = str(at(report, "metrics", "primary") or "accuracy")
    measurable = [key for key, value in measured.items() if isinstance(value, Mapping) and "value" in value]
    return next(
        (name for name in (steered, "accuracy") if name in measurable), measurable[0] if measurable else steered
    )


def title(report: Mapping[str, Any], metric: str) -> str:
    """A metric in words, the loss by the name that this target's has."""
    return words_of(report).title(metric)


def _speed_tile(report: Mapping[str, Any], served: str) -> tuple[str, str, str, str]:
    torch, ours = (at(report, "export", form, "latency_ms", "1") for form in ("torch", served))
    faster = ratio(torch, ours)
    one = MODALITIES[kind_of(report)[0]].one
    note = (
        f"{units.significant(ours)}{units.NARROW}ms for one {one}, PyTorch {units.significant(torch)}{units.NARROW}ms"
    )
    return ("Speed against PyTorch", units.times(faster), note, "warn" if faster and faster < 0.95 else "")


SPEED_TILES = {"language": language.speed_tile}
"""How the head speaks of speed, where it is not by the time for one input."""


def _failed_gates(gates: Sequence[Mapping[str, Any]]) -> str:
    failed = [str(gate.get("name")) for gate in gates if not gate.get("passed")]
    return f"not passed: {', '.join(failed)}" if failed else "every artifact measured on validation rows"


def training(report: Mapping[str, Any]) -> dict[str, Any]:
    """Learning curves, rates and drift per layer group, and the map of what trained when."""
    history = report.get("history") or []
    phases = at(report, "transfer", "phases") or []
    groups = [str(group["name"]) for group in at(report, "transfer", "groups") or []]
    spans = charts.spans(history, phases)
    colours = charts.depth_colours(groups)
    metric = str(at(report, "metrics", "primary") or "accuracy")
    best = _best_epochs(spans, phases, history)
    loss = [_over_epochs("training loss", "var(--quiet)", [row.get("train_loss") for row in history])]
    loss.append(_over_epochs("validation loss", "var(--accent)", [row.get("validation_loss") for row in history]))
    scores = [row.get("validation_metric") for row in history]
    said = f"{len(history)} epochs in {len(spans)} phases"
    named = f"validation {title(report, metric)}"
    share, floor = metric in units.SHARES, TARGETS[kind_of(report)[1]].floor
    choice = at(report, "transfer", "choice") or {}
    return {
        "spans": spans,
        "thaws": any(span.thawed and span.start > 0 for span in spans),
        "legend": _legend(groups, colours),
        "drifting": _legend([name for name in groups if any(at(row, "drift", name) for row in history)], colours),
        "loss": charts.epoch_chart(
            f"Training and validation loss over {said}.", spans, loss, units.significant, units.plain, floor=floor
        ),
        "metric": charts.epoch_chart(
            f"V{named[1:]} over {said}; the best epoch of each phase is ringed.",
            spans,
            [_over_epochs(named, "var(--accent)", scores)],
            lambda value: units.metric(metric, value),
            _per_cent if share else units.plain,
            floor=floor if metric in units.LOWER_IS_BETTER else None,
            ceiling=1.0 if metric in units.AT_MOST_ONE else None,
            marks=best,
        ),
        "rates": charts.epoch_chart(
            f"Peak learning rate of each layer group over {said}.",
            spans,
            _rates(spans, phases, groups, colours),
            units.scientific,
            units.scientific,
            log=True,
        ),
        "drift": charts.epoch_chart(
            f"Relative distance of each layer group from its starting weights over {said}.",
            spans,
            [
                _over_epochs(name, colours[name], [_positive(at(row, "drift", name)) for row in history])
                for name in groups
            ],
            lambda value: f"{units.significant(value * 100)}{units.NARROW}%",
            _per_cent,
            log=True,
        ),
        "map": charts.freeze_map(groups, phases),
        "choice": ranking(choice.get("ranking") or [], [str(name) for name in choice.get("chosen") or []]),
        "direction": "lower is better" if metric in units.LOWER_IS_BETTER else "higher is better",
    }


def _over_epochs(name: str, colour: str, values: Sequence[Any]) -> charts.Series:
    return charts.Series(
        name, colour, tuple((float(n), units.finite(value)) for n, value in enumerate(values, start=1))
    )


def _per_cent(tick: float) -> str:
    return f"{units.plain(round(tick * 100, 8))}{units.NARROW}%"


def _positive(value: Any) -> float | None:
    number = units.finite(value)
    return number if number is not None and number > 0 else None


def _rates(
    spans: Sequence[charts.Span], phases: Sequence[Mapping[str, Any]], groups: Sequence[str], colours: Mapping[str, str]
) -> list[charts.Series]:
    series = []
    for name in groups:
        points: list[tuple[float, float | None] | None] = []
        for span, phase in zip(spans, phases):
            rate = _positive(at(phase, "learning_rates", name)) if name in (phase.get("trainable") or ()) else None
            points += [(span.start, rate), (span.end, rate), None]
        series.append(charts.Series(name, colours[name], tuple(points), dots=False, thick=True))
    return series


def _legend(groups: Sequence[str], colours: Mapping[str, str]) -> list[tuple[str, str]]:
    """Layer groups and their colours, the head first."""
    return [(name, colours[name]) for name in reversed(groups)]


def _best_epochs(
    spans: Sequence[charts.Span], phases: Sequence[Mapping[str, Any]], history: Sequence[Mapping[str, Any]]
) -> list[tuple[float, float]]:
    marks = []
    for span, phase in zip(spans, phases):
        epoch = phase.get("best_epoch")
        if isinstance(epoch, int) and 1 <= epoch <= span.end - span.start:
            value = units.finite(history[span.start + epoch - 1].get("validation_metric"))
            marks += [] if value is None else [(float(span.start + epoch), value)]
    return marks

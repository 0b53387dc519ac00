"""What the page shows that the report does not hold in so many words: headline, charts, comparisons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.report import charts, quality_charts, units
from finetune.report.tables import FORMS, at, plain_value, ratio

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
            f"Test {units.metric_title(name)}",
            units.metric(name, score.get("value")),
            f"95{units.NARROW}% interval {bounds}" if bounds else f"on {units.count(measured.get('rows'))} rows",
            "",
        ),
        ("Served as", FORMS.get(served, served), str(at(report, "export", "served_reason") or ""), ""),
        (
            "File size",
            units.size(size),
            f"{units.times(smaller)} smaller than PyTorch" if smaller and smaller > 1.05 else "as large as PyTorch's",
            "",
        ),
        _speed_tile(report, served),
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
    """The metric that the run was steered by where it was measured, else accuracy, else the first one there."""
    steered = str(at(report, "metrics", "primary") or "accuracy")
    measurable = [key for key, value in measured.items() if isinstance(value, Mapping) and "value" in value]
    return next(
        (name for name in (steered, "accuracy") if name in measurable), measurable[0] if measurable else steered
    )


def _speed_tile(report: Mapping[str, Any], served: str) -> tuple[str, str, str, str]:
    torch, ours = (at(report, "export", form, "latency_ms", "1") for form in ("torch", served))
    faster = ratio(torch, ours)
    note = f"{units.significant(ours)}{units.NARROW}ms for one text, PyTorch {units.significant(torch)}{units.NARROW}ms"
    return ("Speed against PyTorch", units.times(faster), note, "warn" if faster and faster < 0.95 else "")


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
    share = metric in units.SHARES
    return {
        "spans": spans,
        "thaws": any(span.thawed and span.start > 0 for span in spans),
        "legend": [(name, colours[name]) for name in reversed(groups)],
        "loss": charts.epoch_chart(
            f"Training and validation loss over {said}.", spans, loss, units.significant, units.plain, floor=0.0
        ),
        "metric": charts.epoch_chart(
            f"Validation {units.metric_title(metric)} over {said}; the best epoch of each phase is ringed.",
            spans,
            [_over_epochs(f"validation {units.metric_title(metric)}", "var(--accent)", scores)],
            lambda value: units.metric(metric, value),
            _per_cent if share else units.plain,
            ceiling=1.0 if share else None,
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


def quality(report: Mapping[str, Any]) -> dict[str, Any]:
    """Test metrics of torch and the served file, confusions, baselines and calibration."""
    torch, served = at(report, "metrics", "test") or {}, at(report, "metrics", "test_served") or {}
    labels = [str(label) for label in at(report, "data", "labels") or []]
    shown = served or torch
    confusion = shown.get("confusion") or []
    names = [name for name, value in torch.items() if isinstance(value, Mapping) and "value" in value]
    calibration = report.get("calibration") or {}
    metric = primary_metric(report, torch)
    return {
        "metrics": [(name, torch.get(name) or {}, served.get(name) or {}) for name in names],
        "labels": labels,
        "per_class": [(label, at(shown, "per_class", label) or {}) for label in labels],
        "matrix": quality_charts.confusion_matrix(labels, confusion),
        "confused": _confused(labels, confusion),
        "baseline_metric": metric,
        "intervals": quality_charts.intervals(_estimates(report, metric), metric) if report.get("baselines") else "",
        "baselines": _baseline_rows(report, names),
        "before": quality_charts.reliability(
            calibration.get("bins_before") or [], calibration.get("ece_before"), "before"
        ),
        "after": quality_charts.reliability(calibration.get("bins_after") or [], calibration.get("ece_after"), "after"),
    }


def _confused(labels: Sequence[str], confusion: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    if len(labels) != len(confusion):
        return []
    pairs: list[dict[str, Any]] = [
        {"true": labels[i], "predicted": labels[j], "rows": number, "of": sum(row)}
        for i, row in enumerate(confusion)
        for j, number in enumerate(row)
        if i != j and number
    ]
    return sorted(pairs, key=lambda pair: -pair["rows"])[:6]


BASELINES = {"majority": "Majority label", "tfidf_logreg": "TF-IDF + logistic regression"}


def _baseline_rows(report: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for key, measured in (report.get("baselines") or {}).items():
        values = {name: plain_value(at(measured, name)) for name in names}
        rows.append({"name": BASELINES.get(key, key), "values": values, "seconds": at(measured, "seconds")})
    return rows


def _estimates(report: Mapping[str, Any], metric: str) -> list[quality_charts.Estimate]:
    test, served = at(report, "metrics", "test") or {}, at(report, "metrics", "test_served") or {}
    rows = int(test.get("rows") or 0)
    found = []
    for key, measured in (report.get("baselines") or {}).items():
        value = units.finite(plain_value(at(measured, metric)))
        low, high = units.finite(at(measured, metric, "low")), units.finite(at(measured, metric, "high"))
        if value is None:
            continue
        if low is None and metric == "accuracy" and rows:
            low, high = wilson(value, rows)
        found.append(quality_charts.Estimate(BASELINES.get(key, key), value, low, high))
    for name, measured in (("This model, PyTorch", test), ("This model, served", served)):
        value = units.finite(at(measured, metric, "value"))
        if value is not None:
            low, high = units.finite(at(measured, metric, "low")), units.finite(at(measured, metric, "high"))
            found.append(quality_charts.Estimate(name, value, low, high, ours=True))
    return found


def wilson(share: float, rows: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share of `rows` (Wilson 1927); the report holds none for baselines."""
    centre = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return max(0.0, centre - half), min(1.0, centre + half)

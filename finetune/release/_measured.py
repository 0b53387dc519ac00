"""Sections of the card about what was measured: results and calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from finetune.release import _language
from finetune.release._facts import (
    LOWER_IS_BETTER,
    SHARES,
    Report,
    metric_name,
    metric_values,
    served_name,
    unweighted_name,
    weights_of,
)
from finetune.release._kinds import kind_of, modality_of, target_of
from finetune.release._markdown import code, counted, interval, number, share, table, text

_MOST_CLASSES = 30
_MOST_CONFUSION = 12
_BASELINES = {
    "tfidf_logreg": "TF-IDF + logistic regression",
    "tfidf_ridge": "TF-IDF + ridge regression",
    "pixels_logreg": "16 × 16 grey pixels + logistic regression",
    "pixels_ridge": "16 × 16 grey pixels + ridge regression",
    "majority": "Majority label",
    "mean": "Mean of the training rows",
    "unigram": "Unigram model, add-one smoothing",
}
_LEARNED = {"tfidf": "the TF-IDF baseline", "pixels": "the baseline on grey pixels"}
"""Baselines that learn from the input, by the beginning of their key."""


def results(report: Report) -> str:
    """Test results of the torch and the served model beside the baselines, then what the target is judged by."""
    test, served = report["metrics"]["test"], report["metrics"]["test_served"]
    baselines = report["baselines"] or {}
    shown = [key for key in _BASELINES if key in baselines]
    rows = [
        [
            text(metric_name(report, metric)),
            interval(values),
            interval(served.get(metric)),
            *[interval(baselines[key].get(metric)) for key in shown],
        ]
        for metric, values in metric_values(test).items()
    ]
    header = ["Metric", "PyTorch", f"Served ({served_name(report)})", *[_BASELINES[key] for key in shown]]
    parts = [
        f"Measured once, on {number(test['rows'])} test {modality_of(report).row}s that no training or selection step has seen. "
        f"In parentheses: 95 % confidence intervals ({_intervals(report)}).",
        table(header, rows),
        _unweighted(report),
        _did_it_pay(report),
        *_DETAILS[kind_of(report)[1]](report),
    ]
    return "\n\n".join(part for part in parts if part)


_INTERVALS = {
    "single_label": "Wilson for accuracy, bootstrap over rows for the rest",
    "multi_label": "Wilson for exact match, bootstrap over rows for the rest",
    "regression": "bootstrap over rows",
    "next_token": "bootstrap over sequences, each with the weight of its tokens",
}


def _intervals(report: Report) -> str:
    said = _INTERVALS[kind_of(report)[1]]
    return said.replace(",", " with Kish's effective number of rows,") if weights_of(report) else said


def _unweighted(report: Report) -> str:
    """The same metrics where every row counts alike, as those who do not know the weights would measure them."""
    weights = weights_of(report)
    if weights is None:
        return ""
    torch, served = (report["metrics"][of]["unweighted"] for of in ("test", "test_served"))
    rows = [[text(unweighted_name(report, name)), number(torch[name]), number(served[name])] for name in torch]
    said = f"Each row counts by its weight in the column {code(weights['column'])}. Where every row counts alike:"
    return "\n\n".join([said, table(["Metric", "PyTorch", f"Served ({served_name(report)})"], rows)])


def _did_it_pay(report: Report) -> str:
    primary = report["metrics"]["primary"]
    ours = metric_values(report["metrics"]["test"]).get(primary)
    baselines = report["baselines"] or {}
    learned = next((key for key in baselines if key.partition("_")[0] in _LEARNED), None)
    baseline = (baselines.get(learned) or {}).get(primary) if learned else None
    baseline = baseline.get("value") if isinstance(baseline, Mapping) else baseline
    if learned is None or ours is None or baseline is None or ours["value"] is None or primary == "loss":
        return ""
    lower, other = primary in LOWER_IS_BETTER, _LEARNED[learned.partition("_")[0]]
    gain = (baseline - ours["value"]) if lower else (ours["value"] - baseline)
    name, side = metric_name(report, primary), "below" if lower else "above"
    far = f"{number(gain * 100, 1)} points" if primary in SHARES else number(gain)
    if gain <= 0:
        return f"{name} is not {side} {other} ({far}): on these data the simpler model does as well."
    worst = ours.get("high" if lower else "low")
    reached = worst is not None and (baseline <= worst if lower else baseline >= worst)
    doubt = "; the baseline lies inside the interval, so the gain may be chance" if reached else ""
    return f"{name} is {far} {side} {other}{doubt}."


def _weakest_first(scores: Mapping[str, Any]) -> list[str]:
    """All labels in order, or of too many those with the lowest F1."""
    if len(scores) <= _MOST_CLASSES:
        return list(scores)
    return sorted(scores, key=lambda label: (scores[label]["f1"], label))[:_MOST_CLASSES]


def _per_label(report: Report, columns: Mapping[str, Callable[[Mapping[str, Any]], str]]) -> Iterator[str]:
    scores = report["metrics"]["test"].get("per_class") or {}
    ordered = _weakest_first(scores)
    yield "### Per label"
    if len(ordered) < len(scores):
        yield f"The {_MOST_CLASSES} labels with the lowest F1 of {len(scores)}; all of them are in `report.html`."
    rows = [[text(label), *[write(scores[label]) for write in columns.values()]] for label in ordered]
    yield table(["Label", *columns], rows)


_SCORES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "Precision": lambda score: number(score["precision"]),
    "Recall": lambda score: number(score["recall"]),
    "F1": lambda score: number(score["f1"]),
    "Rows": lambda score: number(score["support"]),
}
_DECISIONS = _SCORES | {
    "Average precision": lambda score: number(score.get("average_precision")),
    "Missed": lambda score: number(score["confusion"][1][0]),
    "Wrongly given": lambda score: number(score["confusion"][0][1]),
}


def _labels_and_confusion(report: Report) -> Iterator[str]:
    yield from _per_label(report, _SCORES)
    labels, confusion = report["data"]["labels"], report["metrics"]["test"].get("confusion")
    if confusion and len(labels) <= _MOST_CONFUSION:
        yield "Confusion matrix on the test rows (PyTorch); rows are the true labels, columns the predicted ones:"
        yield table(
            ["True \\ predicted", *map(text, labels)],
            [[text(label), *map(number, row)] for label, row in zip(labels, confusion, strict=True)],
        )


def _errors(report: Report) -> Iterator[str]:
    residuals = report["metrics"]["test"].get("residuals") or {}
    if residuals:
        yield "### Errors"
        yield "Answer minus true value, quantiles over the test rows:"
        yield table(
            [_QUANTILES.get(name, name) for name in residuals],
            [[number(v) for v in residuals.values()]],
            numbers_from=0,
        )


_QUANTILES = {"min": "Least", "p05": "5 %", "p25": "25 %", "median": "Median", "p75": "75 %", "p95": "95 %"}
_QUANTILES |= {"max": "Greatest", "mean": "Mean"}

_DETAILS: dict[str, Callable[[Report], Iterator[str]]] = {
    "single_label": _labels_and_confusion,
    "multi_label": lambda report: _per_label(report, _DECISIONS),
    "regression": _errors,
    "next_token": _language.before_and_after,
}


def calibration(report: Report) -> str:
    """What the calibration fitted on validation rows is worth on test rows."""
    if report["calibration"] is None:
        return f"Calibration was not measured in this run; {target_of(report).weak}."
    return _CALIBRATIONS[kind_of(report)[1]](report["calibration"])


def _temperature(measured: Mapping[str, Any], loss: str, unchanged: str) -> str:
    rows = [
        [name, number(measured[f"{key}_before"], 4), number(measured[f"{key}_after"], 4)]
        for name, key in (("Expected calibration error", "ece"), (f"{loss} (nats)", "nll"), ("Brier score", "brier"))
    ]
    return (
        f"One temperature, T = {number(measured['temperature'])}, was fitted on the validation rows (Guo et al. 2017) and is applied by "
        f"`finetune.Predictor`. It changes probabilities, never {unchanged}. Measured on the test rows:\n\n"
        + table(["Measure", "Before", f"After (T = {number(measured['temperature'])})"], rows)
    )


def _conformal(measured: Mapping[str, Any]) -> str:
    level = share(measured["level"])
    if measured["interval"] is None:
        return f"{counted(measured['rows'], 'validation row')} are too few for an interval that holds {level} of the answers; none is served."
    return (
        f"`finetune.Predictor` gives an interval with each answer: ± {number(measured['interval'])}, which held {level} of the "
        f"{number(measured['rows'])} validation rows (split conformal prediction, Lei et al. 2018). On the test rows it held "
        f"{share(measured['coverage'])} (95 % confidence: {share(measured['coverage_low'])} to {share(measured['coverage_high'])}). "
        "It has the same width for every row, and holds on average over rows like these, not for each kind of row."
    )


_CALIBRATIONS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "single_label": lambda measured: _temperature(measured, "Negative log-likelihood", "the predicted label"),
    "multi_label": lambda measured: _temperature(measured, "Binary cross-entropy", "which labels are given"),
    "regression": _conformal,
}

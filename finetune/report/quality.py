"""What the page says about quality on the test split, by target: metrics, errors, baselines, calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from finetune.evaluation.intervals import CONFIDENCE, wilson
from finetune.report import language, quality_charts, regression_charts, samples, units
from finetune.report.kinds import kind_of
from finetune.report.tables import at, plain_value
from finetune.report.view import primary_metric, title

Report = Mapping[str, Any]
Cards = Sequence[Mapping[str, Any]]


def quality(report: Report, cards: Cards = ()) -> dict[str, Any]:
    """Test metrics of torch and the served file, baselines, and what belongs to the report's target alone.

    `cards` are those of the hardest test rows, to which errors are linked.
    """
    torch, served = at(report, "metrics", "test") or {}, at(report, "metrics", "test_served") or {}
    names = [name for name, value in torch.items() if isinstance(value, Mapping) and "value" in value]
    metric = primary_metric(report, torch)
    return {
        "metrics": [(name, torch.get(name) or {}, served.get(name) or {}) for name in names],
        "unweighted": [
            {"name": name, "values": form["unweighted"]}
            for name, form in (("PyTorch", torch), ("Served file", served))
            if form.get("unweighted")
        ],
        "wilson": is_share_of_rows(report, metric),
        "intervals": quality_charts.intervals(_estimates(report, metric), metric, title(report, metric))
        if report.get("baselines")
        else "",
        "baselines": _baseline_rows(report, names),
        **BY_TARGET[kind_of(report)[1]](report, served or torch, cards),
    }


def _single_label(report: Report, shown: Mapping[str, Any], cards: Cards) -> dict[str, Any]:
    labels = [str(label) for label in at(report, "data", "labels") or []]
    confusion = shown.get("confusion") or []
    links = samples.links(labels, cards)
    return {
        "labels": labels,
        "per_class": _per_class(labels, shown),
        "matrix": quality_charts.confusion_matrix(labels, confusion, links),
        "confused": _confused(labels, confusion, links),
        **_reliability(report, "rows"),
    }


def _multi_label(report: Report, shown: Mapping[str, Any], cards: Cards) -> dict[str, Any]:
    labels = [str(label) for label in at(report, "data", "labels") or []]
    return {"labels": labels, "per_class": _per_class(labels, shown), **_reliability(report, "decisions")}


def _regression(report: Report, shown: Mapping[str, Any], cards: Cards) -> dict[str, Any]:
    points = regression_charts.usable(shown.get("points"))
    interval = units.finite(at(report, "calibration", "interval"))
    residuals = at(shown, "residuals") or {}
    return {
        "scatter": regression_charts.scatter(points, interval),
        "histogram": regression_charts.histogram(points),
        "drawn": len(points),
        "residuals": [(name, residuals[name]) for name in residuals if units.finite(residuals[name]) is not None],
    }


BY_TARGET: dict[str, Callable[[Report, Mapping[str, Any], Cards], dict[str, Any]]] = {
    "single_label": _single_label,
    "multi_label": _multi_label,
    "regression": _regression,
    "next_token": lambda report, shown, cards: language.quality(report),
}
"""What each target adds; the page draws it with parts/quality_<target>.html and parts/calibration_<target>.html."""


def _per_class(labels: Sequence[str], shown: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(label, at(shown, "per_class", label) or {}) for label in labels]


def _reliability(report: Report, counted: str) -> dict[str, str]:
    measured = report.get("calibration") or {}
    return {
        when: quality_charts.reliability(measured.get(f"bins_{when}") or [], measured.get(f"ece_{when}"), when, counted)
        for when in ("before", "after")
    }


def _confused(
    labels: Sequence[str], confusion: Sequence[Sequence[int]], links: Mapping[tuple[int, int], str]
) -> list[dict[str, Any]]:
    if len(labels) != len(confusion):
        return []
    pairs: list[dict[str, Any]] = [
        {"true": labels[i], "predicted": labels[j], "rows": number, "of": sum(row), "link": links.get((i, j))}
        for i, row in enumerate(confusion)
        for j, number in enumerate(row)
        if i != j and number
    ]
    return sorted(pairs, key=lambda pair: -pair["rows"])[:6]


BASELINES = {
    "majority": "Majority label",
    "mean": "Mean of the training rows",
    "unigram": "Unigram model",
    "tfidf_logreg": "TF-IDF + logistic regression",
    "tfidf_ridge": "TF-IDF + ridge regression",
    "pixels_logreg": "Grey pixels + logistic regression",
    "pixels_ridge": "Grey pixels + ridge regression",
}


def _baseline_rows(report: Report, names: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for key, measured in (report.get("baselines") or {}).items():
        values = {name: plain_value(at(measured, name)) for name in names}
        rows.append({"name": BASELINES.get(key, key), "values": values, "seconds": at(measured, "seconds")})
    return rows


def _estimates(report: Report, metric: str) -> list[quality_charts.Estimate]:
    test, served = at(report, "metrics", "test") or {}, at(report, "metrics", "test_served") or {}
    rows = units.finite(test.get("effective_rows")) or int(test.get("rows") or 0)
    found = []
    for key, measured in (report.get("baselines") or {}).items():
        value = units.finite(plain_value(at(measured, metric)))
        low, high = units.finite(at(measured, metric, "low")), units.finite(at(measured, metric, "high"))
        if value is None:
            continue
        if low is None and rows and is_share_of_rows(report, metric):
            low, high = wilson(value * rows, rows, CONFIDENCE)  # the report holds no interval of a simple model
        found.append(quality_charts.Estimate(BASELINES.get(key, key), value, low, high))
    for name, measured in (("This model, PyTorch", test), ("This model, served", served)):
        value = units.finite(at(measured, metric, "value"))
        if value is not None:
            low, high = units.finite(at(measured, metric, "low")), units.finite(at(measured, metric, "high"))
            found.append(quality_charts.Estimate(name, value, low, high, ours=True))
    return found


def is_share_of_rows(report: Report, metric: str) -> bool:
    """Whether a metric is a share of the rows, whose interval is Wilson's."""
    return metric == "accuracy" and kind_of(report)[1] == "single_label"

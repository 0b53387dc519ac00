"""Facts of a report that several parts of the card need: ids, the card's metadata, and names of metrics."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from finetune.release._kinds import is_timm, kind_of, modality_of, target_of
from finetune.release._markdown import one_line

Report = Mapping[str, Any]

REPO_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
METRIC_NAMES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "f1_macro": "F1, macro",
    "f1_micro": "F1, micro",
    "precision_macro": "Precision, macro",
    "precision_micro": "Precision, micro",
    "recall_macro": "Recall, macro",
    "recall_micro": "Recall, micro",
    "exact_match": "Exact match",
    "label_accuracy": "Label accuracy",
    "average_precision_macro": "Average precision, macro",
    "mae": "Mean absolute error",
    "rmse": "Root mean squared error",
    "r2": "R²",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "perplexity": "Perplexity",
}
LOWER_IS_BETTER = frozenset({"loss", "mae", "rmse", "perplexity"})
SHARES = frozenset(METRIC_NAMES) - {"mae", "rmse", "r2", "pearson", "spearman", "perplexity"}
"""Metrics that are fractions of one, whose differences are told in points."""

# The Hub's metric ids, which are those of its evaluate library, where they are not ours.
_HUB_METRICS = {"r2": "r_squared", "pearson": "pearsonr", "spearman": "spearmanr"}
_HUB_LOSS = {"single_label": "loss", "multi_label": "loss", "regression": "mse", "next_token": "loss"}


def metric_name(report: Report, metric: str) -> str:
    """A metric as people write it, and whether rows are weighted; loss and accuracy by the names that the target's have."""
    name = unweighted_name(report, metric)
    return f"Row-weighted {_in_sentence(name)}" if weights_of(report) else name


def unweighted_name(report: Report, metric: str) -> str:
    """A metric as people write it, of rows that all count alike."""
    words = target_of(report)
    named = METRIC_NAMES | {"loss": words.loss, "accuracy": words.accuracy}
    return named.get(metric, metric.removeprefix("evaluate:"))


def weights_of(report: Report) -> Mapping[str, Any] | None:
    """What the audit says of the rows' weights, None where all count alike."""
    weights: Mapping[str, Any] | None = report["audit"].get("weights")
    return weights


def metric_in_sentence(report: Report, metric: str) -> str:
    """A metric inside a sentence: lower case, unless it is an abbreviation such as F1."""
    return _in_sentence(metric_name(report, metric))


def _in_sentence(name: str) -> str:
    return name[0].lower() + name[1:] if name[:1].isupper() and name[1:2].islower() else name


def metric_values(measured: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The metrics of one evaluation, in its order; rows, per-class scores and the confusion matrix are left out."""
    return {name: entry for name, entry in measured.items() if isinstance(entry, Mapping) and "value" in entry}


def bundle_folder(report: Report) -> str:
    """The bundle's folder as a reader would write it; of an absolute path only the last part, which others have too."""
    output = report["recipe"].get("output")
    if not output:
        return f"exports/{report['run']['name']}"
    path = PurePosixPath(one_line(output).replace("\\", "/"))
    return path.name or "bundle" if path.is_absolute() else str(path)


def hub_repo(part: Mapping[str, Any]) -> str | None:
    """The Hub id of a backbone or data set, or None when it came from elsewhere.

    A commit means that it was loaded from the Hub. `hub_id` names the original of a copy inside a package or folder.
    """
    named = part.get("hub_id")
    if named is None and part.get("revision") and not part.get("package"):
        named = str(part.get("name") or part.get("source") or "").split("@", 1)[0]
    return named if named and REPO_ID.fullmatch(named) else None


def dataset_name(report: Report) -> str:
    """What people call the data set."""
    return one_line(report["recipe"].get("card", {}).get("dataset_name") or report["data"]["source"])


def served_name(report: Report) -> str:
    """The form of the model that the bundle serves."""
    return "ONNX int8" if report["export"]["served"] == "int8" else "ONNX fp32"


def metadata(report: Report) -> dict[str, Any]:
    """The card's front matter, after the Hub's specification of model cards."""
    run, license_report = report["run"], report["license"]
    modality, target = kind_of(report)
    task = run.get("pipeline_tag") or modality_of(report).pipeline_tag
    data_id = hub_repo(report["data"])
    base = hub_repo(report["backbone"])
    kinds = (_hub_metric(target, metric)[0] for metric in metric_values(report["metrics"]["test"]))
    is_other = license_report["bundle_license"] == "other"
    return {
        # Pictures have no language, and neither has what is said of them.
        "language": list(report["recipe"].get("card", {}).get("language", ("en",))) if modality != "image" else None,
        "license": license_report["bundle_license"],
        "license_name": slug(license_report["bundle_license_name"]) if is_other else None,
        "license_link": license_report["bundle_license_link"] if is_other else None,
        "library_name": "timm" if is_timm(report) else "transformers",
        "pipeline_tag": task,
        "base_model": base,
        # Adapters are merged before anything is written, so what the bundle offers is whole weights, never an adapter alone.
        "base_model_relation": "finetune" if base else None,
        "datasets": [data_id] if data_id else None,
        "tags": _tags(report, task),
        "metrics": list(dict.fromkeys(kind for kind in kinds if kind != "loss")),
        "model-index": [{"name": run["name"], "results": list(_results(report, task, data_id))}],
    }


def adapter_of(report: Report) -> Mapping[str, Any] | None:
    """What was trained beside the weights, or None where the weights themselves were."""
    used = report["transfer"].get("adapter")
    return used if used and used.get("kind") != "none" else None


def _tags(report: Report, task: str) -> list[str]:
    # The Hub's own timm models carry both libraries as tags, since both load them.
    libraries = ["timm", "transformers"] if is_timm(report) else []
    int8 = ["int8"] if report["export"]["int8"] else []
    own = report["recipe"].get("card", {}).get("tags", ())
    adapter = adapter_of(report)
    trained = [str(adapter["kind"])] if adapter else []
    return list(
        dict.fromkeys(
            [task, *target_of(report).tags, *libraries, "fine-tuned", *trained, "onnx", *int8, "finetune-recipes", *own]
        )
    )


def slug(name: str) -> str:
    """A short lower-case id without spaces, as the Hub asks of `license_name`."""
    return re.sub(r"[^a-z0-9.]+", "-", one_line(name).lower()).strip("-.") or "other"


def _results(report: Report, task: str, data_id: str | None) -> Iterator[dict[str, Any]]:
    name = dataset_name(report)
    dataset = {
        "name": name,
        "type": data_id or slug(name),
        "config": report["recipe"].get("data", {}).get("config"),
        "split": "test",
        "revision": report["data"].get("revision") if data_id else None,
    }
    metrics = [
        entry
        for measured, form in (
            (report["metrics"]["test"], "PyTorch"),
            (report["metrics"]["test_served"], f"served, {served_name(report)}"),
        )
        for metric, values in metric_values(measured).items()
        if (entry := _result(report, metric, values, form)) is not None
    ]
    yield {"task": {"type": task, "name": task_name(report)}, "dataset": dataset, "metrics": metrics}


def task_name(report: Report) -> str:
    """The task in words: Image multi-label classification."""
    words = modality_of(report)
    return f"{(words.named or words.one).capitalize()} {target_of(report).named}"


def _result(report: Report, metric: str, values: Mapping[str, Any], form: str) -> dict[str, Any] | None:
    value = values["value"]
    if value is None:
        return None  # a metric that is not defined on these rows has nothing to publish
    kind, average = _hub_metric(kind_of(report)[1], metric)
    return {
        "type": kind,
        "value": value if isinstance(value, float) and not math.isfinite(value) else round(value, 6),
        "name": f"{metric_name(report, metric)} ({form})",
        "args": {"average": average} if average else None,
    }


def _hub_metric(target: str, metric: str) -> tuple[str, str | None]:
    """The Hub's metric id and averaging: `f1_macro` is `f1` with average macro."""
    if metric.startswith("evaluate:"):
        return slug(metric.removeprefix("evaluate:").rstrip("/").rsplit("/", 1)[-1]), None
    if metric == "loss":
        return _HUB_LOSS[target], None
    kind, _, average = metric.rpartition("_")
    return (kind, average) if average in ("macro", "micro") else (_HUB_METRICS.get(metric, metric), None)

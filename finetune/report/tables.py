"""Rows of the page's tables, worked out from the report: exported forms, label balance, timings, the recipe as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from finetune.report import units

FORMS = {
    "torch": "PyTorch fp32",
    "onnx": "ONNX fp32",
    "int8": "ONNX int8",
    "bitsandbytes": "bitsandbytes int8",
}


def at(value: Any, *path: str) -> Any:
    """The value under nested keys, or None where any of them is absent."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def ratio(above: Any, below: Any) -> float | None:
    """above / below, or None where either is missing or `below` is zero."""
    top, bottom = units.finite(above), units.finite(below)
    return top / bottom if top is not None and bottom else None


def plain_value(value: Any) -> Any:
    """The value of a measurement that may or may not come with an interval."""
    return value.get("value") if isinstance(value, Mapping) else value


def forms(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The exported forms side by side, each with its validation metric and its factors against PyTorch."""
    metric = str(at(report, "metrics", "primary") or "accuracy")
    columns = []
    for key, title in FORMS.items():
        measured = at(report, "export", key)
        if not isinstance(measured, Mapping):
            continue
        score = at(report, "metrics", "validation", key, metric)
        value = at(measured, "metric") if key == "bitsandbytes" else plain_value(score)
        torch = plain_value(at(report, "metrics", "validation", "torch", metric))
        both = units.finite(value) is not None and units.finite(torch) is not None
        columns.append(
            {
                "key": key,
                "title": title,
                "served": key == at(report, "export", "served"),
                "metric": value,
                "drop": units.points(value - torch) if both and key != "torch" and metric in units.SHARES else "",
                "smaller": ratio(at(report, "export", "torch", "size_bytes"), at(measured, "size_bytes")),
                "faster": {
                    n: ratio(at(report, "export", "torch", "latency_ms", n), at(measured, "latency_ms", n))
                    for n in ("1", "32")
                },
                **{str(name): measured[name] for name in measured if name != "metric"},
            }
        )
    return columns


def balance(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of each label in each split, with the label's share of all rows and of the most frequent label."""
    splits = at(report, "data", "splits") or {}
    rows: list[dict[str, Any]] = []
    for label in map(str, at(report, "data", "labels") or []):
        counts = [int(at(splits, split, "labels", label) or 0) for split in ("train", "validation", "test")]
        rows.append({"label": label, "counts": counts, "total": sum(counts)})
    total, most = sum(row["total"] for row in rows) or 1, max((row["total"] for row in rows), default=0) or 1
    return [{**row, "share": row["total"] / total, "bar": row["total"] / most} for row in rows]


def timings(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Stages of the run in order, each with its seconds and its share of the total."""
    measured = {name: units.finite(value) for name, value in (report.get("timings_s") or {}).items()}
    stages = [(name, value) for name, value in measured.items() if name != "total" and value is not None]
    total = max(measured.get("total") or 0.0, sum(value for _, value in stages)) or 1.0
    return [{"name": name, "seconds": value, "share": value / total} for name, value in stages]


def recipe_text(report: Mapping[str, Any]) -> str:
    """The resolved recipe as YAML."""
    import yaml

    plain = json.loads(json.dumps(report.get("recipe") or {}, default=str))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)

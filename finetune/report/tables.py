"""Rows of the page's tables, worked out from the report: exported forms, label balance, timings, the recipe as text."""

from __future__ import annotations

import json
import re
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


def everything(report: Mapping[str, Any]) -> dict[str, Any]:
    """All tables of the page, by the names that its templates have for them."""
    images = at(report, "audit", "images") or {}
    return {
        "forms": forms(report),
        "leaked": sum((at(report, "audit", "leaks") or {}).values()),
        "balance": balance(report),
        "values": values(report),
        "sizes": counted(images.get("sizes")),
        "modes": counted(images.get("modes")),
        "batchnorm": BATCHNORM,
        "augmentations": augmentations(report),
        "top_rates": top_rates(report),
        "calibrated": any(one.get("calibration") for one in at(report, "export", "candidates") or []),
        "timings": timings(report),
        "recipe_text": recipe_text(report),
    }


BATCHNORM = {
    "freeze": "kept as pretrained",
    "train": "trains with its layers",
    "recalibrate": "trains, statistics re-estimated at the end",
}


def counted(numbers: Any, most: int = 4) -> list[str]:
    """The most frequent of some counted things in words: `300x300` of 2,624 rows is "300 × 300 (2,624)"."""
    if not isinstance(numbers, Mapping):
        return []
    named = {name: units.finite(number) or 0.0 for name, number in numbers.items() if name != "others"}
    ordered = sorted(named.items(), key=lambda pair: -pair[1])
    shown = ordered if len(ordered) == most + 1 and "others" not in numbers else ordered[:most]
    left = sum(number for _, number in ordered[len(shown) :]) + (units.finite(numbers.get("others")) or 0.0)
    words = [f"{_SIZE.sub(' × ', str(name))} ({units.count(number)})" for name, number in shown]
    return words + ([f"others ({units.count(left)})"] if left else [])


_SIZE = re.compile(r"(?<=[0-9])\s*[x×]\s*(?=[0-9])")


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
                "drop": units.difference(metric, value, torch) if both and key != "torch" else "",
                "smaller": ratio(at(report, "export", "torch", "size_bytes"), at(measured, "size_bytes")),
                "faster": {
                    n: ratio(at(report, "export", "torch", "latency_ms", n), at(measured, "latency_ms", n))
                    for n in ("1", "32")
                },
                "sooner": ratio(at(report, "export", "torch", "ms_first_token"), at(measured, "ms_first_token")),
                "quicker": ratio(at(measured, "tokens_per_second"), at(report, "export", "torch", "tokens_per_second")),
                **{str(name): measured[name] for name in measured if name != "metric"},
            }
        )
    return columns


SPLITS = ("train", "validation", "test")


def balance(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of each label in each split, with the label's share of all rows and of the most frequent label.

    Rows may carry several labels, so the shares need not add up to one.
    """
    splits = at(report, "data", "splits") or {}
    rows: list[dict[str, Any]] = []
    for label in map(str, at(report, "data", "labels") or []):
        counts = [int(at(splits, split, "labels", label) or 0) for split in SPLITS]
        rows.append({"label": label, "counts": counts, "total": sum(counts)})
    most = max((row["total"] for row in rows), default=0) or 1
    counted = sum(int(at(splits, split, "rows") or 0) for split in SPLITS)
    total = counted or sum(row["total"] for row in rows) or 1
    return [{**row, "share": row["total"] / total, "bar": row["total"] / most} for row in rows]


def values(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of each split with the spread of its numbers, for regression."""
    found = []
    for split in SPLITS:
        data, audit = at(report, "data", "splits", split) or {}, at(report, "audit", "splits", split) or {}
        spread = data.get("values") or audit.get("values") or {}
        found.append({"split": split, "rows": data.get("rows"), **spread})
    return found


def top_rates(report: Mapping[str, Any]) -> list[float]:
    """The greatest learning rate of each phase; one number if it is the same in all."""
    of_phases = [list((at(phase, "learning_rates") or {}).values()) for phase in at(report, "transfer", "phases") or []]
    rates = [max(rates) for rates in of_phases if rates]
    return rates[:1] if len(set(rates)) == 1 else rates


def augmentations(report: Mapping[str, Any]) -> list[str]:
    """The random changes to training images that the recipe asks for, in words."""
    asked = at(report, "recipe", "train", "augment") or {}
    return [words.format(_amount(asked[key])) for key, words in _AUGMENTATIONS.items() if asked.get(key)]


_AUGMENTATIONS = {
    "horizontal_flip": "mirror images ({})",
    "vertical_flip": "upside down ({})",
    "quarter_turns": "quarter turns",
    "random_resized_crop": "random crop of {} of the area",
    "color_jitter": "colour jitter {}",
    "rand_augment": "RandAugment {}",
    "random_erasing": "random erasing ({})",
    "mixup": "mixup α {}",
    "cutmix": "CutMix α {}",
}


def _amount(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "–".join(units.percent(end, 0).removesuffix(f"{units.NARROW}%") for end in value) + f"{units.NARROW}%"
    return units.plain(value)


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

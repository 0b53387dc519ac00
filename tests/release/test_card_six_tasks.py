"""The model card of every task: true to the report, valid for the Hub, and in the words of its modality and target."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import yaml

from finetune.recipe.task_names import METRICS, MODALITY_AND_TARGET
from finetune.release._facts import METRIC_NAMES
from finetune.release._kinds import MODALITIES, TARGETS
from finetune.release.card import render_card, validate_card

SAMPLE = json.loads((Path(__file__).parent / "sample" / "report.json").read_text(encoding="utf-8"))


def value(middle):
    return {"value": middle, "low": middle - 0.02, "high": middle + 0.02}


def multi_label(report):
    score = {"precision": 0.9, "recall": 0.8, "f1": 0.85, "support": 60, "average_precision": 0.91, "threshold": 0.5}
    labels = report["data"]["labels"]
    measured = {"rows": 223} | {name: value(0.8) for name in METRICS["multi_label"]}
    measured["per_class"] = {
        label: {**score, "f1": 0.9 - 0.1 * n, "confusion": [[150, 7], [12, 48]]} for n, label in enumerate(labels)
    }
    report["metrics"] = {"primary": "f1_micro", "test": measured, "test_served": measured}
    report["metrics"]["validation"] = dict.fromkeys(("torch", "onnx", "int8"), measured)
    report["audit"] |= {"labels_per_row": 1.4, "without_label": 12}
    report["baselines"] = {"majority": {"f1_micro": 0.1}, "tfidf_logreg": {"f1_micro": 0.7}}


def regression(report):
    measured = {"rows": 223} | {name: value(0.2) for name in METRICS["regression"]}
    measured |= {
        "label_std": 0.4,
        "points": [[0.0, 0.1]],
        "residuals": {"min": -0.5, "median": 0.01, "max": 0.6, "mean": 0.0},
    }
    report["metrics"] = {"primary": "mae", "test": measured, "test_served": measured}
    report["metrics"]["validation"] = dict.fromkeys(("torch", "onnx", "int8"), measured)
    report["data"]["labels"] = []
    report["audit"] |= {"labels": {}, "imbalance": None}
    for split in report["data"]["splits"].values():
        split |= {"labels": {}, "values": {"min": 0.0, "median": 0.33, "max": 1.0, "mean": 0.3, "std": 0.4}}
    report["calibration"] = {
        "interval": 0.31, "level": 0.9, "width": 0.62, "coverage": 0.893, "coverage_low": 0.867, "coverage_high": 0.915, "rows": 222,
    }  # fmt: skip
    report["baselines"] = {"mean": {"mae": 0.36}, "tfidf_ridge": {"mae": 0.29}}


def image(report):
    report["backbone"] |= {"architecture": "tf_efficientnet_lite0", "hub_id": None, "parameters": 3_373_793}
    del report["data"]["tokens"], report["data"]["max_length"]
    report["data"] |= {"pixels": {"height": 224, "width": 256}, "source": "package:elpv-dataset/data/labels.csv"}
    report["audit"] |= {
        "warnings": ["2 of 2626 images cannot be read: a, b; their rows were left out"],
        "characters": None,
        "images": {
            "unreadable": 2,
            "unreadable_places": ["a", "b"],
            "sizes": {"300x300": 2622, "640x480": 2},
            "modes": {"L": 2624},
        },
    }
    report["recipe"]["train"]["augment"] = {
        "horizontal_flip": 0.5,
        "random_resized_crop": [0.8, 1],
        "mixup": 0.2,
        "rand_augment": None,
    }
    report["recipe"]["data"]["audit"] = {"image_distance": 4}
    report["recipe"]["transfer"]["unfreeze"] = "auto"
    report["recipe"]["card"] = {"dataset_name": "ELPV"}
    report["transfer"] |= {
        "batchnorm": "recalibrate",
        "choice": {
            "ranking": [{"group": "layer.5", "relative_gradient_norm": 0.0182}, {"group": "layer.4", "relative_gradient_norm": 0.0104}],
            "chosen": ["layer.5"],
            "reason": "unfreezing layer.5: the largest relative gradient 0.0182",
        },
    }  # fmt: skip
    report["export"]["int8"]["calibration"] = {"rows": 256, "method": "percentile"}
    report["samples"] = {"rows": [{"image": "samples/00.jpg", "gradcam": "samples/00-cam.jpg"}], "misclassified": 1}
    baselines = report["baselines"]
    report["baselines"] = {key.replace("tfidf", "pixels"): entry for key, entry in baselines.items()}


BY_TARGET = {"single_label": lambda report: None, "multi_label": multi_label, "regression": regression}
BY_MODALITY = {"text": lambda report: None, "image": image}


def report_of(task):
    report = copy.deepcopy(SAMPLE)
    modality, target = MODALITY_AND_TARGET[task]
    report["run"] |= {
        "task": task,
        "modality": modality,
        "target": target,
        "pipeline_tag": f"{modality}-classification",
    }
    BY_TARGET[target](report)
    BY_MODALITY[modality](report)
    return report


# The seventh, causal_lm, is in test_card_language.py.
TASKS = [task for task, (modality, _) in MODALITY_AND_TARGET.items() if modality != "language"]


def front(card):
    return yaml.safe_load(card.split("---\n")[1])


def section(card, title):
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", card, re.DOTALL | re.MULTILINE)[1]


def test_every_task_and_metric_has_its_words():
    assert set(MODALITIES) == {modality for modality, _ in MODALITY_AND_TARGET.values()}
    assert set(TARGETS) == set(METRICS)
    assert {name for names in METRICS.values() for name in names} - {"loss"} == set(METRIC_NAMES)


@pytest.mark.parametrize("task", TASKS)
def test_card_is_valid_for_the_hub_and_names_its_task(task):
    from huggingface_hub import ModelCard

    card = render_card(report_of(task))
    assert validate_card(card) == []
    assert "None" not in card
    metadata = ModelCard(card, ignore_metadata_errors=False).data
    modality, target = MODALITY_AND_TARGET[task]
    assert metadata.pipeline_tag == f"{modality}-classification"
    assert metadata.eval_results[0].task_name.lower().startswith(f"{modality} ")
    assert ("multi-label-classification" in metadata.tags) == (target == "multi_label")
    assert ("regression" in metadata.tags) == (target == "regression")
    assert (metadata.language is None) == (modality == "image")
    assert {entry.metric_type for entry in metadata.eval_results} <= {
        "accuracy", "f1", "precision", "recall", "loss", "exact_match", "label_accuracy", "average_precision",
        "mae", "rmse", "r_squared", "pearsonr", "spearmanr", "mse",
    }  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_an_older_report_without_modality_target_and_tag_gives_the_same_card(task):
    report = report_of(task)
    card = render_card(report)
    for key in ("modality", "target", "pipeline_tag"):
        del report["run"][key]
    assert render_card(report) == card


@pytest.mark.parametrize("task", TASKS)
def test_snippets_are_python_and_fit_the_task(task):
    modality, target = MODALITY_AND_TARGET[task]
    usage = section(render_card(report_of(task)), "How to use")
    snippets = re.findall(r"```python\n(.*?)```", usage, re.DOTALL)
    for snippet in snippets:
        compile(snippet, "snippet", "exec")
    fields = {"single_label": "prediction.score", "multi_label": "prediction.labels", "regression": "prediction.low"}
    assert fields[target] in snippets[0]
    decoded = {"single_label": "softmax(dim=-1)", "multi_label": "sigmoid()", "regression": "± 0.31"}
    assert decoded[target] in snippets[1]
    assert ("local-dir:" in usage) == (modality == "image")
    assert ("AutoTokenizer" in usage) == (modality == "text")
    assert ("one.jpg" in usage) == (modality == "image")
    command = re.search(r"```bash\n(.*?)```", usage, re.DOTALL)[1]
    assert ("--text" in command) == (modality == "text")


def test_a_card_of_timm_weights_says_so_and_one_of_transformers_weights_uses_its_image_processor():
    report = report_of("image_classification")
    timm = render_card(report)
    assert front(timm)["library_name"] == "timm"
    assert {"timm", "transformers"} <= set(front(timm)["tags"])
    assert "AutoImageProcessor" not in timm
    report["backbone"]["architecture"] = "TimmWrapperForImageClassification"
    assert front(render_card(report))["library_name"] == "timm"
    report["backbone"]["architecture"] = "ResNetForImageClassification"
    other = render_card(report)
    assert front(other)["library_name"] == "transformers"
    assert "timm" not in front(other)["tags"]
    assert "AutoImageProcessor.from_pretrained" in other
    assert "timm.create_model" not in other
    assert front(render_card(report_of("text_classification")))["library_name"] == "transformers"


def test_a_language_is_asked_of_texts_only():
    card = render_card(report_of("text_regression"))
    assert "front matter: language is missing" in validate_card(card.replace("language:\n- en\n", ""))
    assert "language" not in front(render_card(report_of("image_regression")))


def test_image_card_tells_pixels_files_audit_and_training_of_images():
    card = render_card(report_of("image_classification"))
    data, training = section(card, "Training data"), section(card, "Training procedure")
    for words in (
        "sees 224 × 256 pixels", "300x300 (2,622)", "colour modes L (2,624)", "2 unreadable files left out",
        "at most 4 of 64 bits, confirmed on pixels", "images with the same pixels", "No image is shared",
    ):  # fmt: skip
        assert words in data
    assert (
        "| Augmentation | mirror images with probability 0.5, random resized crops of 0.8 to 1 of the area, mixup with α 0.2 |"
        in training
    )
    assert "| Batch normalisation | recalibrate: as train, and at the end the statistics" in training
    assert (
        "unfreezing layer.5: the largest relative gradient 0.0182. The ranking: layer.5 0.0182, layer.4 0.0104."
        in training
    )
    assert "found by percentile on 256 training images" in section(card, "Exported forms")
    papers = section(card, "Reproduce and cite")
    for paper in ("2210.11466", "1710.09412", "1610.02391", "1706.04599"):
        assert paper in papers
    limits = section(card, "Limitations")
    assert "other images of the same object are not recognised" in limits
    assert "2 files could not be read and were left out" in limits
    for part in (data, training, limits, section(card, "Exported forms"), section(card, "Results")):
        assert not re.search(r"\b(token|text|language)s?\b", part)


def test_multi_label_card_counts_missed_and_wrongly_given_labels():
    card = render_card(report_of("text_multi_label_classification"))
    results = section(card, "Results")
    assert "| Label | Precision | Recall | F1 | Rows | Average precision | Missed | Wrongly given |" in results
    assert "| 0.800 | 0.900 | 60 | 0.910 | 12 | 7 |" in results
    assert "Confusion matrix" not in results
    assert "A row has 1.40 labels on average; 12 rows of all have none." in section(card, "Training data")
    assert "any number of these labels" in section(card, "Intended use")
    assert front(card)["metrics"] == ["f1", "precision", "recall", "exact_match", "label_accuracy", "average_precision"]


@pytest.mark.parametrize("spread", [[{"weight": 0.5, "rows": 1200}, {"weight": 1.0, "rows": 800}], None])
@pytest.mark.parametrize("task", TASKS)
def test_weights_of_rows_are_told_in_names_data_and_results(task, spread):
    report = report_of(task)
    assert "weighted" not in render_card(report).lower()
    report["audit"]["weights"] = {"column": "rater", "least": 0.5, "greatest": 1.0, "mean": 0.7, "rows": spread}
    for form in ("test", "test_served"):
        measured = report["metrics"][form]
        names = [name for name, entry in measured.items() if isinstance(entry, dict) and "value" in entry]
        measured["unweighted"] = dict.fromkeys(names, 0.4321)
    card = render_card(report)
    assert validate_card(card) == []
    results, data = section(card, "Results"), section(card, "Training data")
    kish = "Wilson for accuracy with Kish's effective number of rows, bootstrap over rows for the rest"
    assert (kish in results) == (MODALITY_AND_TARGET[task][1] == "single_label")
    assert "counts by its weight in the column `rater`. Where every row counts alike:" in results
    assert "| 0.432 | 0.432 |" in results
    told = "1,200 by 0.500 and 800 by 1.000" if spread else "from 0.500 to 1.000, 0.700 on average"
    assert f"Rows count by the column `rater`, in training and in measuring: {told}." in data
    published = [metric["name"] for metric in front(card)["model-index"][0]["results"][0]["metrics"]]
    assert published
    assert all(name.startswith("Row-weighted ") for name in published)


def test_regression_card_has_errors_and_an_interval_instead_of_labels_and_a_temperature():
    card = render_card(report_of("image_regression"))
    results = section(card, "Results")
    assert "| Least | Median | Greatest | Mean |" in results
    assert "Mean absolute error is 0.090 below the baseline on grey pixels." in results
    assert "± 0.310, which held 90.0 % of the 222 validation rows" in section(card, "Calibration")
    assert "89.3 % (95 % confidence: 86.7 % to 91.5 %)" in section(card, "Calibration")
    assert "| Train | 1,780 | 0.000 | 0.330 | 1.000 | 0.300 | 0.400 |" in section(card, "Training data")
    assert "true values from 0.000 to 1.000" in section(card, "Limitations")
    assert "Label smoothing" not in card
    assert "Guo et al." not in card
    assert front(card)["metrics"] == ["mae", "rmse", "r_squared", "pearsonr", "spearmanr", "mse"]


def test_a_regression_that_its_baseline_beats_is_said_so_although_a_smaller_error_is_better():
    report = report_of("text_regression")
    report["baselines"]["tfidf_ridge"]["mae"] = 0.15
    assert "Mean absolute error is not below the TF-IDF baseline (-0.050)" in section(render_card(report), "Results")
    report["baselines"]["tfidf_ridge"]["mae"] = 0.21
    assert "the baseline lies inside the interval" in section(render_card(report), "Results")


@pytest.mark.parametrize("task", TASKS)
def test_everything_optional_may_be_absent_in_every_task(task):
    report = report_of(task)
    report |= {"calibration": None, "baselines": None, "samples": None}
    report["export"] |= {"int8": None, "served": "onnx"}
    report["transfer"] |= {"choice": None}
    report["audit"].pop("images", None)
    for measured in (report["metrics"]["test"], report["metrics"]["test_served"]):
        for key in ("per_class", "residuals", "confusion"):
            measured.pop(key, None)
    card = render_card(report)
    assert validate_card(card) == []
    assert "None" not in card


def test_an_interval_that_could_not_be_had_is_admitted():
    report = report_of("text_regression")
    report["calibration"] |= {
        "interval": None,
        "coverage": None,
        "coverage_low": None,
        "coverage_high": None,
        "rows": 8,
    }
    card = render_card(report)
    assert validate_card(card) == []
    assert "8 validation rows are too few for an interval that holds 90.0 % of the answers" in card

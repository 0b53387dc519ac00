"""The whole story for texts with several labels or a number; pictures have theirs in test_pipeline_images.py."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from tiny_project import make_rows, write_recipe

from finetune import MultiLabelPrediction, Predictor, RegressionPrediction, Report, load_recipe, run
from finetune.cli import main
from finetune.release.card import validate_card

QUICK = ["export.int8.mode=off", "transfer.unfreeze=lp_ft", "transfer.epochs=5"]


def write_table(path: Path, header: tuple[str, ...], rows: list[tuple[object, ...]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def run_task(folder: Path, backbone: Path, data: Path, task: str, *settings: str) -> Report:
    overrides = [f"task={task}", f"output={folder / 'bundle'}", *QUICK, *settings]
    return run(load_recipe(write_recipe(folder, backbone, data), overrides))


def test_a_number_is_learned_from_texts_in_its_own_unit(tmp_path: Path, tiny_backbone: Path) -> None:
    worth = {"harbour": 900.0, "kitchen": 1000.0, "orchard": 1250.0}
    rows: list[tuple[object, ...]] = [(text, worth[label] + i % 7) for i, (text, label) in enumerate(make_rows(240))]
    data = write_table(tmp_path / "rows.csv", ("text", "label"), rows)
    report = run_task(tmp_path, tiny_backbone, data, "text_regression")
    assert report.data["metrics"]["test"]["mae"]["value"] < report.data["baselines"]["mean"]["mae"]
    assert set(report.data["baselines"]) == {"mean", "tfidf_ridge"}
    answer = Predictor(report.bundle).predict("a ship near the quay with an anchor")[0]
    assert isinstance(answer, RegressionPrediction)
    assert 800 < answer.value < 1400
    assert answer.low < answer.value < answer.high
    assert validate_card((report.bundle / "README.md").read_text("utf-8")) == []
    assert main(["check", str(report.bundle)]) == 0


def test_several_labels_are_learned_from_texts(tmp_path: Path, tiny_backbone: Path) -> None:
    also = {"harbour": "harbour, outdoors", "kitchen": "kitchen", "orchard": "orchard, outdoors"}
    rows: list[tuple[object, ...]] = [(text, also[label]) for text, label in make_rows(240)]
    data = write_table(tmp_path / "rows.csv", ("text", "label"), rows)
    report = run_task(tmp_path, tiny_backbone, data, "text_multi_label_classification")
    assert report.data["data"]["labels"] == ["harbour", "kitchen", "orchard", "outdoors"]
    assert report.data["metrics"]["test"]["f1_micro"]["value"] > 0.8
    assert report.data["calibration"]["temperature"] > 0
    answer = Predictor(report.bundle).predict("the oven with flour and butter and onion near a pan")[0]
    assert isinstance(answer, MultiLabelPrediction)
    assert answer.labels == ("kitchen",)
    assert validate_card((report.bundle / "README.md").read_text("utf-8")) == []
    assert main(["check", str(report.bundle)]) == 0


def test_a_number_that_is_none_is_named(
    tmp_path: Path, tiny_backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[tuple[object, ...]] = [(text, "nan" if i == 7 else i) for i, (text, _) in enumerate(make_rows(60))]
    data = write_table(tmp_path / "rows.csv", ("text", "label"), rows)
    recipe = write_recipe(tmp_path, tiny_backbone, data)
    assert main(["validate", str(recipe), "task=text_regression"]) == 2
    assert "rows.csv:9" in capsys.readouterr().err

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
    folder.mkdir(exist_ok=True)
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


def test_labels_that_nobody_is_sure_of_count_less_in_training_and_in_every_number(
    tmp_path: Path, tiny_backbone: Path
) -> None:
    """Three rows of five carry a wrong label, each with a twentieth of a row's weight: unweighted, they would win."""
    wrong = {"harbour": "kitchen", "kitchen": "orchard", "orchard": "harbour"}
    rows: list[tuple[object, ...]] = [
        (text, wrong[label], "guess") if i % 5 < 3 else (text, label, "sure")
        for i, (text, label) in enumerate(make_rows(300))
    ]
    data = write_table(tmp_path / "rows.csv", ("text", "label", "rater"), rows)
    report = run_task(
        tmp_path, tiny_backbone, data, "text_classification",
        "data.weight_column=rater", "data.weight_map={guess: 0.05, sure: 1}",
    )  # fmt: skip
    for form in ("test", "test_served"):
        measured = report.data["metrics"][form]
        assert measured["accuracy"]["value"] > 0.8
        assert measured["accuracy"]["low"] < measured["accuracy"]["value"] < measured["accuracy"]["high"]
        assert measured["unweighted"]["accuracy"] < 0.6
        right = sum(measured["confusion"][label][label] for label in range(3))
        assert measured["unweighted"]["accuracy"] == pytest.approx(right / measured["rows"])
    best = max(record["validation_metric"] for record in report.data["history"])
    assert report.data["metrics"]["validation"]["torch"]["accuracy"]["value"] == pytest.approx(best)
    majority = report.data["baselines"]["majority"]["accuracy"]
    assert majority < report.data["metrics"]["test"]["accuracy"]["value"]
    assert report.data["audit"]["weights"]["rows"] == [{"weight": 0.05, "rows": 180}, {"weight": 1.0, "rows": 120}]
    answer = Predictor(report.bundle).predict("a ship near the quay with an anchor")[0]
    assert answer.label == "harbour"
    card = (report.bundle / "README.md").read_text("utf-8")
    assert validate_card(card) == []
    assert "| Row-weighted accuracy |" in card
    assert "180 by 0.050 and 120 by 1.000" in card
    assert "row-weighted accuracy" in (report.bundle / "report.html").read_text("utf-8")
    assert main(["check", str(report.bundle)]) == 0


@pytest.mark.parametrize("task", ["text_multi_label_classification", "text_regression"])
def test_weights_that_are_all_alike_change_nothing(tmp_path: Path, tiny_backbone: Path, task: str) -> None:
    """A power of two scales without rounding, so the trained weights are the same bits."""
    labels = {"harbour": 1, "kitchen": 2, "orchard": 4}
    rows: list[tuple[object, ...]] = [(text, labels[label], 2) for text, label in make_rows(90)]
    data = write_table(tmp_path / "rows.csv", ("text", "label", "counts"), rows)
    runs = [
        run_task(tmp_path / name, tiny_backbone, data, task, "transfer.epochs=1", *settings)
        for name, settings in (("plain", ()), ("weighted", ("data.weight_column=counts",)))
    ]
    one, other = ((run.bundle / "model" / "model.safetensors").read_bytes() for run in runs)
    assert one == other
    plain, weighted = ({**run.data["metrics"]["test"]} for run in runs)
    assert weighted.pop("effective_rows") == weighted["rows"]
    values = {name: entry["value"] for name, entry in plain.items() if isinstance(entry, dict) and "value" in entry}
    assert {name: weighted[name]["value"] for name in values} == pytest.approx(values)
    assert weighted.pop("unweighted") == pytest.approx(values)
    for name, scores in runs[0].data["baselines"].items():
        again = runs[1].data["baselines"][name]
        assert {key: again[key] for key in values if key in scores} == pytest.approx(
            {key: scores[key] for key in values if key in scores}
        )
    for fitted in {"temperature", "interval"} & set(runs[0].data["calibration"]):
        assert runs[0].data["calibration"][fitted] == pytest.approx(runs[1].data["calibration"][fitted])


def test_a_metric_that_cannot_weigh_rows_is_refused_before_anything_is_read(
    tmp_path: Path, tiny_backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[tuple[object, ...]] = [(text, label, 1) for text, label in make_rows(60)]
    data = write_table(tmp_path / "rows.csv", ("text", "label", "sure"), rows)
    recipe = write_recipe(tmp_path, tiny_backbone, data)
    asked = ["data.weight_column=sure", "evaluation.metrics=[accuracy, 'evaluate:mcc']"]
    assert main(["validate", str(recipe), *asked]) == 2
    assert "'evaluate:mcc' cannot count rows by data.weight_column" in capsys.readouterr().err


def test_a_number_that_is_none_is_named(
    tmp_path: Path, tiny_backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[tuple[object, ...]] = [(text, "nan" if i == 7 else i) for i, (text, _) in enumerate(make_rows(60))]
    data = write_table(tmp_path / "rows.csv", ("text", "label"), rows)
    recipe = write_recipe(tmp_path, tiny_backbone, data)
    assert main(["validate", str(recipe), "task=text_regression"]) == 2
    assert "rows.csv:9" in capsys.readouterr().err

"""`evaluate:` metrics. The scripts are written here; nothing is fetched."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from finetune.errors import RecipeError
from finetune.evaluation import EVALUATIONS
from finetune.evaluation.single_label import check_metrics, evaluate

SCRIPT = """
import datasets
import evaluate


class {name}(evaluate.Metric):
    def _info(self):
        columns = datasets.Features({{"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=columns)

    def _compute(self, predictions, references):
        {body}
"""


@pytest.fixture(scope="module")
def evaluate_library(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The library, with its caches (fixed when it is first imported) out of the home folder where that is still possible."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        pytest.importorskip("evaluate")


@pytest.fixture
def script(tmp_path: Path, evaluate_library: None):
    def write(body: str, name: str = "share_right") -> str:
        path = tmp_path / f"{name}.py"
        path.write_text(SCRIPT.format(name=name.title().replace("_", ""), body=body))
        return f"evaluate:{path}"

    return write


LABELS = np.array([0, 1, 2, 2])
LOGITS = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]


def test_a_local_script_is_computed_offline_and_has_no_interval(script) -> None:
    metric = script("return {'share_right': sum(p == r for p, r in zip(predictions, references)) / len(references)}")
    check_metrics(["accuracy", metric], classes=3)
    result = evaluate(LOGITS, LABELS, list("abc"), ["accuracy", metric])
    assert result[metric] == {"value": 0.75, "low": None, "high": None}
    assert result["accuracy"]["value"] == 0.75


def test_a_folder_with_a_script_of_its_name_is_found(script, tmp_path: Path) -> None:
    script("return {'x': 0.5}", "share_right")
    folder = tmp_path / "share_right"
    folder.mkdir()
    (tmp_path / "share_right.py").rename(folder / "share_right.py")
    metric = f"evaluate:{folder}"
    assert evaluate(LOGITS, LABELS, list("abc"), [metric])[metric]["value"] == 0.5


def test_a_value_that_is_not_finite_becomes_null(script) -> None:
    metric = script("return {'share_right': float('nan')}")
    result = evaluate(LOGITS, LABELS, list("abc"), [metric])
    assert result[metric]["value"] is None
    json.dumps(result, allow_nan=False)


def test_of_several_numbers_the_one_with_the_metric_s_name_is_taken(script) -> None:
    metric = script("return {'other': 0.1, 'share_right': 0.2}")
    assert evaluate(LOGITS, LABELS, list("abc"), [metric])[metric]["value"] == 0.2


def test_several_numbers_without_the_metric_s_name_are_refused_before_training(script) -> None:
    with pytest.raises(RecipeError, match="must return one number, or one called 'share_right', but it returned a, b"):
        check_metrics([script("return {'a': 0.1, 'b': 0.2}")])


def test_a_script_that_returns_a_bare_number_is_refused(script) -> None:
    with pytest.raises(RecipeError, match="must return a mapping of names to numbers, not float"):
        check_metrics([script("return 0.5")])


def test_a_metric_that_fails_on_this_many_labels_is_refused_before_training(script) -> None:
    metric = script("assert max(references) < 2, 'two labels only'; return {'share_right': 1.0}")
    check_metrics([metric], classes=2)
    with pytest.raises(RecipeError, match="cannot score predicted labels as it stands: two labels only"):
        check_metrics([metric], classes=3)


def test_a_script_that_cannot_be_imported_is_refused_in_one_line(evaluate_library: None, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise OSError('no\\nluck')\n")
    with pytest.raises(RecipeError, match=r"could not be loaded: no luck$"):
        check_metrics([f"evaluate:{tmp_path / 'broken.py'}"])


def test_a_missing_script_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"there is no file .*absent\.py; correct the path"):
        check_metrics([f"evaluate:{tmp_path / 'absent.py'}"])


def test_a_folder_that_only_shares_a_hub_metric_s_name_is_not_taken_for_it(
    evaluate_library: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "accuracy").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RecipeError, match="is a script on the Hub"):
        check_metrics(["evaluate:accuracy"])


def test_a_hub_metric_offline_says_why_and_what_to_do(evaluate_library: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import evaluate

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = evaluate.config.HF_EVALUATE_OFFLINE
    with pytest.raises(
        RecipeError, match=r"offline mode is on and no copy is cached; use the built-in metric 'accuracy'"
    ) as caught:
        check_metrics(["evaluate:accuracy"])
    assert "\n" not in str(caught.value)
    assert before == evaluate.config.HF_EVALUATE_OFFLINE


def test_offline_mode_makes_no_request(evaluate_library: None, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = pytest.importorskip("requests")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a request was made")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(requests, "request", refuse)
    monkeypatch.setattr(requests.Session, "request", refuse)
    with pytest.raises(RecipeError, match="offline mode is on"):
        check_metrics(["evaluate:somebody/their_metric"])


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "evaluate", None)
    with pytest.raises(
        RecipeError, match=r"needs the evaluate library; install it with: pip install 'finetune-recipes\[evaluate\]'"
    ):
        check_metrics(["evaluate:accuracy"])


@pytest.mark.parametrize("target", EVALUATIONS)
def test_a_metric_of_the_library_is_refused_for_weighted_rows_before_anything_is_loaded(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a metric was loaded")

    monkeypatch.setattr("finetune.evaluation.external.load", refuse)
    entry = EVALUATIONS[target]
    entry.check_metrics(entry.metrics, weighted=True)
    words = (
        r"^evaluation\.metrics: 'evaluate:x' cannot count rows by data\.weight_column; "
        r"name built-in metrics, or remove data\.weight_column$"
    )
    with pytest.raises(RecipeError, match=words):
        entry.check_metrics([entry.metrics[0], "evaluate:x"], weighted=True)
    if target == "next_token":
        return
    logits, labels, names = (
        (np.eye(2), np.eye(2), ["a", "b"])
        if target == "multi_label"
        else (
            (np.eye(2), np.array([0, 1]), ["a", "b"]) if target == "single_label" else (np.ones((2, 1)), np.ones(2), [])
        )
    )
    for call in (
        lambda: entry.measure(["evaluate:x"], logits, labels, np.ones(2)),
        lambda: entry.evaluate(logits, labels, names, ["evaluate:x"], 0, np.ones(2)),
    ):
        with pytest.raises(RecipeError, match=words):
            call()


MATRIX = np.array([[1, 0], [1, 1], [0, 0]], dtype=np.float32)
LISTS = """
import datasets
import evaluate


class {name}(evaluate.Metric):
    def _info(self):
        assert self.config_name == "multilabel", "a metric over lists"
        column = datasets.Sequence(datasets.Value("int32"))
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="",
            features=datasets.Features({{"predictions": column, "references": column}}),
        )

    def _compute(self, predictions, references):
        {body}
"""


def test_rows_of_several_labels_are_given_as_lists_of_zero_and_one(script, tmp_path: Path) -> None:
    path = tmp_path / "labels_right.py"
    body = "return {'labels_right': sum(list(p) == list(r) for p, r in zip(predictions, references)) / len(references)}"
    path.write_text(LISTS.format(name="LabelsRight", body=body))
    several, metric = EVALUATIONS["multi_label"], f"evaluate:{path}"
    several.check_metrics([metric, "f1_micro"], classes=2)
    logits = np.array([[1.0, -1], [2, -0.5], [-1, -1]])
    assert several.measure([metric], logits, MATRIX) == {metric: pytest.approx(2 / 3)}
    assert several.evaluate(logits, MATRIX, ["a", "b"], [metric])[metric] == {
        "value": pytest.approx(2 / 3),
        "low": None,
        "high": None,
    }


def test_a_metric_of_single_labels_is_refused_for_several_and_for_numbers(script) -> None:
    metric = script("return {'share_right': 1.0}")
    with pytest.raises(RecipeError, match="cannot score rows of 0 and 1, one for each label as it stands: "):
        EVALUATIONS["multi_label"].check_metrics([metric], classes=3)
    with pytest.raises(RecipeError, match="cannot score numbers: it takes int64; declare its columns as float32"):
        EVALUATIONS["regression"].check_metrics([metric])


def test_numbers_are_given_as_they_are(script, tmp_path: Path) -> None:
    path = tmp_path / "share_right.py"
    script("return {'share_right': max(abs(p - r) for p, r in zip(predictions, references))}")
    path.write_text(path.read_text().replace("int64", "float64"))
    numbers, metric = EVALUATIONS["regression"], f"evaluate:{path}"
    numbers.check_metrics([metric, "mae"])
    answers, labels = np.array([[0.5], [2.0]], dtype=np.float32), np.array([0.25, 4.0], dtype=np.float32)
    assert numbers.measure([metric], answers, labels) == {metric: 2.0}
    assert numbers.evaluate(answers, labels, (), [metric])[metric]["low"] is None


def test_a_hub_metric_offline_offers_the_built_in_metrics_of_the_target(
    evaluate_library: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RecipeError, match=r"use a built-in metric \(mae, rmse, r2, pearson, spearman, loss\)"):
        EVALUATIONS["regression"].check_metrics(["evaluate:mse"])

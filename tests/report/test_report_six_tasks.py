"""The page of every task: its own words, charts and tables, and the hardest rows with their pictures inside the file."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest
from html_page import LOADING, Page
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from six_tasks import DEFECTS, TASKS, picture_file, report_of

from finetune.recipe.task_names import METRICS, MODALITY_AND_TARGET
from finetune.report import render_html, samples, units
from finetune.report.kinds import MODALITIES, TARGETS, kind_of
from finetune.report.quality import BY_TARGET

SECTIONS = ["asked", "data", "training", "quality", "samples", "calibration", "export", "licence", "reproduce"]


@pytest.fixture(scope="module")
def pages() -> dict[str, Page]:
    return {task: Page(render_html(report_of(task), picture_file)) for task in TASKS}


def part(page: Page, start: str, end: str) -> str:
    """The page's text from one heading to another, contents and head left out."""
    text = page.text[page.text.index("What was asked", page.text.index("Reproduce")) :]
    return text[text.index(start) : text.index(end)]


def test_every_task_target_and_metric_has_its_words() -> None:
    assert {*TASKS, "causal_lm"} == set(MODALITY_AND_TARGET)
    assert set(TARGETS) == set(BY_TARGET) == set(METRICS)
    assert set(MODALITIES) == {modality for modality, _ in MODALITY_AND_TARGET.values()}
    assert {name for names in METRICS.values() for name in names} <= set(units.METRIC_TITLES)


def test_a_report_without_modality_or_with_an_unknown_one_is_read_by_its_task() -> None:
    assert kind_of({"run": {"task": "image_regression"}}) == ("image", "regression")
    assert kind_of({"run": {"task": "image_regression", "modality": "sound"}}) == ("image", "regression")
    assert kind_of({}) == ("text", "single_label")


@pytest.mark.parametrize("task", TASKS)
def test_page_is_well_formed_whole_and_loads_nothing(task: str, pages: dict[str, Page]) -> None:
    page = pages[task]
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    assert len(page.ids) == len(set(page.ids))
    for tag, attrs in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "form", "base", "use", "image"}
        assert LOADING & attrs.keys() <= ({"src"} if tag == "img" else set())
        assert not any(name.startswith("on") for name in attrs)
        if tag == "img":
            assert (attrs["src"] or "").startswith("data:image/jpeg;base64,")
            assert attrs["alt"]
        if tag == "a" and (attrs["href"] or "").startswith("#"):
            assert (attrs["href"] or "")[1:] in page.ids
    assert not re.search(r"\b(nan|inf|Undefined)\b", page.text)


@pytest.mark.parametrize("task", TASKS)
def test_page_speaks_of_its_own_kind_of_input(task: str, pages: dict[str, Page]) -> None:
    text = part(pages[task], "Data 2,22", "Training")
    exported = part(pages[task], "Export int8", "Gates")
    if TASKS[task][0] == "image":
        for words in ("224 × 224 pixels", "300 × 300 (2,622)", "L (2,610)", "2 unreadable files", "4 of 64 bits"):
            assert words in text
        assert "Tokens" not in text
        assert "Characters" not in text
        for words in ("Time for 32 images, ms", "Images per second", "percentile", "256 training images"):
            assert words in exported
        assert "text" not in exported
    else:
        assert "Tokens 452 median" in text
        assert "pixels" not in text
        assert "Time for 32 texts, ms" in exported
        assert "image" not in exported


@pytest.mark.parametrize("task", TASKS)
def test_page_shows_what_its_target_is_judged_by(task: str, pages: dict[str, Page]) -> None:
    target = TASKS[task][1]
    quality = part(pages[task], "Quality on the test split", "Hardest test rows")
    calibration = part(pages[task], "Calibration", "Export")
    labels = " ".join(attrs["aria-label"] or "" for attrs in pages[task].charts())
    shown = {
        "single_label": ("Confusion matrix over 2 labels" in labels, "temperature" in calibration),
        "multi_label": ("Missed Wrongly given crack" in quality, "temperature" in calibration),
        "regression": ("Answers against true values of 500 test rows" in labels, "89.3" in calibration),
    }
    assert shown[target] == (True, True)
    for other, title in (("single_label", "Confusion"), ("regression", "Answers and errors")):
        assert (title in quality) == (other == target)
    loss = {
        "single_label": "cross-entropy loss",
        "multi_label": "Binary cross-entropy",
        "regression": "Mean squared error",
    }
    assert loss[target].lower() in quality.lower()


def weighted(task: str, **spread: Any) -> dict[str, Any]:
    """A report of rows that count unequally, three fifths of them by a third."""
    report = report_of(task)
    report["audit"]["weights"] = {
        "column": "rater", "least": 1 / 3, "greatest": 1.0, "mean": 0.6, "splits": {"train": 900.0, "validation": 90.0, "test": 120.0},
        "rows": [{"weight": 1 / 3, "rows": 1200}, {"weight": 1.0, "rows": 800}], **spread,
    }  # fmt: skip
    for form in ("test", "test_served"):
        measured = report["metrics"][form]
        names = [name for name, entry in measured.items() if isinstance(entry, dict) and "value" in entry]
        measured |= {"effective_rows": 20.0, "unweighted": dict.fromkeys(names, 0.4321)}
    return report


@pytest.mark.parametrize("task", ["image_classification", "text_multi_label_classification", "image_regression"])
def test_weights_of_rows_are_told_and_each_metric_stands_beside_its_unweighted_value(task: str) -> None:
    page, plain = (Page(render_html(report, picture_file)) for report in (weighted(task), report_of(task)))
    data, quality = part(page, "Data", "Training"), part(page, "Quality on the test split", "Hardest test rows")
    assert "1,200 rows by 0.333 and 800 rows by 1" in data
    assert "PyTorch, unweighted Served file, unweighted" in quality
    assert "Each row counts by its weight in the column rater" in quality
    assert ("43.2" if task != "image_regression" else "0.432") in quality
    assert f"Test row-weighted {TARGET_METRICS[task]}" in page.text
    assert "weighted" not in plain.text
    for one in (page, plain):
        assert ("(Wilson)" in one.text) == (task == "image_classification")


TARGET_METRICS = {
    "image_classification": "accuracy",
    "text_multi_label_classification": "micro F1",
    "image_regression": "mean absolute error",
}


def test_many_different_weights_are_told_by_their_ends_and_mean() -> None:
    page = Page(render_html(weighted("text_classification", rows=None), picture_file))
    assert "from 0.333 to 1.00, 0.600 on average" in part(page, "Data", "Training")


def test_regression_says_that_lower_is_better_and_has_an_interval_instead_of_a_temperature(
    pages: dict[str, Page],
) -> None:
    page = pages["image_regression"]
    assert "Validation mean absolute error Lower is better" in page.text
    assert "Test mean absolute error 0.131 95\u202f% interval 0.111–0.151" in page.text
    calibration = part(page, "Calibration", "Export")
    assert "the answer ± 0.310" in calibration
    assert "True values inside the interval 90.0\u202f% 89.3\u202f% 86.7–91.5\u202f%" in calibration
    assert "temperature" not in calibration
    assert "least 5\u202f% 25\u202f% median" in page.text
    assert "+0.0021" in page.text  # how much worse int8 is, in the metric's own unit


def test_labels_of_the_data_are_described_as_the_target_has_them(pages: dict[str, Page]) -> None:
    several = part(pages["image_multi_label_classification"], "Data 2,22", "Training")
    assert "A row has 0.610 labels on average, and 1,210 rows have none." in several
    assert "a.png, b.png : crack, dark area or none" in several
    numbers = part(pages["image_regression"], "Data 2,22", "Training")
    assert "train 1,780 0 0.333 1.00 0.310 0.390" in numbers
    assert "a.png, b.png : 0.0 or 0.3333" in numbers
    assert "most frequent label" not in numbers


def test_too_few_validation_rows_for_an_interval_are_admitted() -> None:
    report = report_of("text_regression")
    report["calibration"] |= {
        "interval": None,
        "coverage": None,
        "coverage_low": None,
        "coverage_high": None,
        "rows": 8,
    }
    assert "8 validation rows are too few for an interval" in Page(render_html(report)).text


def test_choice_of_auto_is_told_with_its_ranking_and_the_batchnorm_policy_with_it(pages: dict[str, Page]) -> None:
    page = pages["image_classification"]
    assert "Which layers to train Unfreezing blocks.1, blocks.5 and blocks.4: the largest" in page.text
    chart = next(a["aria-label"] or "" for a in page.charts() if "gradient norm of 8" in (a["aria-label"] or ""))
    assert "largest first: blocks.1 0.0182, blocks.5 0.0166" in chart
    assert "Batch norm trains, statistics re-estimated at the end" in page.text
    assert (
        "mirror images (0.5), upside down (0.5), quarter turns, random crop of 80–100\u202f% of the area, mixup α 0.2"
        in page.text
    )
    assert "Which layers to train" not in pages["text_classification"].text


def test_pictures_and_overlays_lie_inside_the_file() -> None:
    html = render_html(report_of("image_classification"), picture_file)
    assert html.count("<img ") == 14 + 4
    for name in ("samples/00.jpg", "samples/03-cam.jpg"):
        assert base64.b64encode(picture_file(name)).decode() in html
    assert "<img" not in render_html(report_of("text_classification"), picture_file)
    assert "<img" not in render_html(report_of("image_classification"))


def test_cells_of_the_confusion_matrix_lead_to_the_hardest_row_of_their_kind() -> None:
    report = report_of("image_classification")
    page = Page(render_html(report, picture_file))
    cells = [attrs for tag, attrs in page.tags if tag == "a" and "aria-label" in attrs]
    rows = report["samples"]["rows"]
    assert cells
    for attrs in cells:
        truth, answer = re.match(r"(\w+) taken for (\w+):", attrs["aria-label"] or "").groups()  # type: ignore[union-attr]
        first = next(n for n, row in enumerate(rows) if (row["truth"], row["answer"]) == (truth, answer))
        assert attrs["href"] == f"#sample-{first}"
    shown = {(row["truth"], row["answer"]) for row in rows}
    assert len(cells) == len(shown)


def test_rows_of_one_kind_form_a_ring() -> None:
    made = samples.cards(report_of("image_classification"), None)
    kind = [card for card in made if (card["truth"], card["answer"]) == (made[0]["truth"], made[0]["answer"])]
    assert [card["next"] for card in kind] == [card["id"] for card in [*kind[1:], kind[0]]]
    assert all(card["alike"] == len(kind) for card in kind)


def test_hardest_rows_say_truth_answer_probability_and_place(pages: dict[str, Page]) -> None:
    text = part(pages["image_multi_label_classification"], "Hardest test rows", "Calibration")
    assert "67 test rows were misclassified by the PyTorch model; here are the 14 hardest" in text
    assert f"true labels {DEFECTS[0]}, {DEFECTS[1]} → answered none" in text
    assert "2.0\u202f% for crack" in text
    regression = part(pages["text_regression"], "Hardest test rows", "Calibration")
    assert "true 0.3333 → answered 1 off by 0.667" in regression
    assert "misclassified" not in regression
    assert "The central bank left its rate" in regression


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../samples/00.jpg", "samples/../manifest.json", "report.json", "samples/00.png", 7, None]
)
def test_only_pictures_of_the_samples_folder_are_read(name: Any) -> None:
    asked: list[str] = []

    def read(wanted: str) -> bytes:
        asked.append(wanted)
        return b"\xff\xd8"

    report = report_of("image_classification")
    report["samples"]["rows"] = report["samples"]["rows"][:1]
    report["samples"]["rows"][0] |= {"image": name, "gradcam": "samples/00-cam.jpg"}
    render_html(report, read)
    assert asked == ["samples/00-cam.jpg"]


@pytest.mark.parametrize("task", TASKS)
def test_everything_that_may_be_missing_may_be_missing(task: str) -> None:
    report = report_of(task)
    report |= {"calibration": None, "baselines": None, "samples": {"rows": [], "misclassified": 0}}
    report["transfer"] |= {"choice": None, "batchnorm": None}
    report["export"] |= {"int8": None, "candidates": [], "served": "onnx"}
    report["audit"].pop("images", None)
    for measured in (report["metrics"]["test"], report["metrics"]["test_served"]):
        for key in ("points", "residuals", "per_class", "confusion", "histogram"):
            measured.pop(key, None)
    page = Page(render_html(report, picture_file))
    assert [name for name in page.ids if name in SECTIONS] == [name for name in SECTIONS if name != "samples"]
    hollow = {key: {} for key in report} | {"history": [], "run": report["run"]}
    assert "samples" not in Page(render_html(hollow)).ids


@given(words=st.text(min_size=1, max_size=60).filter(lambda t: "\r" not in t))
@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.too_slow])
def test_no_text_of_a_sample_breaks_the_page(words: str) -> None:
    report = report_of("image_classification")
    report["samples"]["rows"] = report["samples"]["rows"][:2]
    for row in report["samples"]["rows"]:
        row |= {"truth": words, "answer": words, "place": words, "text": words, "about": words, "gradcam_of": words}
    page = Page(render_html(report, picture_file))
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 4

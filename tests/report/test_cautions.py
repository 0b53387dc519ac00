"""What the page and the terminal say before a score is trusted."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from html_page import Page
from report_samples import sample_report

from finetune.report.cautions import cautions
from finetune.report.html import render_html


@pytest.fixture
def report() -> dict[str, Any]:
    return copy.deepcopy(sample_report())


def test_a_sound_run_leaves_nothing_in_doubt(report: dict[str, Any]) -> None:
    assert cautions(report) == []
    assert "Before the score is trusted" not in render_html(report)


def test_a_simple_model_that_does_better_is_named(report: dict[str, Any]) -> None:
    report["metrics"]["test_served"]["accuracy"]["value"] = 0.7
    report["baselines"] = {"majority": {"accuracy": 0.3}, "tfidf_logreg": {"accuracy": {"value": 0.9}}}
    (said,) = cautions(report)
    assert said == (
        "a simple model does better on the test split: TF-IDF + logistic regression, accuracy 90.0\u202f% against 70.0\u202f%"
    )
    report["baselines"]["tfidf_logreg"]["accuracy"]["value"] = 0.7
    assert cautions(report) == []  # as good is not better; the page compares them anyway


def test_of_an_error_less_is_better(report: dict[str, Any]) -> None:
    report["metrics"]["primary"] = "loss"
    report["metrics"]["test_served"]["loss"] = {"value": 0.5, "low": 0.4, "high": 0.6}
    report["baselines"] = {"majority": {"loss": 0.7}}
    assert cautions(report) == []
    report["baselines"]["tfidf_logreg"] = {"loss": 0.3}
    assert "TF-IDF + logistic regression, cross-entropy loss 0.300 against 0.500" in cautions(report)[0]


def test_a_label_that_is_never_answered_is_named(report: dict[str, Any]) -> None:
    labels = report["data"]["labels"]
    confusion = [[0] * len(labels) for _ in labels]
    confusion[0][0], confusion[1][0] = 5, 3
    report["metrics"]["test_served"]["confusion"] = confusion
    assert f"the model never answers “{labels[1]}” (3 test rows)" in cautions(report)


def test_a_small_test_split_is_said_to_be_rough(report: dict[str, Any]) -> None:
    report["metrics"]["test_served"]["rows"] = 6
    report["metrics"]["test_served"]["accuracy"] |= {"low": 0.436, "high": 0.97}
    (said,) = cautions(report)
    assert said.startswith("the test split has only 6 rows, so its scores are rough")
    assert "43.6–97.0" in said
    page = Page(render_html(report))
    assert "Before the score is trusted" in page.text
    assert "the test split has only 6 rows".replace("the", "The", 1) in page.text


def test_last_phases_that_brought_nothing_are_named(report: dict[str, Any]) -> None:
    *_, before, last = report["transfer"]["phases"]
    last["best_epoch"] = None
    number = len(report["transfer"]["phases"]) - 1
    assert cautions(report) == [
        f"no epoch of “{last['name']}” was better, so the weights are those of phase {number}, “{before['name']}”"
    ]
    assert "of an earlier phase" in Page(render_html(report)).text

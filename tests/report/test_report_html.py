"""The page as a whole: well formed, self-contained, escaped, complete, and the same for the same report."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from html_page import LOADING, Page
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_samples import BBC, sample_report

from finetune.report import render_html

SECTIONS = ("asked", "data", "training", "quality", "calibration", "export", "licence", "reproduce")


def one_epoch() -> dict[str, Any]:
    return sample_report(phases=1, head_epochs=1)


def no_int8() -> dict[str, Any]:
    report = sample_report()
    report["export"] |= {"int8": None, "bitsandbytes": None, "candidates": [], "gates": [], "served": "onnx"}
    report["metrics"]["validation"]["int8"] = None
    return report


def nothing_optional() -> dict[str, Any]:
    report = no_int8()
    report |= {"calibration": None, "baselines": None}
    report["run"] |= {"description": "", "git_commit": None}
    report["backbone"] |= {"revision": None, "package": None, "weights_sha256": None}
    report["audit"] |= {"conflicts": [], "near_examples": [], "warnings": []}
    report["license"] |= {"components": [], "obligations": []}
    return report


def hollow() -> dict[str, Any]:
    report = sample_report()
    return {key: {} for key in report} | {"history": [], "format": 1}


def deep_with_many_labels() -> dict[str, Any]:
    return sample_report(tuple(f"intent {i} {'long ' * (i % 30)}" for i in range(50)), blocks=24)


def not_numbers() -> dict[str, Any]:
    def spoil(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: spoil(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [spoil(inner) for inner in value]
        return float("nan") if isinstance(value, float) else value

    return spoil(sample_report())


CASES = {
    "usual": sample_report,
    "two labels": lambda: sample_report(("yes", "no")),
    "one epoch": one_epoch,
    "no int8": no_int8,
    "nothing optional": nothing_optional,
    "hollow": hollow,
    "deep with many labels": deep_with_many_labels,
    "not numbers": not_numbers,
}


@pytest.fixture(scope="module")
def usual() -> Page:
    return Page(render_html(sample_report()))


@pytest.mark.parametrize("case", CASES)
def test_page_is_well_formed_and_has_every_section(case: str) -> None:
    page = Page(render_html(CASES[case]()))
    assert [name for name in page.ids if name in SECTIONS] == list(SECTIONS)
    assert len(page.ids) == len(set(page.ids))
    linked = {attrs["href"] for tag, attrs in page.tags if tag == "a" and (attrs["href"] or "").startswith("#")}
    assert linked == {f"#{name}" for name in SECTIONS}


@pytest.mark.parametrize("case", CASES)
def test_page_loads_nothing_and_runs_nothing(case: str) -> None:
    text = render_html(CASES[case]())
    page = Page(text)
    for tag, attrs in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "img", "form", "base", "use", "image"}
        assert not LOADING & attrs.keys()
        assert not any(name.startswith("on") for name in attrs)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@pytest.mark.parametrize("case", CASES)
def test_no_number_is_printed_as_nan_none_or_infinity(case: str) -> None:
    page = Page(render_html(CASES[case]()))
    shown = page.text.replace(
        page.text[page.text.index("The whole recipe, as resolved") : page.text.index("Labels")], ""
    )
    assert not re.search(r"\b(nan|inf|None|Undefined)\b", shown)
    for tag, attrs in page.tags:
        assert not any(re.search(r"nan|\binf\b|None", value or "") for value in attrs.values()), (tag, attrs)


def test_same_report_gives_same_bytes_and_is_not_changed() -> None:
    report = sample_report()
    before = copy.deepcopy(report)
    assert render_html(report) == render_html(copy.deepcopy(report))
    assert report == before


def test_head_says_the_verdict_at_a_glance(usual: Page) -> None:
    head = usual.text[: usual.text.index("What was asked")]
    for words in (
        "bbc-news-minilm",
        "97.8\u202f%",
        "95\u202f% interval 95.8–99.1\u202f%",
        "ONNX int8",
        "23.5\u202fMB",
        "3.9× smaller than PyTorch",
        "1.8×",
        "Allowed with conditions",
        "All 5 passed",
    ):
        assert words in head


def test_head_measures_the_form_that_is_served() -> None:
    report = no_int8()
    report["metrics"]["test_served"]["accuracy"] = {"value": 0.5, "low": 0.4, "high": 0.6}
    text = Page(render_html(report)).text
    head = text[: text.index("What was asked")]
    for words in ("50.0\u202f%", "ONNX fp32", "91.2\u202fMB", "1.2×"):
        assert words in head
    assert "This bundle holds no int8 form." in text


def test_failed_gate_is_named_in_the_head() -> None:
    report = sample_report()
    report["export"]["gates"][2]["passed"] = False
    text = Page(render_html(report)).text
    assert "4 of 5 passed not passed: int8_metric" in text


@pytest.mark.parametrize(
    ("verdict", "words"),
    [("allow", "Allowed"), ("review", "Needs review"), ("deny", "Not allowed"), ("odd", "Unknown")],
)
def test_licence_verdict_is_said_in_words(verdict: str, words: str) -> None:
    report = sample_report()
    report["license"]["verdict"] = verdict
    text = Page(render_html(report)).text
    assert f"Licence {words} for research use" in text


def test_every_chart_says_what_it_shows(usual: Page) -> None:
    charts = usual.charts()
    assert len(charts) == 9
    for chart in charts:
        assert chart["role"] == "img"
        assert len(chart["aria-label"] or "") > 30


def test_leaks_are_admitted_where_the_audit_found_them() -> None:
    report = sample_report()
    assert "No row of a later split" in Page(render_html(report)).text
    report["audit"]["leaks"]["train/test"] = 37
    assert "37 rows of a later split have a duplicate in an earlier one" in Page(render_html(report)).text


def test_phase_whose_parameters_did_not_move_is_shown() -> None:
    report = sample_report()
    report["transfer"]["phases"][2]["check"]["unmoved_parameters"] = ["encoder.layer.4.output.dense.weight"]
    text = Page(render_html(report)).text
    assert "✗ 1 did not move encoder.layer.4.output.dense.weight" in text


@pytest.mark.parametrize(
    ("peaks", "words"),
    [
        ([1e-3, 2.5e-4, 1.5e-4], "0.001, 2.5e-4, 1.5e-4 at the head phase by phase, times"),
        ([2e-5, 2e-5], "2e-5 at the head times"),
    ],
)
def test_learning_rates_are_those_that_the_phases_had(peaks: list[float], words: str) -> None:
    report = sample_report()
    phase = report["transfer"]["phases"][-1]
    report["transfer"]["phases"] = [
        {**phase, "learning_rates": {"head": peak, "embeddings": peak / 100}} for peak in peaks
    ]
    report["history"] = []
    assert words in " ".join(Page(render_html(report)).text.split())


def test_missing_parts_say_that_they_were_not_asked_for() -> None:
    text = Page(render_html(nothing_optional())).text
    for words in (
        "asked for no calibration",
        "asked for no baselines",
        "No gates were recorded",
        "not in a repository",
    ):
        assert words in text


def test_labels_are_escaped_wherever_they_appear() -> None:
    attack = '<script>alert("1")</script>'
    quote = "' onload='x\" onclick=\"y"
    report = sample_report((attack, quote, "plain"))
    report["run"] |= {"description": attack, "name": "a</title><script>"}
    report["license"]["components"][0]["name"] = attack
    report["export"]["gates"][0]["sentence"] = attack
    report["transfer"]["phases"][0]["name"] = report["history"][0]["phase_name"] = attack
    report["recipe"]["card"] = {"limitations": "</pre><script>"}
    page = Page(render_html(report))
    assert all(tag != "script" and not any(name.startswith("on") for name in attrs) for tag, attrs in page.tags)
    assert page.text.count('<script>alert("1")</script>') >= 8


@pytest.mark.parametrize(
    "link",
    ["javascript:alert(1)", " JavaScript:alert(1)", "data:text/html,x", "//evil.example/x", "file:///etc/passwd"],
)
def test_only_plain_web_links_can_be_followed(link: str) -> None:
    report = sample_report()
    report["license"]["components"][0]["link"] = report["license"]["bundle_license_link"] = link
    page = Page(render_html(report))
    assert all((attrs["href"] or "").startswith("#") for tag, attrs in page.tags if tag == "a")


def test_web_link_of_a_licence_can_be_followed(usual: Page) -> None:
    assert "https://www.apache.org/licenses/LICENSE-2.0" in [attrs["href"] for tag, attrs in usual.tags if tag == "a"]


def test_labels_named_like_dict_methods_keep_their_rows() -> None:
    report = sample_report(("items", "values", "get"))
    counts = [report["data"]["splits"][split]["labels"]["items"] for split in ("train", "validation", "test")]
    text = Page(render_html(report)).text
    assert f"items {counts[0]:,} {counts[1]} {counts[2]} {sum(counts):,}" in text


def test_metric_that_is_no_share_is_not_printed_as_per_cent() -> None:
    report = sample_report()
    report["metrics"]["primary"] = "loss"
    for row in report["history"]:
        row["validation_metric"] = row["validation_loss"]
    text = Page(render_html(report)).text
    assert "Test cross-entropy loss 0.104 95\u202f% interval 0.071–0.149" in text


def test_recipe_is_shown_whole(usual: Page) -> None:
    assert "coupling: decoupled alpha: 5.0 beta: 0.01" in usual.text


@given(
    labels=st.lists(
        st.text(min_size=1, max_size=60).filter(lambda t: "\r" not in t), min_size=2, max_size=6, unique=True
    )
)
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
def test_any_label_text_leaves_the_page_well_formed(labels: list[str]) -> None:
    page = Page(render_html(sample_report(tuple(labels))))
    assert [name for name in page.ids if name in SECTIONS] == list(SECTIONS)
    assert len(page.charts()) == 9


def test_labels_of_the_sample_appear(usual: Page) -> None:
    assert all(label in usual.text for label in BBC)

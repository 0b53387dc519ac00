"""A bundle that shows test rows redistributes data: what ELPV's licence makes of that, and where it is said."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from finetune.errors import LicenseError
from finetune.recipe.types import LicenseAssertion
from finetune.release.license import Component, judge, require_allowed, resolve_component
from finetune.release.shown_data import describe_samples, with_samples
from finetune.release.texts import bundle_license_text, notice_text

SAMPLE = json.loads((Path(__file__).parent / "sample" / "report.json").read_text(encoding="utf-8"))
PICTURES = {"rows": [{"image": f"samples/0{n}.jpg", "text": None} for n in range(3)], "misclassified": 1}
TEXTS = {"rows": [{"image": None, "text": "The central bank left …"}], "misclassified": 1}


def judged(data: str, use: str = "research", backbone: str = "apache-2.0"):
    parts = [
        resolve_component(role, name, {"license": license_id}, None, evidence="README.md")
        for role, name, license_id in (("backbone", "lite0", backbone), ("data", "elpv", data))
    ]
    return judge(parts, use)


def test_elpv_passes_for_research_under_conditions_and_hands_its_licence_on():
    assertion = LicenseAssertion(id="CC-BY-NC-SA-4.0", reason="the data set's README says so")
    parts = [
        resolve_component("backbone", "lite0", {"license": "apache-2.0"}, None, evidence="README.md"),
        resolve_component("data", "elpv", {}, assertion, evidence="no model or data card"),
    ]
    report = judge(parts, "research")
    require_allowed(report)
    assert report["verdict"] == "conditions"
    assert report["bundle_license"] == "cc-by-nc-sa-4.0"
    duties = " ".join(report["obligations"])
    for words in (
        "under the same licence",
        "non-commercial purposes only",
        "Credit the source",
        "say that it was changed",
    ):
        assert words in duties
    assert "Attribution-NonCommercial-ShareAlike 4.0" in bundle_license_text(report)


@pytest.mark.parametrize("use", ["commercial", "internal"])
def test_elpv_is_refused_for_business(use):
    with pytest.raises(
        LicenseError, match=f"license.use: {use} use is not allowed, because cc-by-nc-sa-4.0 of the data elpv"
    ):
        require_allowed(judged("cc-by-nc-sa-4.0", use))


def test_share_alike_is_handed_on_beside_a_backbone_that_shares_alike_too_only_by_naming_both():
    report = judged("cc-by-nc-sa-4.0", backbone="gpl-3.0")
    assert report["bundle_license"] == "other"
    assert report["bundle_license_name"] == "gpl-3.0 AND cc-by-nc-sa-4.0"


def test_pictures_of_the_test_split_add_an_obligation_and_leave_the_verdict_as_it_is():
    before = judged("cc-by-nc-sa-4.0")
    kept = copy.deepcopy(before)
    after = with_samples(before, PICTURES)
    assert before == kept
    (duty,) = [one for one in after["obligations"] if one not in before["obligations"]]
    assert duty.startswith(
        "Pass the 3 small pictures of test images in samples/ and report.html on only under the data's own"
    )
    assert "elpv: cc-by-nc-sa-4.0" in duty
    assert {key: after[key] for key in after if key != "obligations"} == {
        key: before[key] for key in before if key != "obligations"
    }
    assert with_samples(after, PICTURES) == after
    assert duty in bundle_license_text(after)
    rebuilt = [Component(**{**part, "obligations": tuple(part["obligations"])}) for part in after["components"]]
    assert judge(rebuilt, "research")["verdict"] == "conditions"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("mit", "with its credits"),
        ("cc-by-nc-4.0", "and conditions"),
        ("cc-by-sa-4.0", "Have it reviewed whether"),
        ("cc-by-nd-4.0", "whose licence does not let you pass them on"),
        ("unknown", "make it without them (evaluation.samples: 0)"),
    ],
)
def test_obligation_depends_on_what_the_data_licence_says_of_passing_on(data, words):
    assert words in with_samples(judged(data), PICTURES)["obligations"][-1]


@pytest.mark.parametrize("samples", [None, {}, {"rows": []}, {"rows": [{"image": None, "text": None}]}])
def test_a_bundle_that_shows_nothing_has_no_further_obligation(samples):
    report = judged("cc-by-nc-sa-4.0")
    assert describe_samples(samples) == ""
    assert with_samples(report, samples) == report
    assert "redistributes" not in notice_text(report, {**SAMPLE, "samples": samples})


def test_notice_says_whose_rows_the_bundle_shows():
    report = judged("cc-by-nc-sa-4.0")
    pictures = notice_text(report, {**SAMPLE, "samples": PICTURES})
    assert (
        "This bundle redistributes data: the 3 small pictures of test images in samples/ and report.html, shrunk"
        in pictures
    )
    assert pictures.count("data elpv: Creative Commons Attribution-NonCommercial-ShareAlike 4.0") == 2
    texts = notice_text(report, {**SAMPLE, "samples": TEXTS})
    assert "the beginnings of validation texts (1) in report.json and report.html, shortened" in texts

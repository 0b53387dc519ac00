"""The licence gate: parts, uses, evidence, assertions, and what a refusal says."""

from __future__ import annotations

import hashlib
import json
import re
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.errors import LicenseError
from finetune.recipe.types import LicenseAssertion
from finetune.release._hub_ids import HUB_LICENSES
from finetune.release.license import card_evidence, judge, require_allowed, resolve_component
from finetune.release.policy import SEVERITY, USES

EVIDENCE = "README.md (sha256 " + "ab" * 32 + ") at revision 0123abc"


def part(license_id, role="backbone", name="thing", **metadata):
    declared = {} if license_id is None else {"license": license_id, **metadata}
    return resolve_component(role, name, declared, None, evidence=EVIDENCE)


def asserted(metadata, role="data", **assertion):
    given_assertion = LicenseAssertion(**{"reason": "read in the paper, section 2", **assertion})
    return resolve_component(role, "thing", metadata, given_assertion, evidence=EVIDENCE)


def verdict(license_id, use):
    return judge([part(license_id)], use)["verdict"]


@pytest.mark.parametrize(
    ("license_id", "research", "internal", "commercial"),
    [
        ("apache-2.0", "allow", "allow", "allow"),
        ("cc0-1.0", "allow", "allow", "allow"),
        ("cc-by-4.0", "allow", "allow", "allow"),
        ("cc-by-sa-4.0", "review", "allow", "review"),
        ("gpl-3.0", "review", "allow", "review"),
        ("cc-by-nc-4.0", "conditions", "deny", "deny"),
        ("apple-amlr", "conditions", "deny", "deny"),
        ("cc-by-nd-4.0", "deny", "deny", "deny"),
        ("creativeml-openrail-m", "conditions", "allow", "conditions"),
        ("llama3.1", "conditions", "review", "review"),
        ("gemma", "conditions", "allow", "conditions"),
        ("cc", "deny", "deny", "deny"),
        ("unknown", "deny", "deny", "deny"),
        ("other", "deny", "deny", "deny"),
        ("no-such-licence", "deny", "deny", "deny"),
        (None, "deny", "deny", "deny"),
    ],
)
def test_each_use_needs_its_own_rights(license_id, research, internal, commercial):
    assert [verdict(license_id, use) for use in ("research", "internal", "commercial")] == [
        research,
        internal,
        commercial,
    ]


@given(
    first=st.sampled_from(sorted(HUB_LICENSES)),
    second=st.sampled_from(sorted(HUB_LICENSES)),
    use=st.sampled_from(sorted(USES)),
)
@settings(deadline=None, max_examples=60)
def test_combining_parts_never_loosens_a_verdict_or_loses_an_obligation(first, second, use):
    parts = [part(first), part(second, role="data")]
    both = judge(parts, use)
    alone = [judge([one], use) for one in parts]
    assert SEVERITY[both["verdict"]] == max(SEVERITY[report["verdict"]] for report in alone)
    for one in parts:
        for duty in one.obligations:
            matching = [entry for entry in both["obligations"] if entry.startswith(duty)]
            assert len(matching) == 1
            assert f"{one.role} thing" in matching[0]
    assert json.loads(json.dumps(both)) == both


def test_an_obligation_of_both_parts_is_told_once_with_both_as_evidence():
    report = judge([part("apache-2.0"), part("mit", role="data", name="rows")], "commercial")
    notices = [entry for entry in report["obligations"] if "copyright notices" in entry]
    assert len(notices) == 1
    assert "backbone thing: apache-2.0" in notices[0]
    assert "data rows: mit" in notices[0]
    assert "sha256 abababababab…" in notices[0]


def test_missing_metadata_and_an_unknown_value_deny_and_name_the_recipe_key():
    for declared in (
        {},
        {"license": None},
        {"license": []},
        {"license": 3},
        {"license": "  "},
        {"license": "unknown"},
        {"license": "my-own"},
    ):
        component = resolve_component("data", "rows", declared, None, evidence="no model or data card of a package")
        with pytest.raises(
            LicenseError, match=r"license\.data: .* rows .*assert them in the recipe under license\.data"
        ):
            require_allowed(judge([part("mit"), component], "research"))


def test_the_licence_of_a_package_is_never_evidence(tmp_path):
    (tmp_path / "LICENSE").write_text("MIT License")
    evidence = card_evidence(tmp_path / "README.md", package="corpus 1.0.0")
    component = resolve_component("data", "package:corpus/data", {}, None, evidence=evidence)
    assert component.family == "unknown"
    assert component.evidence == "no licence in its metadata: no model or data card of corpus 1.0.0"


def test_evidence_names_file_hash_and_where_it_came_from(tmp_path):
    card = tmp_path / "README.md"
    card.write_bytes(b"---\nlicense: mit\n---\n")
    digest = hashlib.sha256(card.read_bytes()).hexdigest()
    assert card_evidence(card, revision="0123abc") == f"README.md (sha256 {digest}) at revision 0123abc"
    assert card_evidence(card, package="p 1.0") == f"README.md (sha256 {digest}) of p 1.0"
    assert card_evidence(None) == "no model or data card"


def test_an_assertion_gives_a_missing_licence_with_its_reason_as_evidence():
    component = asserted({}, id="CC-BY-4.0")
    assert (component.license, component.family, component.asserted) == ("cc-by-4.0", "attribution", True)
    assert component.evidence == "asserted by the recipe: read in the paper, section 2"
    assert component.warning is None
    require_allowed(judge([part("mit"), component], "commercial"))


def test_an_assertion_that_contradicts_the_card_is_allowed_and_visible():
    component = asserted({"license": "cc-by-nc-4.0"}, id="apache-2.0")
    report = judge([part("mit"), component], "commercial")
    require_allowed(report)
    assert component.declared == "cc-by-nc-4.0"
    assert report["warnings"] == [component.warning]
    assert "asserts apache-2.0" in component.warning
    assert "says cc-by-nc-4.0" in component.warning
    assert "contradicts cc-by-nc-4.0" in component.evidence


@pytest.mark.parametrize(
    ("card", "assertion"),
    [
        ({"license": "cc"}, {"id": "cc-by-4.0"}),
        ({"license": "gpl"}, {"id": "gpl-3.0"}),
        ({"license": "bsd"}, {"id": "bsd-3-clause"}),
        ({"license": "openrail"}, {"id": "creativeml-openrail-m"}),
        ({"license": "unknown"}, {"id": "mit"}),
        ({"license": "other"}, {"id": "mit"}),
    ],
)
def test_making_a_vague_card_precise_is_no_contradiction(card, assertion):
    assert asserted(card, **assertion).warning is None


@pytest.mark.parametrize(
    ("card", "assertion"),
    [
        ({"license": "gpl"}, {"id": "lgpl-3.0"}),
        ({"license": "gpl"}, {"id": "mit"}),
        ({"license": "my-own"}, {"id": "mit"}),
        ({"license": "other", "license_name": "qwen"}, {"id": "apache-2.0"}),
        ({"license": ["mit", "cc-by-nc-4.0"]}, {"id": "mit"}),
    ],
)
def test_saying_something_else_than_the_card_is_a_contradiction(card, assertion):
    assert asserted(card, **assertion).warning is not None


def test_an_assertion_equal_to_the_card_keeps_the_card_as_evidence():
    component = asserted({"license": "mit"}, id="MIT")
    assert not component.asserted
    assert component.evidence == EVIDENCE


def test_other_stays_denied_until_its_family_is_asserted_and_takes_name_and_link_from_the_card():
    card = {"license": "other", "license_name": "house-terms", "license_link": "https://example.org/terms"}
    assert judge([part(**{"license_id": "other", **card, "license": "other"})], "research")["verdict"] == "deny"
    component = asserted(card, id="other", family="non_commercial")
    assert (component.license, component.license_name, component.link) == (
        "other",
        "house-terms",
        "https://example.org/terms",
    )
    assert judge([component], "research")["verdict"] == "conditions"


@pytest.mark.parametrize(
    ("assertion", "words"),
    [
        ({"id": "other"}, "needs family, name, link"),
        ({"id": "other", "family": "permissive", "name": "terms"}, "needs link"),
        ({"id": "apach-2.0"}, "did you mean 'apache-2.0'"),
        ({"id": "unknown"}, "not a licence id"),
        ({"id": "gpl"}, "a family of licences"),
        ({"id": "BUSL-1.1"}, "no row for"),
        ({"id": "apache-2.0", "family": "copyleft"}, "belongs to permissive"),
    ],
)
def test_an_unusable_assertion_is_refused_with_its_key_and_the_fix(assertion, words):
    with pytest.raises(LicenseError, match=re.escape(words)) as caught:
        asserted({}, **assertion)
    assert str(caught.value).startswith("license.data")
    assert "\n" not in str(caught.value)


def test_an_ambiguous_or_unlisted_id_may_be_asserted_with_a_family():
    assert asserted({}, id="gpl", family="copyleft").train == "allow"
    busl = asserted({}, id="busl-1.1", family="non_commercial")
    assert (busl.license, busl.license_name, busl.link) == (
        "other",
        "BUSL-1.1",
        "https://spdx.org/licenses/BUSL-1.1.html",
    )


def test_several_declared_licences_all_bind():
    both = part(["mit", "cc-by-nc-4.0"])
    assert (both.license, both.license_name, both.commercial, both.distribute) == (
        "other",
        "mit AND cc-by-nc-4.0",
        "deny",
        "conditions",
    )
    assert set(both.obligations) == set(part("mit").obligations) | set(part("cc-by-nc-4.0").obligations)
    assert part(["mit"]).license == "mit"
    assert judge([part(["mit", "who-knows"])], "research")["verdict"] == "deny"


def test_a_choice_of_licences_in_one_string_is_left_to_the_user():
    assert part("MIT OR CC-BY-NC-4.0").family == "unknown"


@pytest.mark.parametrize("use", ["internal", "commercial"])
def test_a_refusal_names_part_licence_use_and_the_uses_that_remain(use):
    report = judge([part("mit"), part("cc-by-nc-4.0", role="data", name="rows")], use)
    with pytest.raises(LicenseError) as caught:
        require_allowed(report)
    message = str(caught.value)
    assert message.startswith(
        f"license.use: {use} use is not allowed, because cc-by-nc-4.0 of the data rows forbids commercial use"
    )
    assert "set license.use to research, or" in message
    assert "license.data" in message
    assert "\n" not in message


def test_a_refusal_without_any_use_left_does_not_suggest_one():
    with pytest.raises(LicenseError) as caught:
        require_allowed(judge([part("cc-by-nd-4.0")], "research"))
    assert "set license.use" not in str(caught.value)


def test_a_review_refuses_until_somebody_reviewed_it():
    parts = [part("llama3.1"), part("mit", role="data")]
    with pytest.raises(LicenseError, match=r"leaves commercial use to one .* license\.reviewed"):
        require_allowed(judge(parts, "commercial"))
    reviewed = judge(parts, "commercial", "Legal, 2026-11-20: fewer than 700 million users.")
    require_allowed(reviewed)
    assert reviewed["verdict"] == "review"
    assert "fewer than 700 million users" in reviewed["sentence"]


def test_a_review_cannot_lift_a_denial():
    with pytest.raises(LicenseError):
        require_allowed(judge([part("cc-by-nc-4.0")], "commercial", "we think it is fine"))


def test_unknown_use_and_no_parts_are_refused():
    with pytest.raises(LicenseError, match="did you mean 'commercial'"):
        judge([part("mit")], "comercial")
    with pytest.raises(LicenseError, match="nothing is known"):
        judge([], "research")


@pytest.mark.parametrize(
    ("backbone", "data", "expected"),
    [
        ("apache-2.0", "cc-by-4.0", ("apache-2.0", None, None)),
        ("cc0-1.0", "cc-by-4.0", ("cc-by-4.0", None, None)),
        ("cc0-1.0", "pddl", ("cc0-1.0", None, None)),
        ("mit", "cc-by-nc-sa-4.0", ("cc-by-nc-sa-4.0", None, None)),
        ("gemma", "mit", ("gemma", None, None)),
        ("cc-by-sa-4.0", "cc-by-sa-4.0", ("cc-by-sa-4.0", None, None)),
        ("llama3.1", "cc-by-nc-4.0", ("other", "llama3.1 AND cc-by-nc-4.0", "LICENSE")),
        (["mit", "apache-2.0"], "mit", ("other", "mit AND apache-2.0", "LICENSE")),
    ],
)
def test_the_bundle_takes_the_one_restrictive_licence_or_the_backbones(backbone, data, expected):
    report = judge([part(backbone), part(data, role="data")], "research")
    assert (report["bundle_license"], report["bundle_license_name"], report["bundle_license_link"]) == expected


def test_the_bundle_licence_is_always_one_that_the_hub_accepts():
    for backbone, data in product(sorted(HUB_LICENSES), ["mit", "cc-by-nc-4.0", None, "CC-BY-3.0-IGO"]):
        report = judge([part(backbone), part(data, role="data")], "research")
        assert report["bundle_license"] in HUB_LICENSES
        assert (report["bundle_license"] == "other") == bool(
            report["bundle_license_name"] and report["bundle_license_link"]
        )


def test_asserted_terms_of_the_data_pass_to_the_bundle_with_name_and_link():
    terms = asserted({}, id="other", family="non_commercial", name="BBC News terms", link="http://example.org/bbc")
    report = judge([part("apache-2.0"), terms], "research")
    assert report["bundle_license_name"] == "BBC News terms"
    assert report["bundle_license_link"] == "http://example.org/bbc"
    assert (
        report["sentence"]
        == "Research use is allowed under conditions, set by “BBC News terms” of the data thing (distribution)."
    )


def test_the_report_has_the_keys_that_report_json_promises():
    report = judge([part("mit")], "research")
    promised = (
        "use verdict components obligations reviewed bundle_license bundle_license_name bundle_license_link sentence"
    )
    assert set(promised.split()) <= set(report)
    component = "role name license license_name link family evidence asserted reason train distribute commercial"
    assert set(component.split()) <= set(report["components"][0])

"""The licence table: complete, consistent, and closed towards what it does not know."""

from __future__ import annotations

import pytest

from finetune.release._hub_ids import _ROWS, HUB_LICENSES, SPDX_ALIASES
from finetune.release.policy import (
    ASSERTABLE_FAMILIES,
    FAMILIES,
    SEVERITY,
    family_of,
    hub_id,
    link_of,
    obligations_of,
    spdx_id,
    strictest,
)

# https://huggingface.co/docs/hub/repositories-licenses, copied by hand so that the table is held against it.
HUB_IDS = [
    "apache-2.0",
    "mit",
    "openrail",
    "bigscience-openrail-m",
    "creativeml-openrail-m",
    "bigscience-bloom-rail-1.0",
    "bigcode-openrail-m",
    "afl-3.0",
    "artistic-2.0",
    "bsl-1.0",
    "bsd",
    "bsd-2-clause",
    "bsd-3-clause",
    "bsd-3-clause-clear",
    "c-uda",
    "cc",
    "cc0-1.0",
    "cc-by-2.0",
    "cc-by-2.5",
    "cc-by-3.0",
    "cc-by-4.0",
    "cc-by-sa-3.0",
    "cc-by-sa-4.0",
    "cc-by-nc-2.0",
    "cc-by-nc-3.0",
    "cc-by-nc-4.0",
    "cc-by-nd-4.0",
    "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-2.0",
    "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0",
    "cdla-sharing-1.0",
    "cdla-permissive-1.0",
    "cdla-permissive-2.0",
    "wtfpl",
    "ecl-2.0",
    "epl-1.0",
    "epl-2.0",
    "etalab-2.0",
    "eupl-1.1",
    "eupl-1.2",
    "agpl-3.0",
    "gfdl",
    "gpl",
    "gpl-2.0",
    "gpl-3.0",
    "lgpl",
    "lgpl-2.1",
    "lgpl-3.0",
    "isc",
    "h-research",
    "intel-research",
    "lppl-1.3c",
    "ms-pl",
    "apple-ascl",
    "apple-amlr",
    "mpl-2.0",
    "odc-by",
    "odbl",
    "openmdw-1.0",
    "openmdw-1.1",
    "openrail++",
    "osl-3.0",
    "postgresql",
    "ofl-1.1",
    "ncsa",
    "unlicense",
    "zlib",
    "pddl",
    "lgpl-lr",
    "deepfloyd-if-license",
    "fair-noncommercial-research-license",
    "llama2",
    "llama3",
    "llama3.1",
    "llama3.2",
    "llama3.3",
    "llama4",
    "grok2-community",
    "gemma",
    "unknown",
    "other",
]


def test_every_hub_id_is_covered_once():
    assert len(HUB_IDS) == 83
    assert [row[0] for row in _ROWS] == HUB_IDS


def test_every_row_has_a_known_family_and_a_place_to_read_it():
    for row in HUB_LICENSES.values():
        assert row.family in FAMILIES
        assert row.id in ("other", "unknown") or (link_of(row.id) or "").startswith("https://")


def test_every_spdx_place_and_alias_exists_in_the_spdx_list():
    for row in HUB_LICENSES.values():
        if row.place and "://" not in row.place:
            assert spdx_id(row.place) == row.place
    for alias, target in SPDX_ALIASES.items():
        assert spdx_id(alias) is not None
        assert target in HUB_LICENSES


def test_families_agree_with_the_categories_of_an_independent_licence_database():
    import license_expression

    categories = {}
    for entry in license_expression.get_license_index():
        for key in [entry.get("spdx_license_key"), *entry.get("other_spdx_license_keys", [])]:
            categories[str(key)] = entry["category"]
    expected = {
        "Permissive": {"permissive", "attribution"},
        "Public Domain": {"public_domain"},
        "Copyleft": {"copyleft", "share_alike"},
        "Copyleft Limited": {"copyleft", "share_alike"},
        "Source-available": {"non_commercial", "no_derivatives"},
        "Free Restricted": {"permissive"},  # C-UDA: restricts the data's use to computation, which training is
    }
    for row in HUB_LICENSES.values():
        if row.place and "://" not in row.place:
            assert row.family in expected[categories[row.place]], row.id


@pytest.mark.parametrize(
    ("family", "verdicts"),
    [
        ("permissive", "allow allow allow"),
        ("public_domain", "allow allow allow"),
        ("attribution", "allow allow allow"),
        ("share_alike", "allow review allow"),
        ("copyleft", "allow review allow"),
        ("non_commercial", "allow conditions deny"),
        ("research_only", "allow conditions deny"),
        ("no_derivatives", "allow deny deny"),
        ("rail", "allow conditions allow"),
        ("community", "allow conditions review"),
        ("gemma", "allow conditions allow"),
        ("ambiguous", "review deny deny"),
        ("unknown", "review deny deny"),
    ],
)
def test_each_family_has_its_verdicts(family, verdicts):
    rules = FAMILIES[family]
    assert f"{rules.train} {rules.distribute} {rules.commercial}" == verdicts


def test_the_table_of_families_is_complete_and_assertable_ones_are_the_recipes():
    from typing import get_args

    from finetune.recipe.types import LicenseAssertion

    assert len(FAMILIES) == 13
    annotation = LicenseAssertion.model_fields["family"].annotation
    literal = next(part for part in get_args(annotation) if get_args(part))
    assert set(get_args(literal)) == set(ASSERTABLE_FAMILIES)


@pytest.mark.parametrize("name", ["gpl", "cc", "bsd", "lgpl", "gfdl", "openrail"])
def test_names_of_families_decide_nothing(name):
    assert family_of(name) == "ambiguous"


@pytest.mark.parametrize(
    "name", ["", "unknown", "other", "apach-2.0", "busl-1.1", "cc-by-9.0", "proprietary", "sspl-1.0"]
)
def test_what_the_policy_does_not_know_is_unknown(name):
    assert family_of(name) == "unknown"


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("Apache-2.0", "permissive"),
        (" MIT ", "permissive"),
        ("GPL-3.0-or-later", "copyleft"),
        ("ODbL-1.0", "share_alike"),
        ("CC-BY-SA-2.5", "share_alike"),
        ("CC-BY-NC-ND-2.0", "no_derivatives"),
        ("CC-BY-NC-SA-3.0-IGO", "non_commercial"),
        ("CC-BY-3.0-AT", "attribution"),
    ],
)
def test_spdx_spellings_are_understood(spelling, expected):
    assert family_of(hub_id(spelling)) == expected


def test_boost_is_not_mistaken_for_the_business_source_licence():
    assert family_of("bsl-1.0") == "permissive"
    assert "Boost" in HUB_LICENSES["bsl-1.0"].title
    assert family_of(hub_id("BUSL-1.1")) == "unknown"


def test_non_commercial_share_alike_adds_the_share_alike_duty():
    plain = obligations_of("cc-by-nc-4.0", "non_commercial")
    same_license = set(obligations_of("cc-by-nc-sa-4.0", "non_commercial")) - set(plain)
    assert len(same_license) == 1
    assert same_license <= set(obligations_of("cc-by-sa-4.0", "share_alike"))


@pytest.mark.parametrize("name", ["llama3.1", "llama3.2", "llama3.3", "llama4"])
def test_llama_asks_for_its_mark_its_name_and_its_notice(name):
    duties = " ".join(obligations_of(name, family_of(name)))
    assert "“Built with Llama”" in duties
    assert "begin the model's name with “Llama”" in duties
    assert f"“Llama {name.removeprefix('llama')} is licensed under the Llama" in duties
    assert "acceptable use policy" in duties


def test_recognition_knows_licences_but_not_exceptions():
    assert spdx_id("busl-1.1") == "BUSL-1.1"
    assert spdx_id("no-such-licence") is None
    assert spdx_id("Classpath-exception-2.0") is None


def test_strictest_is_the_highest_in_severity_whatever_the_order():
    order = sorted(SEVERITY, key=SEVERITY.__getitem__)
    assert order == ["allow", "conditions", "review", "deny"]
    for high, verdict in enumerate(order):
        assert strictest(order[: high + 1]) == verdict
        assert strictest(reversed(order[: high + 1])) == verdict

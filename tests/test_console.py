"""What a terminal shows at the end of a run, and what `finetune validate` prints of a language model's recipe."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune.console import Console
from finetune.recipe import Recipe
from finetune.result import Report
from finetune.summary import _labels, describe_checked
from finetune.train.events import StageEnded

LANGUAGE = Path(__file__).parent / "report" / "causal_lm_report.json"
TEXT = Path(__file__).parent / "release" / "sample" / "report.json"


def printed(data: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    Console().summarise(Report(Path("exports/it"), data))
    captured = capsys.readouterr()
    assert captured.out == ""  # stdout is for the bundle's path
    return " ".join(captured.err.split())


def test_language_run_ends_with_perplexities_and_tokens_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(json.loads(LANGUAGE.read_text("utf-8")), capsys)
    assert "form perplexity (test) size first token tokens/s" in shown
    assert "int8 (served) 18.9900 153.9 MB 298 ms 31.2" in shown
    assert "perplexity on the test split: 26.41 before, 18.92 after (-28.4 %)" in shown
    assert "perplexity on general texts: 24.87 before, 25.31 after (+1.8 %)" in shown
    assert "recites 1.2 % of 16-token runs, the base model 0.0 %" in shown
    assert "baseline unigram: perplexity 1043.2000" in shown


def test_language_run_without_general_texts_or_check_says_nothing_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(LANGUAGE.read_text("utf-8"))
    data["language"]["memorisation"] = None
    for when in ("before", "after"):
        data["language"][when]["general"] = None
    shown = printed(data, capsys)
    assert "on the test split" in shown
    assert "general" not in shown
    assert "recites" not in shown


def test_text_run_ends_with_latencies_of_rows(capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(json.loads(TEXT.read_text("utf-8")), capsys)
    assert "size 1 row 32 rows" in shown
    assert "14.9 ms 509 ms" in shown
    assert "perplexity" not in shown


def test_a_stage_that_ends_with_a_sentence_has_its_time_behind_a_comma(capsys: pytest.CaptureFixture[str]) -> None:
    Console()(StageEnded("export", 1.25, "int8 is served: it passes."))
    assert capsys.readouterr().err.strip() == "int8 is served: it passes, 1.2 s"


def language_recipe(**data: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "causal",
            "task": "causal_lm",
            "backbone": {"name": "some/model"},
            "data": {"source": "texts", "max_length": 256, **data},
            "transfer": {"adapter": {"kind": "lora"}},
            "license": {"use": "research"},
        }
    )


def checked(recipe: Recipe) -> Any:
    source = SimpleNamespace(name="some/model", package=None, revision=None)
    return SimpleNamespace(
        backbone=source, data=source, license={"sentence": "Fine."}, workspace=SimpleNamespace(bundle="exports/causal"),
        inspection=SimpleNamespace(rows=240, labels=()), plan=None, notes=(), task=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("data", "learned"),
    [
        ({}, "to continue the texts"),
        ({"prompt_column": "q", "answer_column": "a"}, "'a' as the answer to 'q'"),
        ({"messages_column": "talk"}, "what the assistant says in 'talk'"),
    ],
)
def test_validate_says_what_a_language_model_will_learn(data: dict[str, str], learned: str) -> None:
    recipe = language_recipe(**data)
    lines = describe_checked(recipe, checked(recipe)).splitlines()
    facts = dict(line.split(maxsplit=1) for line in lines[:-1])
    assert facts["learns"] == learned
    assert facts["blocks"] == "up to 256 tokens, packed with whole documents; longer: split"
    assert facts["adapter"] == "lora, rank 8, alpha 16, fp32 base, on every linear layer of every block"
    assert facts["forgetting"] == "not measured (evaluation.general)"
    assert "labels" not in facts


def test_validate_lists_labels_so_that_a_comma_or_line_break_of_theirs_is_told_from_the_lists() -> None:
    seen = SimpleNamespace(labels=("sport", "a, b", 'say "x"', "two\nlines", " outer "))
    task = SimpleNamespace(target=SimpleNamespace(name="single_label"))
    shown = _labels(SimpleNamespace(inspection=seen, task=task))  # type: ignore[arg-type]
    assert shown == 'sport, "a, b", "say \\"x\\"", "two\\nlines", " outer "'

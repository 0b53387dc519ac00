"""The page of a language model: before and after, generated text, memorisation, memory, and speed in tokens."""

from __future__ import annotations

import re
from typing import Any

import pytest
from html_page import LOADING, Page
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from language_sample import language_report, without_extras

from finetune.report import language, render_html, units
from finetune.report.forgetting_chart import Change, forgetting
from finetune.report.kinds import kind_of

SECTIONS = ["asked", "data", "training", "quality", "generations", "export", "licence", "reproduce"]
N = units.NARROW


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render_html(language_report()))


def part(page: Page, start: str, end: str) -> str:
    """The page's text from one heading to another, contents and head left out."""
    text = page.text[page.text.index("What was asked", page.text.index("Reproduce")) :]
    return text[text.index(start) : text.index(end, text.index(start))]


def measured(value: float, half: float | None = None) -> dict[str, Any]:
    return {
        "value": value,
        "low": None if half is None else value - half,
        "high": None if half is None else value + half,
    }


@pytest.mark.parametrize("make", [language_report, without_extras])
def test_page_is_whole_loads_nothing_and_leaves_out_what_a_language_model_has_not(make: Any) -> None:
    page = Page(render_html(make()))
    assert [name for name in page.ids if name in [*SECTIONS, "samples", "calibration"]] == SECTIONS
    linked = [attrs["href"] for tag, attrs in page.tags if tag == "a" and (attrs["href"] or "").startswith("#")]
    assert linked == [f"#{name}" for name in SECTIONS]
    for tag, attrs in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "form", "base", "use", "image", "img"}
        assert not LOADING & attrs.keys()
        assert not any(name.startswith("on") for name in attrs)
    shown = page.text.replace(part(page, "The whole recipe, as resolved", "Data 240"), "")
    assert not re.search(r"\b(nan|inf|None|Undefined)\b", shown)


def test_a_report_of_the_task_alone_is_read_as_one_of_a_language_model() -> None:
    assert kind_of({"run": {"task": "causal_lm"}}) == ("language", "next_token")


def test_head_says_perplexity_before_and_after_and_tokens_a_second(page: Page) -> None:
    head = page.text[: page.text.index("What was asked")]
    assert f"Test perplexity 19.0 95{N}% interval 17.9–20.2; 26.4 before training" in head
    assert "Speed against PyTorch 2.7× 31.2 tokens a second, PyTorch 11.4" in head


def test_tokens_of_each_split_and_what_became_of_them_are_told(page: Page) -> None:
    data = part(page, "Tokens Split", "Duplicates")
    assert f"Train 192 118,604 469 171 0.0{N}% 0.5{N}% 1.2{N}%".lower() in data.lower()
    assert "packed with whole documents, each of which sees only itself" in data
    assert "left out" not in data
    assert "read and not learned: what nothing stands before." in data


def test_what_is_not_learned_and_what_was_left_out_is_told_where_there_is_such() -> None:
    report = language_report()
    report["data"]["packing"] = False
    report["recipe"]["data"] |= {"prompt_column": "question", "answer_column": "answer"}
    report["data"]["tokens"]["train"] |= {"masked_share": 0.4, "unlearned_pieces": 3}
    data = part(Page(render_html(report)), "Tokens Split", "Duplicates")
    assert f"40.0{N}%" in data
    assert "3 pieces in which nothing could be learned were left out." in data
    assert "Each document is a block of its own" in data
    assert "read and not learned: prompts" in data
    for facts in report["data"]["tokens"].values():
        del facts["unlearned_pieces"]
    assert "left out" not in part(Page(render_html(report)), "Tokens Split", "Duplicates")


def test_forgetting_is_told_in_words_numbers_and_a_chart(page: Page) -> None:
    quality = part(page, "Before and after", "Did fine-tuning pay?")
    assert f"On the test split the perplexity fell by 28.4{N}%." in quality
    assert f"On general texts it rose by 1.8{N}%, the price in forgetting (the intervals overlap)." in quality
    assert f"24.9 23.4–26.4 25.3 23.8–26.9 +1.8{N}%" in quality
    assert "next-token accuracy" in quality
    assert "+3.9 points" in quality
    label = next(a["aria-label"] or "" for a in page.charts() if "before and after" in (a["aria-label"] or ""))
    assert f"Test split 26.4 → 18.9 (−28.4{N}%); General texts 24.9 → 25.3 (+1.8{N}%)" in label


def test_training_that_made_it_worse_is_said_so() -> None:
    report = language_report()
    report["language"]["after"]["test"]["perplexity"] = measured(30.0, 1.0)
    report["language"]["after"]["general"]["perplexity"] = measured(20.0, 1.0)
    quality = part(Page(render_html(report)), "Before and after", "Did fine-tuning pay?")
    assert f"the perplexity did not fall: it is 13.6{N}% higher than before training" in quality
    assert "so they show nothing that was forgotten." in quality


def test_without_general_texts_forgetting_is_not_claimed() -> None:
    text = Page(render_html(without_extras())).text
    assert "forgetting was not measured" in text
    assert "General texts" not in text


def test_far_apart_perplexities_stand_on_a_log_axis() -> None:
    near = forgetting([Change("Test split", measured(26.0, 1.0), measured(19.0))])
    far = forgetting([Change("Test split", measured(4000.0), measured(19.0, 1.0))])
    assert "log scale" in far
    assert "log scale" not in near
    assert forgetting([]) == ""
    assert near.count("<circle") == far.count("<circle") == 2
    assert near.count('class="whisker') == far.count('class="whisker') == 1


def test_unigram_model_is_compared_on_a_log_axis_without_wilsons_interval() -> None:
    report = language_report()
    assert "Unigram model 1,043" in Page(render_html(report)).text
    report["metrics"]["primary"] = "accuracy"
    text = Page(render_html(report)).text
    assert "Wilson" not in text
    assert f"Unigram model 4.6{N}%" in text


def test_generations_stand_side_by_side_with_their_lines_kept(page: Page) -> None:
    text = part(page, "Generated text The same 2 prompts", "Memorisation")
    assert "at most 48 of them" in text
    assert re.search(r"Prompt The new phone will Before be available in the UK.* After be able to play music", text)
    report = language_report()
    report["language"]["generations"] = [{"prompt": "Say it", "before": "", "after": "a\n\nb " + "long " * 4000}]
    html = render_html(report)
    assert "a\n\nb long" in html
    assert "Nothing: the text ends here." in Page(html).text
    assert "The same prompt, continued" in Page(html).text


@given(words=st.text(max_size=60).filter(lambda t: "\r" not in t))
@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.too_slow])
def test_no_generated_text_breaks_the_page(words: str) -> None:
    report = language_report()
    report["language"]["generations"] = [{"prompt": words, "before": words, "after": f"<b>{words}</b>"}]
    report["language"]["memorisation"]["examples"] = [{"beginning": words, "text": words, "tokens": 17, "document": 0}]
    page = Page(render_html(report))
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS


def test_memorisation_is_weighed_against_the_model_before_training(page: Page) -> None:
    text = part(page, "Memorisation The", "Export int8")
    assert "recites more than the one it started from" in text
    assert f"Before training 0.0{N}% 0 After training 1.2{N}% 21" in text
    assert "21 tokens recited cause of computer crashes" in text
    said = {
        (0.0, 0.0): "Nothing was recited.",
        (0.1, 0.1): "recites no more than the one it started from",
        (0.2, None): "recites more than the one it started from",
        (None, None): "No continuation was long enough to tell.",
    }
    for (share, base), words in said.items():
        report = language_report()
        report["language"]["memorisation"] |= {"share": share, "base_share": base}
        assert words in language.memorisation(report)["sentence"]
    assert "asked for no memorisation check" in Page(render_html(without_extras())).text


def test_memory_is_told_part_by_part_against_what_was_free(page: Page) -> None:
    text = part(page, "Memory Training needs", "Quality on")
    assert f"Weights 538{N}MB 7.8{N}%" in text
    assert f"Together 1.68{N}GB 24.5{N}%" in text
    assert f"Free 6.87{N}GB" in text
    assert "measured 2.64" in text
    report = language_report()
    report["language"]["memory"]["available"] = None
    rows = language.memory(report)["rows"]
    assert rows[-1]["bar"] == 1.0
    assert all(row["share"] is None for row in rows)


def test_adapter_is_named_with_what_it_stands_beside(page: Page) -> None:
    assert (
        f"Adapter LoRA, rank 8, α 16 2,442,240 parameters, 1.8{N}% of the model's, beside weights held in 32-bit"
        in page.text
    )
    report = language_report()
    report["transfer"]["adapter"] |= {"kind": "dora", "base": "nf4", "targets": "auto"}
    text = Page(render_html(report)).text
    assert "Adapter DoRA" in text
    assert "held in 4-bit NormalFloat; every linear layer of every block" in text
    assert "Adapter" not in Page(render_html(without_extras())).text


def test_forms_are_compared_by_first_token_and_tokens_a_second(page: Page) -> None:
    text = part(page, "Export int8", "Licence Allowed")
    assert "Time to first token, ms 411 372 1.1× the speed 298 1.4× the speed" in text
    assert "Tokens per second 11.4 14.9 1.3× the speed 31.2 2.7× the speed" in text
    assert f"Validation perplexity 19.4 19.4 ±0.0{N}% 19.4 +0.4{N}%" in text
    assert "Same next token as PyTorch" in text
    assert "ONNX fp32 wrote the same 800 tokens as PyTorch" in text
    assert "blocks of 32, accuracy level 4 19.4" in text
    assert "Carried over unchanged" in text
    for words in ("text, ms", "32 texts", "documents"):
        assert words not in text
    report = language_report()
    report["export"]["greedy"]["identical"] = False
    assert "did not write the same tokens as PyTorch" in Page(render_html(report)).text


def test_errors_far_from_zero_are_drawn_where_they_are() -> None:
    html = render_html(language_report())
    loss = html[html.index("Training and validation loss") :]
    ticks = re.findall(r'class="tick" text-anchor="end">([^<]+)<', loss[: loss.index("</svg>")])
    assert min(float(tick) for tick in ticks) > 2


def test_a_report_that_holds_nothing_yet_has_its_page() -> None:
    report = language_report()
    hollow = {key: {} for key in report} | {"history": [], "run": report["run"], "format": 1}
    assert [name for name in Page(render_html(hollow)).ids if name in SECTIONS] == SECTIONS
    assert [name for name in Page(render_html(report | {"language": None})).ids if name in SECTIONS] == SECTIONS

from __future__ import annotations

import pytest
from tiny_decoders import VOCABULARY, tiny_decoder

from finetune.errors import RecipeError
from finetune.explain.continuations import continue_prompts, opening_prompts, side_by_side
from finetune.preprocess.language import Conversation


def encode(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def decode(ids: list[int]) -> str:
    """As a SentencePiece tokenizer does: no space before the first word."""
    return " ".join(map(str, ids))


def test_what_is_written_joins_on_to_its_prompt() -> None:
    model = tiny_decoder("llama")
    prompts = ["5 6 7", "9"]
    written = continue_prompts(model, prompts, encode, decode, max_new_tokens=6, eos_token_ids=())
    assert all(text.startswith(" ") and len(text.split()) == 6 for text in written)
    assert written == continue_prompts(model, prompts, encode, decode, max_new_tokens=6, eos_token_ids=())
    everything = range(VOCABULARY)
    assert continue_prompts(model, prompts, encode, decode, max_new_tokens=6, eos_token_ids=tuple(everything)) == [
        "",
        "",
    ]


def test_a_tokenizer_that_rewrites_the_prompt_s_end_still_gives_the_new_text() -> None:
    model = tiny_decoder("llama")
    (text,) = continue_prompts(model, ["5"], encode, lambda ids: f"<{decode(ids)}>", max_new_tokens=3, eos_token_ids=())
    assert text.startswith("<")
    assert len(text.split()) == 3


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(RecipeError, match="empty prompt"):
        continue_prompts(tiny_decoder("gpt2"), [""], encode, decode, max_new_tokens=3, eos_token_ids=())


def test_prompts_are_the_beginnings_of_texts_spread_over_the_split() -> None:
    texts = [f"text {number} " + "word " * 20 for number in range(20)]
    prompts = opening_prompts(texts, count=4, words=3)
    assert prompts == ("text 0 word", "text 5 word", "text 10 word", "text 15 word")
    assert opening_prompts([*texts[:1], *texts[:1], "short", "", "text 7 has four"], 4, 3) == (
        "text 0 word",
        "text 7 has",
    )
    assert opening_prompts([], 4) == ()


def test_of_a_conversation_the_first_thing_said_is_the_prompt() -> None:
    talk = Conversation((("system", "be kind"), ("user", "who are you?"), ("assistant", "me"), ("user", "really?")))
    assert opening_prompts([talk, Conversation((("assistant", "hello"),))]) == ("who are you?",)


def test_generations_stand_side_by_side() -> None:
    assert side_by_side(["a"], ["b"], ["c"]) == [{"prompt": "a", "before": "b", "after": "c"}]
    with pytest.raises(ValueError, match="shorter"):
        side_by_side(["a"], ["b"], [])

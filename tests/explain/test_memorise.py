from __future__ import annotations

import json

import pytest
import torch
from tiny_decoders import VOCABULARY, some_prompts, tiny_decoder
from torch import nn

from finetune.errors import RecipeError
from finetune.explain.memorise import MemorisationCheck, prepare_check

SETTINGS = {"samples": 4, "prompt_tokens": 5, "ngram": 6, "max_new_tokens": 20, "eos_token_ids": (0,), "seed": 1}
DOCUMENTS = [[*text, 0] for text in some_prompts((30, 40, 26, 35, 28, 8), seed=3)]


def check(documents: list[list[int]] = DOCUMENTS, **other: object) -> MemorisationCheck | None:
    return prepare_check(documents, **{**SETTINGS, **other})  # type: ignore[arg-type]


def words(ids: list[int]) -> str:
    return " ".join(map(str, ids))


def learn_by_heart(model: nn.Module, texts: list[list[int]]) -> None:
    """Until nothing else has a chance worth naming, as the continuations are drawn."""
    longest = max(map(len, texts))
    ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    labels = torch.tensor([text + [-100] * (longest - len(text)) for text in texts])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2, weight_decay=0.0)
    model.train()
    for _ in range(80):
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def test_a_model_that_learned_its_texts_by_heart_is_found_out_and_its_base_is_not() -> None:
    found = check()
    assert found is not None
    model = tiny_decoder("gpt2")
    before = found.continuations(model)
    learn_by_heart(model, DOCUMENTS)
    report = found.report(before, found.continuations(model), words)
    assert report["share"] > 0.8
    assert report["base_share"] == 0.0
    assert report["base_longest"] == 0
    assert report["longest"] == 20
    assert (report["samples"], report["ngram"]) == (4, 6)
    best = report["examples"][0]
    whole = words(DOCUMENTS[best["document"]])
    assert f"{best['beginning']} {best['text']}" in whole
    assert len(best["text"].split()) == best["tokens"] == 20
    json.dumps(report, allow_nan=False)


def test_what_the_base_model_knew_already_shows_in_its_own_share() -> None:
    found = check()
    assert found is not None
    model = tiny_decoder("gpt2")
    learn_by_heart(model, DOCUMENTS)
    continuations = found.continuations(model)
    assert found.continuations(model) == continuations
    report = found.report(continuations, continuations, words)
    assert report["base_share"] == report["share"] > 0.8
    assert report["base_longest"] == report["longest"]


def test_beginnings_come_from_texts_that_go_on_each_once_and_by_the_seed() -> None:
    found = check(samples=50)
    assert found is not None
    assert list(found.beginnings) == [tuple(text[:5]) for text in DOCUMENTS if len(text) >= 11]
    few, again, other = (check(samples=2, seed=seed) for seed in (1, 1, 2))
    assert few is not None
    assert again is not None
    assert other is not None
    assert few.beginnings == again.beginnings != other.beginnings
    assert len(set(few.beginnings)) == 2


def test_there_is_no_check_without_samples_or_long_texts() -> None:
    assert check(samples=0) is None
    assert check(samples=0, max_new_tokens=2) is None
    assert check([[1] * 10]) is None
    assert check([]) is None
    assert check([[1] * 11]) is not None


def test_continuations_too_short_for_one_n_gram_are_refused_before_training() -> None:
    with pytest.raises(RecipeError, match="continuations of 5 tokens hold no run of 6"):
        check(max_new_tokens=5)


def test_a_model_that_stops_at_once_has_no_share() -> None:
    found = check()
    assert found is not None
    report = found.report([[]] * 4, [[], [1], [2], [3] * 5], words)
    assert report["share"] is None
    assert report["base_share"] is None
    assert report["examples"] == []


def test_words_of_the_beginning_said_again_are_not_held_against_the_model() -> None:
    text = [*range(1, 12), *range(1, 12)]
    found = check([[*text, VOCABULARY - 1]], samples=1, prompt_tokens=11)
    assert found is not None
    repeated = found.report([[]], [list(range(1, 12))], words)
    assert (repeated["ngrams"], repeated["share"]) == (0, None)

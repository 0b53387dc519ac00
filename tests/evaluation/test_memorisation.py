from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import RecipeError
from finetune.evaluation.memorisation import _fingerprints, reproduced_share

IDS = st.lists(st.integers(0, 3), max_size=14)


def plainly(generated: list[list[int]], training: list[list[int]], ngram: int, prompts: list[list[int]]) -> tuple:
    """Share and longest run by looking everywhere."""

    def ngrams(ids: list[int]) -> list[tuple[int, ...]]:
        return [tuple(ids[i : i + ngram]) for i in range(len(ids) - ngram + 1)]

    known = {key for text in training for key in ngrams(text)}
    counted = reproduced = longest = 0
    for place, ids in enumerate(generated):
        copied = set(ngrams(prompts[place])) if prompts else set()
        own = [None if key in copied else key for key in ngrams(ids)]
        counted += sum(key is not None for key in own)
        reproduced += sum(key is not None and key in known for key in own)
        for start in range(len(own)):
            for end in range(start + 1, len(own) + 1):
                run = ids[start : end + ngram - 1]
                inside = any(run == text[i : i + len(run)] for text in training for i in range(len(text)))
                if None not in own[start:end] and inside:
                    longest = max(longest, len(run))
    return counted, reproduced, longest


@given(st.lists(IDS, max_size=3), st.lists(IDS, max_size=4), st.integers(1, 4), st.data())
def test_it_finds_what_a_plain_search_finds(
    generated: list[list[int]], training: list[list[int]], ngram: int, data: st.DataObject
) -> None:
    prompts = [data.draw(IDS) for _ in generated] if data.draw(st.booleans()) else []
    found = reproduced_share(generated, training, ngram, prompts=prompts)
    assert (found["ngrams"], found["reproduced"], found["longest"]) == plainly(generated, training, ngram, prompts)
    assert found["share"] == (found["reproduced"] / found["ngrams"] if found["ngrams"] else None)
    for one in found["examples"]:
        at, position = one["start"], one["position"]
        assert one["ids"] == generated[one["sample"]][at : at + one["tokens"]]
        assert one["ids"] == training[one["document"]][position : position + one["tokens"]]
    json.dumps(found, allow_nan=False)


def test_the_share_is_of_n_grams_and_examples_come_longest_first() -> None:
    training = [list(range(100, 130)), list(range(200, 230))]
    generated = [[1, 2, 3, *range(205, 210), 4], [*range(100, 112)], [9] * 6]
    found = reproduced_share(generated, training, 4)
    assert (found["ngrams"], found["reproduced"]) == (6 + 9 + 3, 2 + 9)
    assert found["share"] == 11 / 18
    assert found["longest"] == 12
    assert found["examples"][0] == {
        "sample": 1, "start": 0, "tokens": 12, "document": 0, "position": 0, "ids": list(range(100, 112)),
    }  # fmt: skip
    assert (found["examples"][1]["start"], found["examples"][1]["position"]) == (3, 5)
    assert len(found["examples"]) == 2


def test_words_across_two_training_texts_were_never_in_training() -> None:
    assert reproduced_share([[1, 2, 3, 4]], [[0, 1, 2], [3, 4, 5]], 3)["reproduced"] == 0


def test_what_a_continuation_copies_from_its_own_prompt_does_not_count() -> None:
    text = [5, 6, 7, 8, 9, 10]
    generated = [[*text, 11]]
    assert reproduced_share(generated, [text], 3)["reproduced"] == 4
    copied = reproduced_share(generated, [text], 3, prompts=[text])
    assert (copied["ngrams"], copied["reproduced"], copied["longest"]) == (1, 0, 0)
    assert reproduced_share(generated, [text], 3, prompts=[[5, 6]])["reproduced"] == 4


def test_continuations_that_are_too_short_have_no_share_rather_than_a_good_one() -> None:
    empty = {"share": None, "ngrams": 0, "reproduced": 0, "longest": 0, "examples": []}
    assert reproduced_share([[1, 2], []], [[1, 2, 3]], 3) == empty
    assert reproduced_share([], [[1, 2, 3]], 3) == empty
    assert reproduced_share([[1, 2, 3]], [[1, 2], []], 3)["share"] == 0.0


def test_equal_fingerprints_alone_convict_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "finetune.evaluation.memorisation._fingerprints",
        lambda ids, ngram: np.zeros(max(0, len(ids) - ngram + 1), dtype=np.uint64),
    )
    found = reproduced_share([[1, 2, 3, 9]], [[7, 1, 2, 3], [4, 5, 6]], 3)
    assert (found["ngrams"], found["reproduced"], found["longest"]) == (2, 1, 3)


def test_fingerprints_tell_n_grams_apart() -> None:
    generator = np.random.default_rng(0)
    ids = generator.integers(0, 50_000, 20_000)
    prints = _fingerprints(ids, 8)
    assert len(np.unique(prints)) == len(prints) == 19_993
    assert prints[40] == _fingerprints(ids[40:48], 8)[0]
    assert _fingerprints(np.array([0, 0, 7]), 3) != _fingerprints(np.array([0, 1, 7]), 3)


def test_a_long_training_text_is_searched_in_a_moment_and_a_needle_is_found() -> None:
    generator = np.random.default_rng(1)
    training = generator.integers(0, 50_000, (200, 2_000)).tolist()
    generated = [generator.integers(0, 50_000, 48).tolist() for _ in range(16)]
    generated[3][10:30] = training[150][777:797]
    found = reproduced_share(generated, training, 16)
    assert (found["ngrams"], found["reproduced"], found["longest"]) == (16 * 33, 5, 20)
    assert {key: found["examples"][0][key] for key in ("sample", "start", "document", "position")} == {
        "sample": 3, "start": 10, "document": 150, "position": 777,
    }  # fmt: skip


def test_impossible_questions_are_refused() -> None:
    with pytest.raises(RecipeError, match="ngram: 0"):
        reproduced_share([[1]], [[1]], 0)
    with pytest.raises(RecipeError, match="2 prompts do not fit 1"):
        reproduced_share([[1]], [[1]], 1, prompts=[[1], [2]])

from __future__ import annotations

import random

import numpy as np
import pytest
from datasketch import MinHash, MinHashLSH
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data import near
from finetune.data.audit import Duplicates, conflicting, copies_of, find_duplicates, find_leaks


def plain_jaccard(a: str, b: str, size: int = 8) -> float:
    """The definition, without hashes."""
    sets = [{tuple(words[i : i + size]) for i in range(len(words) - size + 1)} for words in (a.split(), b.split())]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def corpus(seed: int, originals: int = 40) -> list[str]:
    """Texts of 30 words, each with two edited copies."""
    draw = random.Random(seed)
    texts = []
    for _ in range(originals):
        words = [f"w{draw.randrange(500)}" for _ in range(30)]
        for edits in (0, 1, 3):
            changed = list(words)
            for _ in range(edits):
                changed[draw.randrange(30)] = f"x{draw.randrange(500)}"
            texts.append(" ".join(changed))
    return texts


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_near_pairs_are_those_of_the_definition(threshold: float) -> None:
    texts = list(dict.fromkeys(corpus(7)))
    true = {
        (i, j): plain_jaccard(texts[i], texts[j])
        for i in range(len(texts))
        for j in range(i + 1, len(texts))
        if plain_jaccard(texts[i], texts[j]) >= threshold
    }
    found = {(i, j): similarity for i, j, similarity in near.near_pairs(texts, threshold)}
    assert len(true) >= 5
    assert found == pytest.approx(true)


def test_banding_finds_the_candidates_of_datasketchs_index() -> None:
    sets = list(near._shingles(corpus(3)))
    signatures = near._signatures(sets)
    rows = near.band_rows(0.5)
    index = MinHashLSH(num_perm=near.PERMUTATIONS, params=(near.PERMUTATIONS // rows, rows))
    expected = set()
    values = ((keys >> np.uint64(32)).tolist() for keys in sets)
    for number, sketch in enumerate(MinHash.generator(values, num_perm=near.PERMUTATIONS, seed=1, hashfunc=int)):
        expected |= {(other, number) for other in index.query(sketch)}
        index.insert(number, sketch)
    assert set(near._candidates(signatures, 0.5)) == expected


@given(st.floats(0.01, 1.0))
@settings(deadline=None)
def test_a_pair_at_the_threshold_is_rarely_overlooked(threshold: float) -> None:
    rows = near.band_rows(threshold)
    assert rows == 1 or (1 - threshold**rows) ** (near.PERMUTATIONS // rows) <= 0.005


def test_case_and_punctuation_do_not_hide_a_near_duplicate() -> None:
    a = "The quick brown fox jumps over the lazy dog again and again."
    assert near.near_pairs([a, a.upper().replace("FOX", "FOX,")], 1.0) == [(0, 1, 1.0)]


@pytest.mark.parametrize(
    ("a", "b", "near_duplicates"),
    [
        ("good movie", "Good movie!", True),
        ("good movie", "bad movie", False),
        ("the cat sat on a mat", "the cat sat on a mat today", True),
        ("the cat sat on a mat", "one dog lay by the door", False),
        ("!!!", "???", False),
        ("私は昨日東京で新しい本を買いました。", "私は昨日東京で新しい本を買いました！", True),
        ("私は昨日東京で新しい本を買いました。", "彼女は明日京都へ古い友人を訪ねます。", False),
    ],
)
def test_short_texts_and_scripts_without_spaces(a: str, b: str, near_duplicates: bool) -> None:
    assert bool(near.near_pairs([a, b], 0.5)) is near_duplicates


def test_crowded_buckets_still_form_one_group() -> None:
    texts = [f"{near.SHINGLE_WORDS * 'same words here in every message '}{number}" for number in range(300)]
    assert len(set(find_duplicates(texts, lambda distinct: near.near_pairs(distinct, 0.5)).groups)) == 1


def test_no_texts_have_no_pairs() -> None:
    assert near.near_pairs([], 0.5) == []


def test_identical_means_up_to_unicode_form_blanks_and_line_ends() -> None:
    assert near.normalise(" cafe\u0301 \t au\u00a0lait \r\n ok ") == "café au lait\nok"
    assert near.normalise("a\n\nb") != near.normalise("a b")
    assert near.normalise("A") != near.normalise("a")


@given(st.text())
@settings(deadline=None)
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = near.normalise(text)
    assert near.normalise(once) == once


def test_empty_texts_hold_nothing_visible() -> None:
    assert all(map(near.is_empty, ("", " \n\t", "\u200b\ufeff", "\x00")))
    assert not near.is_empty(" . ")


def test_keys_differ_by_seed_and_are_the_same_everywhere() -> None:
    assert near.text_key("a", 0) != near.text_key("a", 1)
    assert near.text_key("text", 3) == 2373650354783125259


def test_groups_join_chains_and_copies() -> None:
    a = [f"w{i}" for i in range(40)]
    chain = [" ".join(a[i : i + 30]) for i in (0, 5, 10)]
    duplicates = find_duplicates(
        [*chain, chain[0], "other words than all of the rest in here"], lambda distinct: near.near_pairs(distinct, 0.6)
    )
    assert len({duplicates.groups[row] for row in range(4)}) == 1
    assert duplicates.groups[4] != duplicates.groups[0]
    assert duplicates.input_ids[0] == duplicates.input_ids[3]
    assert {(i, j) for i, j, _ in duplicates.pairs} == {(0, 1), (1, 2)}


def test_conflicts_are_copies_with_different_labels() -> None:
    copies = copies_of(["a", "b", "a", "b", "c"])
    assert copies == [[0, 2], [1, 3]]
    assert conflicting(copies, ["x", "y", "x", "x", "y"]) == [[1, 3]]


def test_leaks_count_later_rows_once_per_earlier_split() -> None:
    duplicates = Duplicates((0, 1, 2, 0, 3), (0, 0, 2, 0, 4), ((0, 1, 0.7),))
    splits = ["train", "validation", "train", "test", "test"]
    assert list(find_leaks(duplicates, splits)) == [
        ("train", "validation", 0, 1, 0.7),
        ("train", "test", 0, 3, 1.0),
        ("validation", "test", 1, 3, 0.7),
    ]

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Several

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.blocks import Blocks, blocks_of, first_fit_decreasing
from finetune.errors import DataError
from finetune.preprocess.language import IGNORED, Sequence

Lengths = st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(lambda lengths: max(lengths) > 1)


def documents(lengths: Several[int]) -> list[Sequence]:
    """Documents in which no token occurs twice, so that each can be followed."""
    rows, at = [], 0
    for row, length in enumerate(lengths):
        ids = list(range(at, at + length))
        rows.append(Sequence(ids, [*ids[1:], IGNORED][:length], [0] * length, (row,)))
        at += length
    return rows


def answered(prompt: int, answer: int) -> Sequence:
    ids = list(range(prompt + answer))
    targets = [token if token >= prompt else IGNORED for token in ids[1:]] + [IGNORED]
    return Sequence(ids, targets, [0] * len(ids), (0,))


def blocks(rows: list[Sequence], max_length: int, **words: object) -> Blocks:
    told = {"packing": True, "overlong": "split", "places": [f"row {at}" for at in range(len(rows))], **words}
    return blocks_of(rows, max_length, **told)  # type: ignore[arg-type]


def segments_of(block: Sequence) -> list[list[int]]:
    return [
        [token for token, segment in zip(block.ids, block.segments, strict=True) if segment == number]
        for number in sorted(set(block.segments))
    ]


@pytest.mark.parametrize("packing", [True, False])
@given(lengths=Lengths, max_length=st.integers(4, 12))
def test_no_token_is_lost_or_doubled(packing: bool, lengths: list[int], max_length: int) -> None:
    rows = documents(lengths)
    made = blocks(rows, max_length, packing=packing)
    expected = Counter(token for row in rows if len(row.ids) > 1 for token in row.ids)
    assert Counter(token for block in made.sequences for token in block.ids) == expected
    assert set(expected.values()) <= {1}
    for block in made.sequences:
        assert 0 < len(block.ids) <= max_length
        assert len(block.ids) == len(block.targets) == len(block.segments)
        assert sorted(set(block.segments)) == list(range(block.segments[-1] + 1))
        assert block.segments == sorted(block.segments)
        for piece in segments_of(block):
            assert piece == list(range(piece[0], piece[0] + len(piece)))  # a stretch of one document, in order
        for at, target in enumerate(block.targets):
            last = at + 1 == len(block.ids) or block.segments[at + 1] != block.segments[at]
            assert target == (IGNORED if last else block.ids[at + 1])
        sources = {row.rows[0] for row in rows for token in block.ids if token in row.ids}
        assert set(block.rows) == sources


@given(lengths=Lengths, max_length=st.integers(4, 12))
def test_packed_and_unpacked_learn_the_same_tokens_after_the_same_ones(lengths: list[int], max_length: int) -> None:
    rows = documents(lengths)

    def learned(made: Blocks) -> list[tuple[tuple[int, ...], int]]:
        found = []
        for block in made.sequences:
            for at, target in enumerate(block.targets):
                if target != IGNORED:
                    seen = [
                        i for i, s in zip(block.ids[: at + 1], block.segments, strict=False) if s == block.segments[at]
                    ]
                    found.append((tuple(seen), target))
        return sorted(found)

    assert learned(blocks(rows, max_length, packing=True)) == learned(blocks(rows, max_length, packing=False))


@given(lengths=st.lists(st.integers(1, 20), max_size=40), room=st.integers(20, 30))
def test_first_fit_decreasing_is_the_textbooks(lengths: list[int], room: int) -> None:
    order = sorted(range(len(lengths)), key=lambda item: -lengths[item])
    bins: list[list[int]] = []
    for item in order:
        fitting = [members for members in bins if sum(lengths[i] for i in members) + lengths[item] <= room]
        if fitting:
            fitting[0].append(item)
        else:
            bins.append([item])
    assert first_fit_decreasing(lengths, room) == sorted(sorted(members) for members in bins)


def test_blocks_are_filled() -> None:
    made = blocks(documents([10, 90, 60, 40, 50, 50, 100, 30, 70]), 100)
    assert [len(block.ids) for block in made.sequences] == [100] * 5
    assert made.facts == {
        "documents": 9, "tokens": 500, "blocks": 5, "truncated_share": 0.0, "split_documents": 0, "unlearned_pieces": 0,
        "masked_share": 0.018, "padding_share": 0.0,
    }  # fmt: skip


def test_a_long_document_is_cut_into_pieces_as_long_as_may_be() -> None:
    made = blocks(documents([25, 3]), 10, packing=False)
    assert [len(block.ids) for block in made.sequences] == [10, 10, 5, 3]
    assert [block.rows for block in made.sequences] == [(0,), (0,), (0,), (1,)]
    assert [block.targets[-1] for block in made.sequences] == [IGNORED] * 4
    assert made.facts["split_documents"] == 1
    assert made.facts["padding_share"] == 0.3
    assert made.facts["masked_share"] == round(4 / 28, 6)


def test_no_piece_is_a_single_token_which_could_teach_nothing() -> None:
    made = blocks(documents([21]), 10, packing=False)
    assert [len(block.ids) for block in made.sequences] == [10, 9, 2]


def test_later_pieces_begin_as_every_text_does_and_their_first_token_is_not_learned() -> None:
    bos = 1000
    (row,) = documents([21])
    row = Sequence([bos, *row.ids], [row.ids[0], *row.targets], [0, *row.segments], row.rows)
    made = blocks([row], 10, packing=False, begin=(bos,))
    assert [block.ids for block in made.sequences] == [
        [bos, *range(9)], [bos, *range(9, 18)], [bos, 18, 19, 20],
    ]  # fmt: skip
    assert [block.targets for block in made.sequences] == [
        [*range(9), IGNORED], [IGNORED, *range(10, 18), IGNORED], [IGNORED, 19, 20, IGNORED],
    ]  # fmt: skip
    packed = blocks([row], 40, begin=(bos,))
    assert packed.sequences[0].ids == row.ids


def test_a_single_last_token_is_joined_by_one_before_it_after_the_bos_token_too() -> None:
    bos = 1000
    (row,) = documents([19])
    row = Sequence([bos, *row.ids], [row.ids[0], *row.targets], [0, *row.segments], row.rows)
    made = blocks([row], 10, packing=False, begin=(bos,))
    assert [block.ids for block in made.sequences] == [[bos, *range(9)], [bos, *range(9, 17)], [bos, 17, 18]]
    assert made.sequences[-1].targets == [IGNORED, 18, IGNORED]


def test_truncation_cuts_the_end_off_and_says_how_much() -> None:
    made = blocks([*documents([25]), answered(6, 10)], 10, packing=False, overlong="truncate")
    assert [block.ids for block in made.sequences] == [list(range(10))] * 2
    assert [block.targets for block in made.sequences] == [
        [*range(1, 10), IGNORED], [IGNORED] * 5 + [6, 7, 8, 9, IGNORED],
    ]  # fmt: skip
    assert made.facts["truncated_share"] == round((15 + 6) / 41, 6)
    assert made.facts["split_documents"] == 0


def test_a_prompt_whose_answer_was_cut_off_is_left_out_and_counted() -> None:
    made = blocks([answered(12, 3), answered(3, 3)], 10, overlong="truncate")
    assert [block.ids for block in made.sequences] == [list(range(6))]
    assert made.facts["unlearned_pieces"] == 1
    assert made.facts["documents"] == 2
    with pytest.raises(DataError, match="no token is left to learn"):
        blocks([answered(12, 3)], 10, overlong="truncate")


def test_a_conversation_is_never_split() -> None:
    with pytest.raises(DataError, match=r"row 1 is a conversation of 12 tokens, .* data\.max_length is 10; raise it"):
        blocks([answered(3, 3), answered(4, 8)], 10)
    assert blocks([answered(4, 6)], 10).facts["blocks"] == 1


@pytest.mark.parametrize("row", [documents([11])[0], answered(4, 7)])
def test_what_is_too_long_is_refused_by_name_where_the_recipe_says_so(row: Sequence) -> None:
    with pytest.raises(DataError, match=r"row 0 has 11 tokens, and data\.max_length is 10"):
        blocks([row], 10, overlong="refuse")


def test_blocks_must_have_room_for_something() -> None:
    with pytest.raises(DataError, match="a block needs at least 5 tokens"):
        blocks(documents([8]), 4, begin=(1,))
    with pytest.raises(DataError, match="no token is left to learn"):
        blocks(documents([1, 0, 1]), 4)


def test_packing_is_the_same_every_time() -> None:
    rows = documents([7, 3, 9, 3, 7, 1, 2, 8, 30, 5] * 5)
    assert blocks(rows, 16) == blocks(rows, 16)
    firsts = [block.rows[0] for block in blocks(rows, 16).sequences]
    assert firsts == sorted(firsts)

"""Whole documents and conversations to the blocks that a language model is trained and measured on.

Packing puts whole pieces into blocks by first-fit decreasing (Johnson 1973), which needs at most 11/9 of the fewest possible
blocks and a few more. Each piece is a segment of its own, so none sees another: as if each stood alone, only without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from finetune.errors import DataError
from finetune.preprocess import sequence
from finetune.preprocess.sequence import IGNORED

Overlong = Literal["split", "truncate", "refuse"]
LEAST_LENGTH = 4


@dataclass(frozen=True)
class Blocks:
    """Sequences of at most `max_length` tokens in the order of their first rows, and what became of the documents.

    facts: "documents"; "tokens" in the blocks; "blocks"; "truncated_share" of all tokens, cut off; "split_documents";
    "unlearned_pieces", which are left out because no token of theirs would be learned; "masked_share" of the blocks' tokens,
    those that no loss is taken on; "padding_share" of a batch of all blocks.
    """

    sequences: tuple[sequence.Sequence, ...]
    facts: dict[str, int | float]


def blocks_of(
    sequences: Sequence[sequence.Sequence],
    max_length: int,
    *,
    packing: bool,
    overlong: Overlong,
    places: Sequence[str],
    begin: Sequence[int] = (),
) -> Blocks:
    """Cut what is too long as `overlong` says, then pack, or keep one piece per block.

    Every token of a document that is not cut off is in exactly one block; the first of each piece is not learned, and a piece
    in which nothing is learned (one token; a prompt whose answer was cut off) is left out. `begin` are the tokens that every
    text of the model begins with (`LanguageEncoder.begin`), so they begin later pieces too. `places` names the sequences in
    messages. DataError for a length that is too small, for what is too long and must not be cut, and if nothing is left.
    """
    if max_length < LEAST_LENGTH + len(begin):
        raise DataError(f"data.max_length is {max_length}; a block needs at least {LEAST_LENGTH + len(begin)} tokens")
    pieces: list[sequence.Sequence] = []
    split = unlearned = 0
    for row, place in zip(sequences, places, strict=True):
        cut = [row] if len(row.ids) <= max_length else _CUTS[overlong](row, max_length, list(begin), place)
        split += len(cut) > 1
        useful = [piece for piece in cut if any(target != IGNORED for target in piece.targets)]
        unlearned += len(cut) - len(useful)
        pieces += useful
    if not pieces:
        raise DataError(
            "no token is left to learn: every text is one token, or every answer was cut off; raise data.max_length or look at the rows"
        )
    blocks = _packed(pieces, max_length) if packing else pieces
    whole, cut_off = sum(len(row.ids) for row in sequences), _cut_off(sequences, max_length, overlong)
    facts = {"documents": len(sequences), **_facts(blocks), "split_documents": split, "unlearned_pieces": unlearned}
    return Blocks(tuple(blocks), {**facts, "truncated_share": _share(cut_off, whole)})


def _facts(blocks: Sequence[sequence.Sequence]) -> dict[str, int | float]:
    tokens = sum(len(block.ids) for block in blocks)
    learned = sum(target != IGNORED for block in blocks for target in block.targets)
    room = len(blocks) * max(len(block.ids) for block in blocks)
    return {
        "tokens": tokens,
        "blocks": len(blocks),
        "masked_share": _share(tokens - learned, tokens),
        "padding_share": _share(room - tokens, room),
    }


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0


def _cut_off(sequences: Sequence[sequence.Sequence], max_length: int, overlong: Overlong) -> int:
    return sum(max(0, len(row.ids) - max_length) for row in sequences) if overlong == "truncate" else 0


def _split(row: sequence.Sequence, max_length: int, begin: list[int], place: str) -> list[sequence.Sequence]:
    """Pieces of a document, as long as they may be; the last has at least two tokens of its own, or it could teach nothing."""
    if any(target == IGNORED for target in row.targets[:-1]):
        raise DataError(
            f"{place} is a conversation of {len(row.ids)} tokens, which is never split, and data.max_length is {max_length}; "
            "raise it, shorten the conversation, or set data.overlong to truncate"
        )
    pieces = [row.ids[:max_length]]
    at, room = max_length, max_length - len(begin)
    while at < len(row.ids):
        pieces.append(row.ids[at : at + room])
        at += room
    if len(pieces[-1]) == 1:
        pieces[-1].insert(0, pieces[-2].pop())
    pieces[1:] = [begin + piece for piece in pieces[1:]]
    return [_piece(ids, [*ids[1:], IGNORED], row, begin if number else []) for number, ids in enumerate(pieces)]


def _piece(ids: list[int], targets: list[int], row: sequence.Sequence, begin: list[int]) -> sequence.Sequence:
    # The first token of a piece's own is not learned, whatever comes before it: a bos token says nothing about it.
    ignored = [IGNORED] * len(begin)
    return sequence.Sequence(ids, ignored + targets[len(begin) :], [0] * len(ids), row.rows)


def _truncate(row: sequence.Sequence, max_length: int, begin: list[int], place: str) -> list[sequence.Sequence]:
    targets = [*row.targets[: max_length - 1], IGNORED]
    return [sequence.Sequence(row.ids[:max_length], targets, row.segments[:max_length], row.rows)]


def _refuse(row: sequence.Sequence, max_length: int, begin: list[int], place: str) -> list[sequence.Sequence]:
    raise DataError(
        f"{place} has {len(row.ids)} tokens, and data.max_length is {max_length}; raise it, shorten the text, or set data.overlong to split or truncate"
    )


_CUTS: dict[str, Callable[[sequence.Sequence, int, list[int], str], list[sequence.Sequence]]] = {
    "split": _split,
    "truncate": _truncate,
    "refuse": _refuse,
}


def _packed(pieces: Sequence[sequence.Sequence], max_length: int) -> list[sequence.Sequence]:
    """Pieces side by side, each a segment of its own, in their old order within a block."""
    placed = first_fit_decreasing([len(piece.ids) for piece in pieces], max_length)
    blocks = [[pieces[at] for at in members] for members in placed]
    return [_side_by_side(members) for members in blocks]


def _side_by_side(members: Sequence[sequence.Sequence]) -> sequence.Sequence:
    return sequence.Sequence(
        [token for piece in members for token in piece.ids],
        [target for piece in members for target in piece.targets],
        [number for number, piece in enumerate(members) for _ in piece.ids],
        tuple(dict.fromkeys(row for piece in members for row in piece.rows)),
    )


def first_fit_decreasing(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Items for each bin, every item once: the longest first (the earlier of two), each into the first bin that has room.

    A tree over the bins, whose nodes hold the most room of any bin below, finds that bin in O(log n) steps. Bins stand in the
    order of their first item, items in a bin in their old order. No length may be above `room`.
    """
    width = 1
    while width < len(lengths):
        width *= 2
    free = [room] * (2 * width)
    bins: list[list[int]] = [[] for _ in lengths]
    for item in sorted(range(len(lengths)), key=lambda item: (-lengths[item], item)):
        node = 1
        while node < width:
            node = 2 * node + (free[2 * node] < lengths[item])
        free[node] -= lengths[item]
        bins[node - width].append(item)
        while node > 1:
            node //= 2
            free[node] = max(free[2 * node], free[2 * node + 1])
    return sorted(sorted(items) for items in bins if items)

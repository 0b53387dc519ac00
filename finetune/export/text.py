"""What exporting asks of texts: batch and length are dynamic, int8 is dynamic too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetune.export.parity import Batch, Logits, Predict
from finetune.preprocess import Encoded, TextEncoder


def axes(encoder: TextEncoder) -> dict[int, tuple[str, int]]:
    """Both axes of (B, T) vary: the batch, and the length up to what the encoder cuts texts to."""
    return {0: ("batch", 65536), 1: ("length", encoder.settings.max_length)}


def example(encoder: TextEncoder, rows: Sequence[Encoded]) -> Batch:
    """Three copies of a real row, cut or repeated to a length that is no special case."""
    return encoder.collate([_of_length(rows, min(8, encoder.settings.max_length))] * 3)


def shape_examples(encoder: TextEncoder, rows: Sequence[Encoded]) -> list[Batch]:
    """Batches at the corners of what can be served: (1, minimal), (1, T), (3, ragged), (1, max), (2, max and minimal).

    Minimal is the token count of an empty text. Rows are cut from real ones or repeated up to the wanted length.
    """
    limit = encoder.settings.max_length
    minimal = max(1, len(encoder.encode([""])[0].ids))  # a tokenizer may add no special tokens
    middle = max(minimal, limit // 3)
    wanted = [(minimal,), (middle,), (minimal, middle, minimal + 1), (limit,), (limit, minimal)]
    return [encoder.collate([_of_length(rows, min(length, limit)) for length in lengths]) for lengths in wanted]


def spread_rows(encoder: TextEncoder, rows: Sequence[Encoded], count: int) -> list[Encoded]:
    """`count` rows spread evenly over all lengths, shuffled in a fixed way; repeated where there are too few."""
    ordered = sorted(rows, key=encoder.size_of)
    chosen = [ordered[int((index + 0.5) * len(ordered) / count)] for index in range(count)]
    return [chosen[index] for index in np.random.default_rng(0).permutation(count)]


def row_by_row(predict: Predict) -> Predict:
    """The same prediction with each row run alone and without padding, so that no answer depends on a neighbour."""

    def alone(batch: Batch) -> Logits:
        mask = batch["attention_mask"] if "attention_mask" in batch else np.ones_like(batch["input_ids"])
        columns = [np.flatnonzero(row) for row in mask]
        spans = [slice(used[0], used[-1] + 1) if len(used) else slice(0, 1) for used in columns]
        rows = ({name: array[i : i + 1, span] for name, array in batch.items()} for i, span in enumerate(spans))
        return np.concatenate([predict(row) for row in rows])

    return alone


def _of_length(rows: Sequence[Encoded], length: int) -> Encoded:
    longest = max(rows, key=lambda row: len(row.ids))
    repeats = -(-length // len(longest.ids))
    return Encoded((longest.ids * repeats)[:length], (longest.type_ids * repeats)[:length], length)

"""How alike two forms of a model are, how fast each is, and whether a row's answer depends on its neighbours.

Every form is a `Predict`: arrays (B, T) in, float32 logits (B, C) out; torch and ONNX Runtime look the same from here.
Needs numpy only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from finetune.preprocess import Encoded, TextEncoder

Batch = Mapping[str, NDArray[np.int64]]
Logits = NDArray[np.float32]
Predict = Callable[[Batch], Logits]

INVARIANCE_TOLERANCE = 1e-4
"""Largest change of a row's logits, alone or in a padded batch, that rounding explains."""


def compare_logits(reference: Logits, other: Logits) -> dict[str, float]:
    """Agreement (share of rows with the same argmax), and the worst and mean absolute difference of logits (N, C)."""
    if reference.shape != other.shape or not len(reference):
        raise ValueError(f"logits of shapes {reference.shape} and {other.shape} cannot be compared")
    gap = np.abs(reference.astype(np.float64) - other)
    return {
        "agreement": float(np.mean(reference.argmax(axis=1) == other.argmax(axis=1))),
        "max_abs_diff": float(gap.max()),
        "mean_abs_diff": float(gap.mean()),
    }


def predict_rows(predict: Predict, encoder: TextEncoder, rows: Sequence[Encoded], batch_size: int) -> Logits:
    """Logits (N, C) in the order of `rows`, computed in batches of rows of like length to save padding."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    found = np.concatenate([predict(encoder.collate([rows[index] for index in part])) for part in parts])
    logits = np.empty_like(found)
    logits[order] = found
    return logits


def row_by_row(predict: Predict) -> Predict:
    """The same prediction with each row run alone and without padding, so that no answer depends on a neighbour."""

    def alone(batch: Batch) -> Logits:
        mask = batch["attention_mask"] if "attention_mask" in batch else np.ones_like(batch["input_ids"])
        columns = [np.flatnonzero(row) for row in mask]
        spans = [slice(used[0], used[-1] + 1) if len(used) else slice(0, 1) for used in columns]
        rows = ({name: array[i : i + 1, span] for name, array in batch.items()} for i, span in enumerate(spans))
        return np.concatenate([predict(row) for row in rows])

    return alone


def shape_examples(
    encoder: TextEncoder, rows: Sequence[Encoded], max_length: int, *, minimal: int
) -> list[dict[str, NDArray[np.int64]]]:
    """Batches at the corners of what can be served: (1, minimal), (1, T), (3, ragged), (1, max), (2, max and minimal).

    `minimal` is the token count of an empty text. Rows are cut from real ones or repeated up to the wanted length.
    """
    longest = max(rows, key=lambda row: len(row.ids))

    def of_length(length: int) -> Encoded:
        repeats = -(-length // len(longest.ids))
        return Encoded((longest.ids * repeats)[:length], (longest.type_ids * repeats)[:length], length)

    middle = max(minimal, max_length // 3)
    wanted = [(minimal,), (middle,), (minimal, middle, minimal + 1), (max_length,), (max_length, minimal)]
    return [encoder.collate([of_length(min(length, max_length)) for length in lengths]) for lengths in wanted]


def check_shapes(reference: Predict, other: Predict, examples: Iterable[Batch]) -> float:
    """Worst absolute difference between two forms over batches of several shapes; infinity if one gives NaN."""
    worst = 0.0
    for batch in examples:
        with np.errstate(invalid="ignore"):
            gap = float(np.abs(reference(batch) - other(batch)).max())
        worst = max(worst, gap if np.isfinite(gap) else float("inf"))
    return worst


def batch_invariant(predict: Predict, encoder: TextEncoder, rows: Sequence[Encoded]) -> bool:
    """Whether rows run alone and in one padded batch give the same logits, within `INVARIANCE_TOLERANCE`."""
    together = predict(encoder.collate(rows))
    alone = np.concatenate([predict(encoder.collate([row])) for row in rows])
    with np.errstate(invalid="ignore"):  # infinity less infinity: not a number, so not invariant
        return bool(np.abs(together - alone).max() <= INVARIANCE_TOLERANCE)


def spread_rows(rows: Sequence[Encoded], count: int) -> list[Encoded]:
    """`count` rows spread evenly over all lengths, shuffled in a fixed way; repeated where there are too few."""
    ordered = sorted(rows, key=lambda row: len(row.ids))
    chosen = [ordered[int((index + 0.5) * len(ordered) / count)] for index in range(count)]
    return [chosen[index] for index in np.random.default_rng(0).permutation(count)]


def measure_latency(
    forms: Mapping[str, Predict],
    batches: Sequence[Batch],
    *,
    seconds: float,
    calls: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median milliseconds per batch of each form; the forms take turns, so that a busy machine slows all of them alike.

    Each form is called on one batch after another, at least `calls` times, until `seconds` per form have passed. One
    untimed call warms each up.
    """
    times: dict[str, list[float]] = {name: [] for name in forms}
    for predict in forms.values():
        predict(batches[0])
    start, done = clock(), 0
    while done < calls or clock() - start < seconds * len(forms):
        batch = batches[done % len(batches)]
        for name, predict in forms.items():
            before = clock()
            predict(batch)
            times[name].append((clock() - before) * 1000)
        done += 1
    return {name: float(np.median(values)) for name, values in times.items()}


def measure_speed(
    forms: Mapping[str, Predict], batch_1: Sequence[Batch], batch_32: Batch, *, seconds: float = 1.0
) -> dict[str, dict[str, dict[str, float]]]:
    """Per form: "latency_ms" (median per batch) and "throughput" (rows per second), each at batch "1" and "32"."""
    rows = len(next(iter(batch_32.values())))
    single = measure_latency(forms, batch_1, seconds=seconds)
    many = measure_latency(forms, [batch_32], seconds=seconds, calls=3)
    return {
        name: {
            "latency_ms": {"1": round(single[name], 3), "32": round(many[name], 3)},
            "throughput": {"1": round(1000 / single[name], 2), "32": round(1000 * rows / many[name], 2)},
        }
        for name in forms
    }

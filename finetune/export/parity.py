"""How alike two forms of a model are, how fast each is, and whether a row's answer depends on its neighbours.

Every form is a `Predict`: arrays with the batch first in, float32 logits (B, C) out; torch and ONNX Runtime, texts and
images look the same from here. Needs numpy only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.preprocess import Encoder

Batch = Mapping[str, NDArray[Any]]
Logits = NDArray[np.float32]
Predict = Callable[[Batch], Logits]

INVARIANCE_TOLERANCE = 1e-4
"""Largest change of a row's logits, alone or in a padded batch, that rounding explains."""


def differences(reference: Logits, other: Logits) -> dict[str, float]:
    """The worst and the mean absolute difference of logits (N, C)."""
    if reference.shape != other.shape or not len(reference):
        raise ValueError(f"logits of shapes {reference.shape} and {other.shape} cannot be compared")
    gap = np.abs(reference.astype(np.float64) - other)
    return {"max_abs_diff": float(gap.max()), "mean_abs_diff": float(gap.mean())}


def predict_rows(predict: Predict, encoder: Encoder, rows: Sequence[Any], batch_size: int) -> Logits:
    """Logits (N, C) in the order of `rows`, computed in batches of rows of like size to save padding."""
    order = sorted(range(len(rows)), key=lambda index: encoder.size_of(rows[index]))
    parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    found = np.concatenate([predict(encoder.collate([rows[index] for index in part])) for part in parts])
    logits = np.empty_like(found)
    logits[order] = found
    return logits


def check_shapes(reference: Predict, other: Predict, examples: Iterable[Batch]) -> float:
    """Worst absolute difference between two forms over batches of several shapes; infinity if one gives NaN."""
    worst = 0.0
    for batch in examples:
        with np.errstate(invalid="ignore"):
            gap = float(np.abs(reference(batch) - other(batch)).max())
        worst = max(worst, gap if np.isfinite(gap) else float("inf"))
    return worst


def batch_invariant(
    predict: Predict, encoder: Encoder, rows: Sequence[Any], tolerance: float = INVARIANCE_TOLERANCE
) -> bool:
    """Whether rows run alone and in one batch (padded, for texts) give the same logits, within `tolerance`."""
    together = predict(encoder.collate(rows))
    alone = np.concatenate([predict(encoder.collate([row])) for row in rows])
    with np.errstate(invalid="ignore"):  # infinity less infinity: not a number, so not invariant
        return bool(np.abs(together - alone).max() <= tolerance)


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

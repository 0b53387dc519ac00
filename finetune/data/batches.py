"""The order of batches: a pure function of (seed, phase, epoch), so that a resumed run sees what it would have seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Batches whose rows are sorted by length together: enough for little padding, few enough to keep the order random. Of a
# small data set at least this many buckets are made, or each epoch would put the same rows into one batch.
BATCHES_PER_BUCKET = 16
LEAST_BUCKETS = 4


def epoch_steps(
    lengths: Sequence[int], batch_size: int, *, seed: int, phase: int, epoch: int, bucket: bool
) -> list[list[int]]:
    """Row indices of every optimizer step of one epoch; each row exactly once, one step possibly short.

    lengths: tokens per row. With `bucket`, rows are shuffled, cut into buckets of some batches, sorted by length within
    a bucket, and the batches shuffled again, so that batches are alike in length and their order is still random.
    """
    rng = np.random.default_rng([seed, phase, epoch])
    order = rng.permutation(len(lengths))
    if not bucket:
        return [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]
    batches = -(-len(order) // batch_size)
    size = batch_size * max(1, min(BATCHES_PER_BUCKET, batches // LEAST_BUCKETS))
    of_row = np.asarray(lengths)
    buckets = [order[i : i + size] for i in range(0, len(order), size)]
    by_length = [rows[np.argsort(of_row[rows], kind="stable")] for rows in buckets]
    steps = [rows[i : i + batch_size].tolist() for rows in by_length for i in range(0, len(rows), batch_size)]
    return [steps[i] for i in rng.permutation(len(steps))]


def share(step: Sequence[int], part: int, parts: int) -> list[tuple[int, float]]:
    """The rows of one of `parts` equal parts of a step, as (row, weight).

    Parts are dealt like cards, so their sizes differ by at most one. A part that would be empty repeats the step's first
    row with weight 0: every process then takes part in every step, and the weighted sum is that of the whole step.
    """
    rows = [(row, 1.0) for row in step[part::parts]]
    return rows or [(step[0], 0.0)]


def evaluation_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Row indices in batches of like length, longest first, so that memory peaks at once."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]

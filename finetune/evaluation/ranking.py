"""Statistics that depend on the order of rows, for row weights: sorted once, whatever the number of bootstrap samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finetune.evaluation.logits import Floats, Integers


@dataclass(frozen=True)
class Ranking:
    """Rows of one label from the greatest logit to the least.

    order (N,): row numbers; labels (N,): 0 or 1 in that order; ends (K,): last place of each group of equal logits.
    """

    order: Integers
    labels: Floats
    ends: Integers

    @classmethod
    def of(cls, logits: Floats, labels: Floats) -> Ranking:
        order = np.argsort(-logits, kind="stable")
        ordered = logits[order]
        return cls(order, labels[order], np.append(np.flatnonzero(np.diff(ordered)), len(order) - 1))

    def average_precision(self, weights: Floats) -> Floats:
        """Σ_k (R_k − R_{k−1})·P_k over the thresholds, as scikit-learn computes it, (R,); NaN where no row has the label.

        Weights: (R, N), how often or how much each row counts.
        """
        ordered = weights[:, self.order]
        found = np.cumsum(ordered, axis=1)[:, self.ends]
        right = np.cumsum(ordered * self.labels, axis=1)[:, self.ends]
        precision = right / np.where(found > 0, found, 1)  # where nothing is found yet, nothing is gained either
        gained = np.diff(right, axis=1, prepend=0)
        total = right[:, -1]
        return np.where(total > 0, (gained * precision).sum(axis=1) / np.where(total > 0, total, 1), np.nan)


@dataclass(frozen=True)
class Ranks:
    """Groups of equal values, least first. order (N,): row numbers; starts (G,): where each group begins; group (N,): of each row."""

    order: Integers
    starts: Integers
    group: Integers

    @classmethod
    def of(cls, values: Floats) -> Ranks:
        _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        return cls(np.argsort(group, kind="stable"), starts, group)

    def weighted(self, weights: Floats) -> Floats:
        """Mean rank of each row (R, N) among rows that count `weights` (R, N) times; equal values share one rank.

        It is the middle of their stretch of the summed weight, plus 1/2, so that weights need not be whole.
        """
        size = np.add.reduceat(weights[:, self.order], self.starts, axis=1)
        return (np.cumsum(size, axis=1) - (size - 1) / 2)[:, self.group]

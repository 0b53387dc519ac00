"""How much each row counts in a sum of losses and in what that sum is divided by."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def weighted_sum(losses: Tensor, row_weights: Tensor | None) -> Tensor:
    """Σ w_i · l_i, a scalar. Losses: (B,); row_weights: (B,), 0 for padding, or None where every row counts as 1."""
    return losses.sum() if row_weights is None else (losses * row_weights.to(losses)).sum()


def total_weight(rows: Tensor, row_weights: Tensor | None) -> float:
    """Σ w_i in double precision; rows: anything with a row for each."""
    return float(len(rows)) if row_weights is None else float(row_weights.double().sum())

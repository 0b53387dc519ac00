"""How much each row counts in a sum of losses.

Weights of training rows average 1 over all of them, and what the sum is divided by leaves them out: divided by the weights of the
step alone, a row would be weighed against the others of its step only, and at a batch of one not at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def weighted_sum(losses: Tensor, row_weights: Tensor | None) -> Tensor:
    """Σ w_i · l_i, a scalar. Losses: (B,); row_weights: (B,), 0 for padding, or None where every row counts as 1."""
    return losses.sum() if row_weights is None else (losses * row_weights.to(losses)).sum()

"""Logits of many rows from a network, in batches of like length, in the rows' own order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from finetune.data.batches import evaluation_batches

Collate = Callable[[Sequence[Any]], Mapping[str, np.ndarray]]


def to_tensors(batch: Mapping[str, np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    """A collated batch on a device."""
    return {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in batch.items()}


@torch.no_grad()
def predict_logits(
    module: nn.Module, rows: Sequence[Any], lengths: Sequence[int], collate: Collate, *,
    batch_size: int, device: torch.device, rank: int = 0, world: int = 1,
) -> dict[int, np.ndarray]:  # fmt: skip
    """Row index -> logits (C,) float32, for the batches that fall to this rank; leaves the network in eval mode."""
    module.eval()
    found: dict[int, np.ndarray] = {}
    for batch in evaluation_batches(lengths, batch_size)[rank::world]:
        logits = module(**to_tensors(collate([rows[i] for i in batch]), device)).logits.float().cpu().numpy()
        found.update(zip(batch, logits, strict=True))
    return found


def in_order(found: Mapping[int, np.ndarray]) -> np.ndarray:
    """Logits (N, C) in row order."""
    return np.stack([found[i] for i in range(len(found))])

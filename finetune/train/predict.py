"""What a network answers to many rows, in batches of like length, in the rows' own order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import nn

from finetune.data.batches import evaluation_batches
from finetune.tasks.spec import Answers
from finetune.train.economy import without_cache
from finetune.train.job import Collate, EncodedExamples, Moment
from finetune.train.loader import batches_ahead

# For rows that are the same at every moment.
WITHOUT_NOISE = Moment(seed=0, phase=0, epoch=0, cursor=0, step=())


def to_tensors(batch: Mapping[str, np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    """A collated batch on a device."""
    return {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in batch.items()}


@torch.no_grad()
def predict_answers(
    module: nn.Module, rows: Sequence[Any], lengths: Sequence[int], labels: np.ndarray, collate: Collate, *,
    answers: Answers, batch_size: int, device: torch.device, rank: int = 0, world: int = 1, workers: int = 0,
) -> dict[int, np.ndarray]:  # fmt: skip
    """Row index -> what a target keeps of its logits, for the batches that fall to this rank; leaves the network in eval mode.

    labels: the rows' targets, (N, …); answers: of the task's target, which turns a batch's logits and targets into one entry
    per row; workers: processes that make batches ahead; their number changes nothing else.
    """
    module.eval()
    found: dict[int, np.ndarray] = {}
    mine = evaluation_batches(lengths, batch_size)[rank::world]
    examples = EncodedExamples(rows, lengths, labels, collate)
    with (
        without_cache(module),
        closing(batches_ahead(examples, [(batch, WITHOUT_NOISE) for batch in mine], workers)) as batches,
    ):
        for batch, (inputs, targets) in zip(mine, batches, strict=True):
            logits = module(**to_tensors(inputs, device)).logits
            kept = answers(logits, torch.from_numpy(targets).to(device)).cpu().numpy()
            found.update(zip(batch, kept, strict=True))
    return found


def in_order(found: Mapping[int, np.ndarray]) -> np.ndarray:
    """Answers (N, …) in row order."""
    return np.stack([found[i] for i in range(len(found))])

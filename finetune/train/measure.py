"""What is measured on the bare network: validation rows, and gradients to choose layer groups by; alike in every process."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from finetune.data.batches import epoch_steps
from finetune.train.job import Job
from finetune.train.loader import batches_ahead
from finetune.train.predict import WITHOUT_NOISE, in_order, predict_answers, to_tensors
from finetune.transfer.surgical import choose, relative_gradient_norms

# Steps whose gradients are averaged; the authors take five.
GRADIENT_STEPS = 8


def validation_answers(job: Job, accelerator: Accelerator, phase: int | None = None) -> np.ndarray:
    """The validation rows' logits (N, C), or tallies (N, 3) of a language model; leaves the network in evaluation mode.

    phase: the one whose images are looked at, those of the result if None. Each process computes its share.
    """
    rows, collate = job.validation, job.collate if phase is None else job.collate_of_phase.get(phase, job.collate)
    found = predict_answers(
        job.model.module, rows.inputs, rows.lengths, rows.labels, collate,
        answers=job.task.target.answers, batch_size=job.settings.eval_batch_size, device=accelerator.device,
        rank=accelerator.process_index, world=accelerator.num_processes, workers=job.workers,
    )  # fmt: skip
    parts = gather_object([found]) if accelerator.num_processes > 1 else [found]
    return in_order({row: answer for part in parts for row, answer in part.items()})


def choose_layer_groups(job: Job, accelerator: Accelerator, index: int) -> dict[str, Any]:
    """What phase number `index` shall train beside the head, as `Choice.to_json`: see transfer/surgical.py.

    Measured on the first steps that the phase would take. Leaves everything requiring a gradient.
    """
    settings = job.settings
    steps = epoch_steps(
        job.plain.lengths, settings.batch_size, seed=job.seed, phase=index, epoch=0, bucket=settings.bucket_by_length
    )[:GRADIENT_STEPS]
    with closing(_losses(job, accelerator, steps)) as losses:
        norms = relative_gradient_norms(job.model.module, job.model.groups, losses)
    found = [choose(norms, job.plan.phases[index].choose).to_json()]
    if accelerator.num_processes > 1:
        # Rounding may differ between machines, and replicas must not train different groups.
        broadcast_object_list(found)
    return found[0]


def synchronise(accelerator: Accelerator, buffers: dict[str, torch.Tensor]) -> None:
    """Give every process the main one's buffers, in place: each has seen other rows, so running statistics differ."""
    if accelerator.num_processes > 1:
        for buffer in buffers.values():
            torch.distributed.broadcast(buffer, src=0)


def _losses(job: Job, accelerator: Accelerator, steps: Sequence[Sequence[int]]) -> Generator[Iterator[torch.Tensor]]:
    """The parts of each step's mean loss, no larger than those in training, so that they fit into memory."""
    device, target = accelerator.device, job.task.target
    host_weights = None if job.class_weights is None else torch.from_numpy(job.class_weights)
    weights = None if host_weights is None else host_weights.to(device)
    count = job.settings.accumulation * accelerator.num_processes
    parts = [[step[i::count] for i in range(min(count, len(step)))] for step in steps]
    flat = [(rows, WITHOUT_NOISE) for step in parts for rows in step]
    with closing(batches_ahead(job.plain, flat, job.workers)) as batches:

        def losses(of_step: Sequence[Sequence[int]], denominator: float) -> Iterator[torch.Tensor]:
            for rows in of_step:
                inputs, targets = next(batches)
                counted = torch.tensor(job.weights_of(rows), dtype=torch.float32, device=device)
                logits = job.model.module(**to_tensors(inputs, device)).logits
                truth = torch.from_numpy(targets).to(device)
                yield target.loss_sums(logits, truth, weights, job.settings.label_smoothing, counted) / denominator

        for step, of_step in zip(steps, parts, strict=True):
            truth = torch.from_numpy(job.plain.labels[list(step)])
            # A step of a language model may be without any target; its sums are 0 whatever they are divided by.
            yield losses(of_step, target.loss_denominator(truth, host_weights) or 1.0)

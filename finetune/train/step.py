"""One optimizer step, the same on one device or many, in one part or several.

A step's batch is the recipe's `batch_size` over all processes and accumulation parts together, and its loss is divided
by the denominator of the whole step, so that neither number changes the result, but for BatchNorm that trains, which
normalises over the part it sees. Dropout depends on (seed, phase, epoch, step, part, process) alone, so a resumed step
draws what it would have drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from accelerate import Accelerator

from finetune.data.batches import share
from finetune.errors import TrainingError
from finetune.recipe import L2SPSettings, TrainSettings
from finetune.train.job import Batch, Job, Moment
from finetune.train.optimizer import make_optimizer, rates_by_group, rates_by_parameter, set_rates
from finetune.train.predict import to_tensors
from finetune.transfer import l2sp
from finetune.transfer.plan import Phase


class Stepper:
    """Takes the steps of one phase: the network as Accelerate wraps it, a fresh optimizer, and what regularises them.

    index, phase: its number and what it trains. The network must be unwrapped and have its trainability set.
    """

    def __init__(
        self, job: Job, index: int, phase: Phase, accelerator: Accelerator, anchors: Mapping[str, torch.Tensor]
    ) -> None:
        self.job, self.accelerator = job, accelerator
        self.index, self.phase = index, phase
        module, settings = job.model.module, job.settings
        optimizer = make_optimizer(
            module, job.model.groups, self.phase,
            kind=settings.optimizer, weight_decay=_weight_decay(settings, job.l2sp), scaled=accelerator.scaler is not None,
        )  # fmt: skip
        self.wrapped, self.optimizer = accelerator.prepare(module, optimizer)
        self.parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.pull = l2sp.Pull(anchors, job.model.fresh, job.l2sp.alpha, job.l2sp.beta)
        self.host_weights = None if job.class_weights is None else torch.from_numpy(job.class_weights)
        self.weights = None if self.host_weights is None else self.host_weights.to(accelerator.device)

    def set_rates(self, epoch: int, cursor: int, steps: int) -> dict[str, float]:
        """Set the learning rates of step number `cursor` of the `steps` of an epoch; returns them by layer group."""
        set_rates(self.optimizer, self.phase, epoch * steps + cursor, self.phase.epochs * steps)
        return rates_by_group(self.optimizer)

    def wanted(self, plan: Sequence[Sequence[int]], *, epoch: int, first: int) -> list[tuple[list[int], Moment]]:
        """What this process computes of an epoch's steps from number `first` on: the rows of each part, and their moment."""
        return [
            ([row for row, _ in part], Moment(self.job.seed, self.index, epoch, cursor, tuple(plan[cursor])))
            for cursor in range(first, len(plan))
            for part in self._parts(plan[cursor])
        ]

    def take(
        self, rows: Sequence[int], batches: Iterator[Batch], *, epoch: int, cursor: int, steps: int
    ) -> torch.Tensor:
        """Step number `cursor` of the `steps` of an epoch, on these rows; batches: what `wanted` asked for, in that order.

        Returns float64 (2,): the sum of this process's losses, and its share of what the whole sum is divided by.
        """
        job, rank, world = self.job, self.accelerator.process_index, self.accelerator.num_processes
        self.set_rates(epoch, cursor, steps)
        # Also under mixup and CutMix: each row of the step is some row's partner once, at one share for all, so that the
        # mixed targets of a whole step add up to what its labels do.
        labels = torch.from_numpy(job.train.labels[list(rows)])
        denominator = job.task.target.loss_denominator(labels, self.host_weights)
        told = torch.tensor([0.0, denominator / world], dtype=torch.float64, device=self.accelerator.device)
        # A part of a language model's step may be without any target, and so may a whole step, which then has no gradient:
        # its sums are 0, whatever they are divided by. Processes average their gradients, so each gives `world` times its
        # share of the step's mean.
        factor = world / (denominator or 1.0)
        parts = self._parts(rows)
        for turn, part in enumerate(parts):
            batch = next(batches)
            # After the batch is made, which may draw random numbers of its own, or in another process not at all.
            seed_noise(self.accelerator.device, job.seed, self.index, epoch, cursor, turn, rank)
            with nullcontext() if turn == len(parts) - 1 else self.accelerator.no_sync(self.wrapped):
                loss = self._loss(batch, part)
                self.accelerator.backward(loss * factor)
            told[0] += loss.detach()
        self._update()
        return told

    def _parts(self, rows: Sequence[int]) -> list[list[tuple[int, float]]]:
        """This process's parts of a step. A short step has fewer; every process still takes part in each of them."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        accumulation = self.job.settings.accumulation
        rounds = min(accumulation, math.ceil(len(rows) / world))
        return [share(rows, turn * world + rank, accumulation * world) for turn in range(rounds)]

    def _loss(self, batch: Batch, part: Sequence[tuple[int, float]]) -> torch.Tensor:
        """Sum of the losses of a batch's rows, each times its weight, a scalar; part: the rows, and 0 for one that is padding."""
        job, device = self.job, self.accelerator.device
        inputs, targets = batch
        try:
            logits = self.wrapped(**to_tensors(inputs, device)).logits
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise TrainingError(
                "BatchNorm cannot normalise over a single row; choose a train.batch_size that leaves no step, nor part of one, "
                "with one row, or set transfer.batchnorm: freeze"
            ) from error
        counted = job.weights_of([row for row, _ in part]) * [own for _, own in part]
        truth, weights = torch.from_numpy(targets).to(device), torch.tensor(counted, dtype=torch.float32, device=device)
        return job.task.target.loss_sums(logits, truth, self.weights, job.settings.label_smoothing, weights)

    def _update(self) -> None:
        """Regularise, clip, step; then the decoupled pull, which needs the rates that the step used."""
        self.accelerator.unscale_gradients()
        if self.job.l2sp.coupling == "loss":
            l2sp.add_gradient(self.pull, self.parameters)
        if self.job.settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.job.settings.clip_norm)
        self.optimizer.step()
        if self.job.l2sp.coupling == "decoupled" and not self.optimizer.step_was_skipped:
            l2sp.pull_back(self.pull, self.parameters, rates_by_parameter(self.optimizer))
        self.optimizer.zero_grad(set_to_none=True)


def _weight_decay(settings: TrainSettings, pull: L2SPSettings) -> float:
    """The recipe's weight decay; L2-SP takes its place."""
    if settings.weight_decay is not None:
        return settings.weight_decay
    return 0.01 if pull.coupling == "off" else 0.0


def seed_noise(device: torch.device, *parts: int) -> None:
    """Let dropout on a device depend on these numbers alone."""
    seed = int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
    # Not torch.manual_seed, which formats a stack trace at each call where CUDA is there but unused.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)

"""One optimizer step, the same on one device or many, in one part or several.

A step's batch is the recipe's `batch_size` over all processes and accumulation parts together, and its loss is divided
by the denominator of the whole step, so that neither number changes the result. Dropout depends on (seed, phase, epoch,
step, part, process) alone, so a resumed step draws what it would have drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from accelerate import Accelerator

from finetune.data.batches import share
from finetune.recipe import L2SPSettings, TrainSettings
from finetune.train.job import Job
from finetune.train.optimizer import make_optimizer, rates_by_group, rates_by_parameter, set_rates
from finetune.train.predict import to_tensors
from finetune.transfer import l2sp


class Stepper:
    """Takes the steps of one phase: the network as Accelerate wraps it, a fresh optimizer, and what regularises them.

    The network must be unwrapped and have its trainability set.
    """

    def __init__(self, job: Job, phase: int, accelerator: Accelerator, anchors: Mapping[str, torch.Tensor]) -> None:
        self.job, self.accelerator = job, accelerator
        self.index, self.phase = phase, job.plan.phases[phase]
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

    def take(self, rows: Sequence[int], *, epoch: int, cursor: int, steps: int) -> torch.Tensor:
        """Step number `cursor` of the `steps` of an epoch, on these rows.

        Returns float64 (2,): the sum of this process's losses, and its share of what the whole sum is divided by.
        """
        job, settings = self.job, self.job.settings
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        self.set_rates(epoch, cursor, steps)
        targets = torch.from_numpy(job.train.labels[rows])
        denominator = job.task.loss_denominator(targets, self.host_weights, None)
        told = torch.tensor([0.0, denominator / world], dtype=torch.float64, device=self.accelerator.device)
        # A short step has fewer parts; every process still takes part in each of them.
        rounds = min(settings.accumulation, math.ceil(len(rows) / world))
        for turn in range(rounds):
            part = share(rows, turn * world + rank, settings.accumulation * world)
            seed_noise(self.accelerator.device, job.seed, self.index, epoch, cursor, turn, rank)
            with nullcontext() if turn == rounds - 1 else self.accelerator.no_sync(self.wrapped):
                loss = self._loss(part)
                # Processes average their gradients, so each gives `world` times its share of the step's mean.
                self.accelerator.backward(loss * (world / denominator))
            told[0] += loss.detach()
        self._update()
        return told

    def _loss(self, part: Sequence[tuple[int, float]]) -> torch.Tensor:
        """Sum of the losses of some (row, weight), a scalar."""
        job, device = self.job, self.accelerator.device
        rows = [row for row, _ in part]
        logits = self.wrapped(**to_tensors(job.collate([job.train.inputs[row] for row in rows]), device)).logits
        labels = torch.from_numpy(job.train.labels[rows]).to(device)
        counted = torch.tensor([weight for _, weight in part], device=device)
        return job.task.loss_sums(logits, labels, self.weights, job.settings.label_smoothing, counted)

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

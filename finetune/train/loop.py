"""The training loop: phases of epochs of steps, on one device or many, through Accelerate.

Nothing random in it has a history: the order of rows depends on (seed, phase, epoch), dropout on the step as well
(train/step.py). So a checkpoint needs no generator states, and a resumed run comes to the same bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from finetune.data.batches import epoch_steps
from finetune.errors import FinetuneError, Interrupted, TrainingError
from finetune.train.checkpoint import Checkpoint, CheckpointFolder, Progress
from finetune.train.device import memory_format, release
from finetune.train.economy import recomputing, without_cache
from finetune.train.events import Callback, EpochEnded, Notice, PhaseStarted, StepEnded, TrainingResumed
from finetune.train.folding import folded, pairs_of
from finetune.train.job import Batch, Job, Result
from finetune.train.loader import batches_ahead
from finetune.train.measure import choose_layer_groups, synchronise, validation_answers
from finetune.train.optimizer import optimizer_tensors, restore_optimizer
from finetune.train.phase import (
    check_phase,
    check_replicas,
    digest,
    fingerprint,
    put_back,
    set_modes,
    set_trainable,
    tensors_of,
)
from finetune.train.recalibration import settle_batchnorm
from finetune.train.records import describe_epoch, describe_phase, is_better
from finetune.train.step import Stepper
from finetune.transfer import batchnorm, l2sp

# Steps between looks at what would make a GPU wait: the loss's value, and what other processes were asked to do.
LOOK_EVERY = 10


def fit(
    job: Job,
    accelerator: Accelerator,
    checkpoints: CheckpointFolder,
    *,
    resume: bool,
    emit: Callback,
    stop: Callable[[], bool],
) -> Result:
    """Train through all phases and leave the best weights in `job.model.module`, which must hold the backbone's own.

    TrainingError when a loss is not finite or a phase did not train what it should; Interrupted after a checkpoint
    when `stop()` turns true, in any process.
    """
    module, whole = job.model.module, job.model
    # From here on the layer groups hold what may learn; what `batchnorm: freeze` keeps still belongs to none of them.
    groups = batchnorm.that_may_learn(module, whole.groups, job.batchnorm)
    job = replace(job, model=replace(whole, groups=groups))
    learned = groups.pick(job.plan.may_train)
    checkpoints = checkpoints.depending_on(backbone=digest(fingerprint(module)))
    module.to(
        memory_format=memory_format(
            module, job.settings.memory_format, accelerator.device, frozen=job.batchnorm == "freeze"
        )
    )
    # θ⁰, taken before any checkpoint is loaded.
    names = {name for group in learned for name in group.parameters} - job.model.fresh
    anchors = {
        name: parameter.detach().to(accelerator.device, copy=True)
        for name, parameter in module.named_parameters()
        if name in names
    }
    # Decided on the backbone's own weights, so that a resumed run decides alike.
    pairs = pairs_of(job)
    saved = checkpoints.load() if resume else None
    if saved is not None:
        put_back(saved.model, into=tensors_of(module, learned))
        emit(TrainingResumed(saved.progress.global_step, tuple(saved.progress.history)))
    progress = saved.progress if saved else Progress()
    with (
        without_cache(module),
        recomputing(module, job.settings.gradient_checkpointing),
        folded(pairs),
    ):
        while progress.phase < len(job.plan.phases):
            phase = _PhaseRun(job, accelerator, checkpoints, anchors, emit, stop)
            try:
                progress = phase.start(progress, saved)
                saved = None  # its tensors are in place by now
                progress = phase.run(progress)
            finally:
                del phase  # with its wrapped network and optimizer, so that their memory is free for the next
                release(accelerator, module)
    assert progress.best is not None, "every phase evaluates at least once"
    trained = {name for phase in progress.phases for name in phase["trainable"]}
    facts = settle_batchnorm(replace(job, model=whole), accelerator, trained, progress.best, emit)
    module.to(memory_format=torch.contiguous_format)
    return Result(progress.history, progress.phases, progress.global_step, progress.choice, facts)


class _PhaseRun:
    """One phase: a network with its trainability set, an optimizer of its own, and the best weights so far."""

    def __init__(
        self, job: Job, accelerator: Accelerator, checkpoints: CheckpointFolder,
        anchors: Mapping[str, torch.Tensor], emit: Callback, stop: Callable[[], bool],
    ) -> None:  # fmt: skip
        self.job, self.accelerator, self.checkpoints = job, accelerator, checkpoints
        self.anchors, self.emit, self.stop = anchors, emit, stop
        self.module = job.model.module
        self.rank, self.world = accelerator.process_index, accelerator.num_processes

    def start(self, progress: Progress, saved: Checkpoint | None) -> Progress:
        """Set what trains, wrap, and make a new optimizer; or go on with the saved one."""
        job, groups = self.job, self.job.model.groups
        progress = self._choose(progress)
        phase = self.phase
        self.groups = groups.pick(phase.trainable)
        set_trainable(self.module, groups, phase.trainable)
        self.stepper = Stepper(job, progress.phase, phase, self.accelerator, self.anchors)
        self.best = {name: tensor.clone() for name, tensor in tensors_of(self.module, self.groups).items()}
        if saved is None:
            progress = self._scored_anew(progress.with_(phase_start=fingerprint(self.module)))
        else:
            put_back(saved.best, into=self.best)
            restore_optimizer(self.stepper.optimizer.optimizer, dict(saved.optimizer))
            if self.accelerator.scaler is not None and saved.scaler:
                self.accelerator.scaler.load_state_dict(dict(saved.scaler))
        steps = math.ceil(len(job.train.labels) / job.settings.batch_size)
        trainable = tuple(group.name for group in self.groups if group.parameters)
        self.emit(
            PhaseStarted(
                progress.phase, len(job.plan.phases), phase.name, trainable, phase.epochs, steps, phase.image_size
            )
        )
        return progress

    def _choose(self, progress: Progress) -> Progress:
        """Set `self.phase`: the plan's, with what it leaves to a measurement measured, or as the checkpoint remembers it."""
        self.phase = phase = self.job.plan.phases[progress.phase]
        if not phase.choose:
            return progress
        choice = progress.choice
        if choice is None:
            choice = choose_layer_groups(self.job, self.accelerator, progress.phase)
            self.emit(Notice(choice["reason"], choice))
        self.phase = phase.chosen([self.job.model.groups.names.index(name) for name in choice["chosen"]])
        return progress.with_(choice=choice)

    def _scored_anew(self, progress: Progress) -> Progress:
        """The score to beat, in this phase's images, if those of the phase before had another size."""
        sizes = [phase.image_size for phase in self.job.plan.phases]
        if progress.best is None or sizes[progress.phase] == sizes[progress.phase - 1]:
            return progress
        value, loss = self._score(progress)
        self.emit(
            Notice(f"with images of this phase's size, the weights so far have a validation metric of {value:.4f}")
        )
        return progress.with_(best={**progress.best, "metric": value, "loss": loss})

    def run(self, progress: Progress) -> Progress:
        """All epochs of the phase, or as many as its patience allows; then the proof of what moved."""
        ended = "epochs"
        while progress.epoch < self.phase.epochs:
            if self.phase.patience is not None and progress.waiting >= self.phase.patience:
                ended = "patience"
                break
            progress = self._epoch(progress)
        return self._finish(progress, ended)

    def _epoch(self, progress: Progress) -> Progress:
        """Train on every row once, evaluate, keep the weights if they are the best, and write a checkpoint."""
        job = self.job
        plan = epoch_steps(
            job.train.lengths, job.settings.batch_size,
            seed=job.seed, phase=progress.phase, epoch=progress.epoch, bucket=job.settings.bucket_by_length,
        )  # fmt: skip
        set_modes(self.module, job.model.groups, self.phase.trainable)
        wanted = self.stepper.wanted(plan, epoch=progress.epoch, first=progress.cursor)
        with closing(batches_ahead(job.train, wanted, job.workers)) as batches:
            progress = self._steps(plan, batches, progress)
        synchronise(self.accelerator, batchnorm.statistics(self.module, self.groups))
        began = time.perf_counter()
        progress = self._evaluate(progress)
        seconds = progress.phase_seconds + progress.epoch_seconds + time.perf_counter() - began
        progress = progress.with_(
            epoch=progress.epoch + 1, cursor=0, losses=[], epoch_seconds=0.0, phase_seconds=seconds
        )
        self._save(progress)
        if self._sum(torch.tensor([float(self.stop())], device=self.accelerator.device))[0]:
            raise Interrupted("stopped after an epoch and its checkpoint")
        return progress

    def _steps(self, plan: Sequence[Sequence[int]], batches: Iterator[Batch], first: Progress) -> Progress:
        """The steps of an epoch from the cursor on, with a checkpoint where one is due or the run shall stop."""
        device, every = self.accelerator.device, self.job.settings.checkpoint_every_steps
        loss = torch.tensor(first.losses[self.rank] if first.losses else [0.0, 0.0], dtype=torch.float64, device=device)
        began, rows, progress, asked = time.perf_counter(), 0, first, False
        for cursor in range(first.cursor, len(plan)):
            loss += self.stepper.take(plan[cursor], batches, epoch=first.epoch, cursor=cursor, steps=len(plan))
            rows += len(plan[cursor])
            progress = progress.with_(
                cursor=cursor + 1, global_step=progress.global_step + 1, phase_steps=progress.phase_steps + 1
            )
            last = cursor + 1 == len(plan)
            due = every is not None and progress.global_step % every == 0 and not last
            asked = asked or self.stop()
            stopping = asked and self.world == 1
            if device.type == "cpu" or due or last or stopping or (cursor + 1) % LOOK_EVERY == 0:
                mean, stopping = self._look(loss, progress, asked)
                speed = rows / (time.perf_counter() - began)
                self.emit(StepEnded(progress.phase, progress.epoch + 1, cursor + 1, len(plan), mean, speed))
            if due or stopping:
                self._save(self._account(progress, loss, first.epoch_seconds + time.perf_counter() - began))
            if stopping:
                raise Interrupted("stopped at a step boundary after writing a checkpoint")
        return self._account(progress, loss, first.epoch_seconds + time.perf_counter() - began)

    def _evaluate(self, progress: Progress) -> Progress:
        """Score the validation rows, keep the weights if they are the best so far, and record the epoch."""
        job, epoch = self.job, progress.epoch + 1
        value, loss = self._score(progress)
        best = progress.best
        improved = is_better(value, loss, best, higher_is_better=job.higher_is_better)
        if improved:
            put_back(tensors_of(self.module, self.groups), into=self.best)
            best = {"metric": value, "loss": loss, "phase": progress.phase, "epoch": epoch}
        # A run that was stopped after the epoch's last step has a new optimizer, whose rates nobody has set yet.
        rates = self.stepper.set_rates(progress.epoch, progress.cursor - 1, progress.cursor)
        record = describe_epoch(
            progress, self.phase, rows=len(job.train.labels), validation_loss=loss, validation_metric=value,
            rates=rates, drift=self._drift(),
        )  # fmt: skip
        self.emit(EpochEnded(progress.phase, epoch, record, improved))
        return progress.with_(
            best=best, waiting=0 if improved else progress.waiting + 1, history=[*progress.history, record]
        )

    def _score(self, progress: Progress) -> tuple[float, float]:
        """Metric and loss of the weights as they are, on the validation rows."""
        answers = validation_answers(self.job, self.accelerator, progress.phase)
        if not np.isfinite(answers).all():
            raise self._diverged("the validation logits are not finite", progress)
        labels = self.job.validation.labels
        return self.job.score(answers, labels), self.job.validation_loss(answers, labels)

    def _finish(self, progress: Progress, ended: str) -> Progress:
        """Prove what moved, put the best weights back, and stand at the start of the next phase."""
        after = fingerprint(self.module)
        if self.world > 1:
            check_replicas(self.phase, gather_object([after]))
        check = check_phase(self.phase, self.job.model.groups, progress.phase_start, after)
        put_back(self.best, into=tensors_of(self.module, self.groups))
        choice = progress.choice if self.job.plan.phases[progress.phase].choose else None
        record = describe_phase(progress, self.phase, self.job.model.groups, check, ended, choice)
        return progress.with_(
            phase=progress.phase + 1, epoch=0, cursor=0, waiting=0, phase_seconds=0.0, phase_steps=0, phase_start={},
            phases=[*progress.phases, record],
        )  # fmt: skip

    def _drift(self) -> dict[str, float]:
        """Relative distance from θ⁰ per trainable layer group; the head's covers its pretrained parts, if it has any."""
        drifts = {}
        for group in self.groups:
            own = {n: self.stepper.parameters[n] for n in group.parameters if n in self.anchors}
            if own:
                drifts[group.name] = l2sp.drift(own, self.anchors)
        return drifts

    def _save(self, progress: Progress) -> None:
        """Write a checkpoint from the main process; where it fails, all processes end with the same error."""
        failure: list[FinetuneError | None] = [None]
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}
            model = tensors_of(self.module, self.job.model.groups.pick(self.job.plan.may_train))
            state = optimizer_tensors(self.stepper.optimizer.optimizer)
            try:
                self.checkpoints.save(Checkpoint(progress, model, state, self.best, scaler))
            except FinetuneError as error:
                failure = [error]
        if self.world > 1:
            broadcast_object_list(failure)
        if failure[0] is not None:
            raise failure[0]

    def _look(self, loss: torch.Tensor, progress: Progress, asked: bool) -> tuple[float, bool]:
        """Mean loss of the epoch so far, and whether any process was asked to stop: all learn the same in one exchange."""
        total, denominator, stopping = self._sum(torch.cat([loss, loss.new_tensor([float(asked)])]))
        if not math.isfinite(total):
            raise self._diverged(f"the loss became {total}", progress)
        # Until the first target of an epoch there is no mean: a language model's steps may be without any.
        return total / (denominator or 1.0), stopping > 0

    def _account(self, progress: Progress, loss: torch.Tensor, seconds: float) -> Progress:
        """Progress with each process's own losses, so that a resumed sum has the same bits, and the time it took."""
        losses = self.accelerator.gather(loss).view(-1, 2) if self.world > 1 else loss[None]
        return progress.with_(losses=losses.tolist(), epoch_seconds=seconds)

    def _sum(self, values: torch.Tensor) -> list[float]:
        """Values summed over processes."""
        summed: list[float] = (self.accelerator.reduce(values, reduction="sum") if self.world > 1 else values).tolist()
        return summed

    def _diverged(self, what: str, progress: Progress) -> TrainingError:
        where = f"phase '{self.phase.name}', epoch {progress.epoch + 1}, step {progress.cursor}"
        or_else = "" if self.accelerator.mixed_precision == "no" else ", or set train.precision to fp32"
        return TrainingError(f"{what} in {where}; lower transfer.learning_rate{or_else}")

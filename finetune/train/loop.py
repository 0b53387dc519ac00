"""The training loop: phases of epochs of steps, on one device or many, through Accelerate.

Two things make it the same everywhere. A step's batch is the recipe's `batch_size` over all processes and accumulation
parts together, and its loss is divided by the denominator of the whole step, so that neither number changes the result.
And nothing random has a history: the order of rows depends on (seed, phase, epoch), dropout on (seed, phase, epoch,
step, part, process); so a checkpoint needs no generator states.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from finetune.data.batches import epoch_steps, share
from finetune.errors import Interrupted, TrainingError
from finetune.train.checkpoint import Checkpoint, CheckpointFolder, Progress
from finetune.train.events import Callback, EpochEnded, PhaseStarted, StepEnded
from finetune.train.job import Job, Result
from finetune.train.optimizer import (
    make_optimizer,
    optimizer_tensors,
    rates_by_group,
    rates_by_parameter,
    restore_optimizer,
    set_rates,
)
from finetune.train.phase import check_phase, check_replicas, fingerprint, set_modes, set_trainable
from finetune.train.predict import in_order, predict_logits, to_tensors
from finetune.transfer import l2sp

# Steps between looks at what would make a GPU wait or processes talk: the loss's value, a request to stop.
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
    """Train through all phases and leave the best weights in `job.model.module`.

    TrainingError when the loss is not finite or a phase did not train what it should; Interrupted after a checkpoint
    when `stop()` turns true.
    """
    module = job.model.module
    learned = {n for group in job.model.groups.trainable(job.plan.deepest) for n in group.parameters}
    # θ⁰, taken before any checkpoint is loaded: the network still holds the backbone's own weights.
    anchors = {
        n: p.detach().clone().to(accelerator.device)
        for n, p in module.named_parameters()
        if n in learned - job.model.fresh
    }
    saved = checkpoints.load() if resume else None
    if saved is not None:
        module.load_state_dict(saved.model)
    progress = saved.progress if saved else Progress()
    while progress.phase < len(job.plan.phases):
        progress = _PhaseRun(job, accelerator, checkpoints, anchors, emit, stop).run(progress, saved)
        saved = None
    return Result(progress.history, progress.phases, progress.global_step)


class _PhaseRun:
    """One phase: a network with its trainability set, an optimizer of its own, and where it stands."""

    def __init__(
        self, job: Job, accelerator: Accelerator, checkpoints: CheckpointFolder,
        anchors: Mapping[str, torch.Tensor], emit: Callback, stop: Callable[[], bool],
    ) -> None:  # fmt: skip
        self.job, self.accelerator, self.checkpoints = job, accelerator, checkpoints
        self.anchors, self.emit, self.stop = anchors, emit, stop
        self.module = job.model.module
        self.rank, self.world = accelerator.process_index, accelerator.num_processes

    def run(self, progress: Progress, saved: Checkpoint | None) -> Progress:
        job, groups = self.job, self.job.model.groups
        self.phase = phase = job.plan.phases[progress.phase]
        set_trainable(self.module, groups, phase.trainable)
        decay = (
            job.settings.weight_decay if job.settings.weight_decay is not None else 0.01 * (job.l2sp.coupling == "off")
        )
        optimizer = make_optimizer(self.module, groups, phase, kind=job.settings.optimizer, weight_decay=decay)
        self.accelerator.free_memory()
        self.wrapped, self.optimizer = self.accelerator.prepare(self.module, optimizer)
        self.parameters = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        self.pull = l2sp.Pull(self.anchors, job.model.fresh, job.l2sp.alpha, job.l2sp.beta)
        self.host_weights = None if job.class_weights is None else torch.from_numpy(job.class_weights)
        self.weights = None if self.host_weights is None else self.host_weights.to(self.accelerator.device)
        if saved is not None:
            restore_optimizer(self.optimizer.optimizer, dict(saved.optimizer))
            if self.accelerator.scaler is not None and saved.scaler:
                self.accelerator.scaler.load_state_dict(dict(saved.scaler))
            self.best = {name: tensor.to(self.accelerator.device) for name, tensor in saved.best.items()}
        else:
            progress = progress.with_(phase_start=fingerprint(self.module))
            self.best = self._trainable_state()
        steps = math.ceil(len(job.train.labels) / job.settings.batch_size)
        self.emit(
            PhaseStarted(
                progress.phase,
                len(job.plan.phases),
                phase.name,
                tuple(g.name for g in groups.trainable(phase.trainable)),
                phase.epochs,
                steps,
            )
        )
        ended = "epochs"
        while progress.epoch < phase.epochs:
            if phase.patience is not None and progress.waiting >= phase.patience:
                ended = "patience"
                break
            progress = self._epoch(progress)
        return self._finish(progress, ended)

    def _epoch(self, progress: Progress) -> Progress:
        job, began = self.job, time.perf_counter()
        plan = epoch_steps(
            job.train.lengths, job.settings.batch_size,
            seed=job.seed, phase=progress.phase, epoch=progress.epoch, bucket=job.settings.bucket_by_length,
        )  # fmt: skip
        set_modes(self.module, job.model.groups, self.phase.trainable)
        done_rows, first = 0, progress.cursor
        loss = torch.tensor(
            [progress.loss_sum, progress.loss_rows], dtype=torch.float64, device=self.accelerator.device
        )
        for cursor in range(first, len(plan)):
            loss += self._step(plan[cursor], progress, cursor, len(plan))
            done_rows += len(plan[cursor])
            look = (cursor + 1) % LOOK_EVERY == 0 or cursor + 1 == len(plan)
            if look or self.accelerator.device.type == "cpu":
                self._tell_step(loss, progress, cursor, len(plan), done_rows / (time.perf_counter() - began))
            every = job.settings.checkpoint_every_steps
            due = every is not None and (progress.global_step + cursor - first + 1) % every == 0
            stopping = self._should_stop(look)
            if (due or stopping) and cursor + 1 < len(plan):
                total = self._sum_over_processes(loss)
                here = progress.with_(
                    cursor=cursor + 1, global_step=progress.global_step + cursor - first + 1,
                    loss_sum=float(total[0]), loss_rows=float(total[1]),
                    phase_seconds=progress.phase_seconds + time.perf_counter() - began,
                )  # fmt: skip
                self._save(here)
                if stopping:
                    raise Interrupted("stopped at a step boundary after writing a checkpoint")
        total = self._sum_over_processes(loss)
        trained = time.perf_counter() - began
        progress = progress.with_(
            global_step=progress.global_step + len(plan) - first, phase_steps=progress.phase_steps + len(plan)
        )
        progress = self._evaluate(progress, float(total[0] / total[1]), trained, done_rows / trained)
        progress = progress.with_(
            epoch=progress.epoch + 1, cursor=0, loss_sum=0.0, loss_rows=0.0,
            phase_seconds=progress.phase_seconds + time.perf_counter() - began,
        )  # fmt: skip
        self._save(progress)
        if self._should_stop(True):
            raise Interrupted("stopped after an epoch and its checkpoint")
        return progress

    def _step(self, step: Sequence[int], progress: Progress, cursor: int, steps: int) -> torch.Tensor:
        """One optimizer step; this process's share of (loss · denominator, denominator), float64 (2,)."""
        job, accelerator = self.job, self.accelerator
        set_rates(self.optimizer, self.phase, progress.epoch * steps + cursor, self.phase.epochs * steps)
        labels = job.train.labels
        denominator = job.task.loss_denominator(torch.from_numpy(labels[step]), self.host_weights, None)
        parts = job.settings.accumulation * self.world
        told = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
        for micro in range(job.settings.accumulation):
            part = share(step, micro * self.world + self.rank, parts)
            rows = [row for row, _ in part]
            batch = to_tensors(job.collate([job.train.inputs[row] for row in rows]), accelerator.device)
            targets = torch.from_numpy(labels[rows]).to(accelerator.device)
            counted = torch.tensor([weight for _, weight in part], device=accelerator.device)
            torch.manual_seed(_noise_seed(job.seed, progress.phase, progress.epoch, cursor, micro, self.rank))
            last = micro == job.settings.accumulation - 1
            with nullcontext() if last else accelerator.no_sync(self.wrapped):
                logits = self.wrapped(**batch).logits
                loss = job.task.loss_sums(logits, targets, self.weights, job.settings.label_smoothing, counted)
                # Processes average their gradients, so each gives `world` times its share of the step's mean.
                accelerator.backward(loss * (self.world / denominator))
            told[0] += loss.detach().double()
        told[1] += denominator / self.world
        self._update()
        return told

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

    def _evaluate(self, progress: Progress, train_loss: float, seconds: float, speed: float) -> Progress:
        """Score the validation rows, keep the weights if they are the best so far, and record the epoch."""
        job = self.job
        logits = self._predict_validation()
        value, loss = job.score(logits, job.validation.labels), job.validation_loss(logits, job.validation.labels)
        best = progress.best
        # Of epochs with the same metric the one with the lower loss is better: small validation sets tie often.
        rank = (value if job.higher_is_better else -value, -loss)
        improved = best is None or rank > ((best["metric"] if job.higher_is_better else -best["metric"]), -best["loss"])
        if improved:
            self.best = self._trainable_state()
            best = {"metric": value, "loss": loss, "phase": progress.phase, "epoch": progress.epoch + 1}
        record = {
            "phase": progress.phase,
            "phase_name": self.phase.name,
            "epoch": progress.epoch + 1,
            "step": progress.global_step,
            "train_loss": train_loss,
            "validation_loss": loss,
            "validation_metric": value,
            "learning_rates": rates_by_group(self.optimizer),
            "drift": self._drift(),
            "seconds": seconds,
            "rows_per_second": speed,
        }
        self.emit(EpochEnded(progress.phase, progress.epoch + 1, record, improved))
        return progress.with_(
            best=best, waiting=0 if improved else progress.waiting + 1, history=[*progress.history, record]
        )

    def _finish(self, progress: Progress, ended: str) -> Progress:
        """Prove what moved, put the best weights back, and stand at the start of the next phase."""
        after = fingerprint(self.module)
        if self.world > 1:
            check_replicas(self.phase, gather_object([after]))
        groups = self.job.model.groups
        check = check_phase(self.phase, groups, progress.phase_start, after)
        self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        self.accelerator.free_memory()
        with torch.no_grad():
            state = self.module.state_dict(keep_vars=True)
            for name, tensor in self.best.items():
                state[name].copy_(tensor)
        own = [r for r in progress.history if r["phase"] == progress.phase]
        best = progress.best or {}
        summary = {
            "index": progress.phase,
            "name": self.phase.name,
            "epochs_planned": self.phase.epochs,
            "epochs_run": len(own),
            "trainable": list(check.moved),
            "learning_rates": {g.name: rate for g, rate in zip(groups.groups, self.phase.learning_rates, strict=True) if rate},
            "schedule": self.phase.schedule,
            "best_epoch": int(best["epoch"]) if best.get("phase") == progress.phase else None,
            "best": best.get("metric"),
            "ended": ended,
            "steps": progress.phase_steps,
            "seconds": progress.phase_seconds,
            "check": {"moved": list(check.moved), "frozen": list(check.frozen), "unmoved_parameters": list(check.unmoved)},
        }  # fmt: skip
        return progress.with_(
            phase=progress.phase + 1, epoch=0, cursor=0, waiting=0, phase_seconds=0.0, phase_steps=0,
            phase_start={}, phases=[*progress.phases, summary],
        )  # fmt: skip

    def _predict_validation(self) -> np.ndarray:
        job = self.job
        found = predict_logits(
            self.module, job.validation.inputs, job.validation.lengths, job.collate,
            batch_size=job.settings.eval_batch_size, device=self.accelerator.device, rank=self.rank, world=self.world,
        )  # fmt: skip
        parts = gather_object([found]) if self.world > 1 else [found]
        return in_order({row: logits for part in parts for row, logits in part.items()})

    def _drift(self) -> dict[str, float]:
        """Relative distance from θ⁰ per trainable layer group; the head's covers its pretrained parts, if it has any."""
        drifts = {}
        for group in self.job.model.groups.trainable(self.phase.trainable):
            own = {n: self.parameters[n] for n in group.parameters if n in self.anchors}
            if own:
                drifts[group.name] = l2sp.drift(own, self.anchors)
        return drifts

    def _trainable_state(self) -> dict[str, torch.Tensor]:
        names = {n for g in self.job.model.groups.trainable(self.phase.trainable) for n in g.parameters}
        modules = {m for g in self.job.model.groups.trainable(self.phase.trainable) for m in g.modules}
        return {
            n: t.detach().clone()
            for n, t in self.module.state_dict().items()
            if n in names or n.rpartition(".")[0] in modules
        }

    def _save(self, progress: Progress) -> None:
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}
            self.checkpoints.save(
                Checkpoint(
                    progress, self.module.state_dict(), optimizer_tensors(self.optimizer.optimizer), self.best, scaler
                )
            )
        self.accelerator.wait_for_everyone()

    def _tell_step(self, loss: torch.Tensor, progress: Progress, cursor: int, steps: int, speed: float) -> None:
        mean = float(loss[0] / loss[1])
        if not math.isfinite(mean):
            raise TrainingError(
                f"the loss became {mean} in phase '{self.phase.name}', epoch {progress.epoch + 1}, step {cursor + 1}; "
                "lower transfer.learning_rate, or set train.precision to fp32"
            )
        self.emit(StepEnded(progress.phase, progress.epoch + 1, cursor + 1, steps, mean, speed))

    def _should_stop(self, look: bool) -> bool:
        """Whether any process was asked to stop; processes agree, so none is left waiting for another."""
        if self.world == 1:
            return self.stop()
        if not look:
            return False
        asked = torch.tensor(float(self.stop()), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, reduction="sum") > 0)

    def _sum_over_processes(self, loss: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(loss, reduction="sum") if self.world > 1 else loss


def _noise_seed(*parts: int) -> int:
    """A seed for dropout that depends on these numbers alone."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)

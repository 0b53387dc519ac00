"""What a run writes down: one record per epoch, one per phase, and which epoch was the best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.model.groups import LayerGroups
from finetune.train.checkpoint import Progress
from finetune.train.phase import PhaseCheck
from finetune.transfer.plan import Phase


def is_better(metric: float, loss: float, best: Mapping[str, float] | None, *, higher_is_better: bool) -> bool:
    """Whether an epoch beats the best so far: by the metric, and where that ties, as it often does on few validation
    rows, by a lower validation loss."""
    if best is None:
        return True
    sign = 1 if higher_is_better else -1
    return (sign * metric, -loss) > (sign * best["metric"], -best["loss"])


def describe_epoch(
    progress: Progress, phase: Phase, *, rows: int, validation_loss: float, validation_metric: float,
    rates: Mapping[str, float], drift: Mapping[str, float],
) -> dict[str, Any]:  # fmt: skip
    """A line of history, for an epoch whose steps are done. `seconds` is the time of its steps, interruptions left out."""
    sums, denominators = zip(*progress.losses, strict=True)
    return {
        "phase": progress.phase,
        "phase_name": phase.name,
        "epoch": progress.epoch + 1,
        "step": progress.global_step,
        "train_loss": sum(sums) / sum(denominators),
        "validation_loss": validation_loss,
        "validation_metric": validation_metric,
        "learning_rates": dict(rates),
        "drift": dict(drift),
        "seconds": progress.epoch_seconds,
        "rows_per_second": rows / progress.epoch_seconds,
    }


def describe_phase(
    progress: Progress, phase: Phase, groups: LayerGroups, check: PhaseCheck, ended: str, choice: dict[str, Any] | None
) -> dict[str, Any]:
    """The record of a finished phase; `best_epoch` is None when no epoch of it beat those of the phases before.

    choice: why it trained these layer groups, if it chose them itself.
    """
    best = progress.best or {}
    rates = zip(groups.names, phase.learning_rates, strict=True)
    return {
        "index": progress.phase,
        "name": phase.name,
        "epochs_planned": phase.epochs,
        "epochs_run": progress.epoch,
        "trainable": list(check.moved),
        "choice": choice,
        "learning_rates": {name: rate for name, rate in rates if rate},
        "schedule": phase.schedule,
        "image_size": phase.image_size,
        "best_epoch": int(best["epoch"]) if best.get("phase") == progress.phase else None,
        "best": best.get("metric"),
        "ended": ended,
        "steps": progress.phase_steps,
        "seconds": progress.phase_seconds,
        "check": {"moved": list(check.moved), "frozen": list(check.frozen), "unmoved_parameters": list(check.unmoved)},
    }

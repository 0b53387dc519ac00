"""What each process of test_many_processes does; run by torch.distributed.run. Writes what came of it to a folder."""

from __future__ import annotations

import itertools
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from language_samples import documents, improving, language_job, packed
from picture_samples import picture_job
from safetensors.torch import save_file
from train_samples import rising, small_job, timeless, train

from finetune.errors import BundleError, FinetuneError
from finetune.recipe import L2SPSettings
from finetune.train import checkpoint
from finetune.train.events import Event, StepEnded
from finetune.train.job import Job
from finetune.train.phase import fingerprint

RANK = int(os.environ.get("RANK", "0"))


def smooth_job() -> Job:
    """Without dropout and Adam's division by tiny gradients, so that processes change the result by rounding alone.

    Of 21 rows in batches of five the last leaves nothing for the second process. They count unequally.
    """
    pull = L2SPSettings(coupling="loss", alpha=0.1, beta=0.01)
    counted = np.random.default_rng(6).uniform(0.1, 4.0, 21)
    return rising(
        small_job(
            rows=21, dropout=0.0, optimizer="sgd", l2sp=pull, batch_size=5, label_smoothing=0.1, row_weights=counted
        )
    )


def noisy_job() -> Job:
    pull = L2SPSettings(coupling="decoupled", alpha=1.0, beta=0.1)
    return small_job(batch_size=5, accumulation=2, l2sp=pull)


def smooth_language(adapter: str) -> Job:
    """Of documents without targets, of unequal lengths, and too few in the last step for the second process."""
    transfer = {"head_epochs": 1, "epochs": 1}
    return improving(
        language_job(adapter=adapter, rows=documents(16), batch_size=5, accumulation=2, dropout=0.0, optimizer="sgd", transfer=transfer)
    )  # fmt: skip


def noisy_language() -> Job:
    pull = L2SPSettings(coupling="decoupled", alpha=1.0, beta=0.1)
    return language_job(adapter="lora", rows=packed(documents(22), 2), l2sp=pull, gradient_checkpointing=True)


def frozen_pictures() -> Job:
    return rising(picture_job(rows=7, batch_size=4, batchnorm="freeze", optimizer="sgd"))


def choosing_pictures() -> Job:
    """Everything at once in which processes could come apart: BatchNorm that learns, a choice, a recalibration."""
    transfer = {"unfreeze": "auto", "auto_groups": 2, "depth": "all"}
    return picture_job(rows=16, batch_size=8, accumulation=2, batchnorm="recalibrate", transfer=transfer)


def outcome(job: Job, folder: Path, **options: Any) -> dict[str, Any]:
    """What a run of this job came to, or the words it ended with."""
    try:
        result = train(job, folder, **options)
    except FinetuneError as error:
        return {"ended": f"{type(error).__name__}: {error}"}
    return {
        "prints": fingerprint(job.model.module), "history": timeless(result.history), "phases": timeless(result.phases),
        "choice": result.choice, "batchnorm": result.batchnorm,
    }  # fmt: skip


def stop_at(rank: int, step: int, events: list[Event]) -> Any:
    """One process alone is asked to stop, in the middle of an epoch."""
    return lambda: rank == RANK and sum(isinstance(event, StepEnded) for event in events) >= step


def not_a_number_in_one_process() -> Job:
    job, calls = small_job(), itertools.count()
    sums = job.task.target.loss_sums
    spoiled = lambda *args: sums(*args) * (float("nan") if RANK == 1 and next(calls) == 8 else 1.0)  # noqa: E731
    return replace(job, task=replace(job.task, target=replace(job.task.target, loss_sums=spoiled)))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    job = smooth_job()
    found["smooth"] = outcome(job, folder / "smooth")
    save_file({n: p.detach() for n, p in job.model.module.named_parameters()}, folder / f"smooth{RANK}.safetensors")

    found["noisy"] = outcome(noisy_job(), folder / "noisy")
    for number, (rank, step) in enumerate([(1, 2), (0, 13)]):
        events: list[Event] = []
        stopped = folder / f"stopped{number}"
        found[f"stopped {number}"] = outcome(noisy_job(), stopped, stop=stop_at(rank, step, events), events=events)
        found[f"resumed {number}"] = outcome(noisy_job(), stopped, resume=True)

    # Of seven rows in steps of four, two processes have two and two, then two and one; frozen BatchNorm does not mind.
    found["pictures frozen"] = outcome(frozen_pictures(), folder / "pictures frozen")
    found["pictures"] = outcome(choosing_pictures(), folder / "pictures")
    asked = itertools.count()
    found["pictures stopped"] = outcome(choosing_pictures(), folder / "stopped pictures", stop=lambda: next(asked) == 5)
    found["pictures resumed"] = outcome(choosing_pictures(), folder / "stopped pictures", resume=True)

    for adapter in ("none", "lora"):
        job = smooth_language(adapter)
        found[f"language {adapter}"] = outcome(job, folder / f"language {adapter}")
        save_file(
            {n: p.detach().clone() for n, p in job.model.module.named_parameters()},
            folder / f"{adapter}{RANK}.safetensors",
        )
    found["noisy language"] = outcome(noisy_language(), folder / "noisy language")
    events = []
    found["language stopped"] = outcome(
        noisy_language(), folder / "stopped language", stop=stop_at(1, 2, events), events=events
    )
    found["language resumed"] = outcome(noisy_language(), folder / "stopped language", resume=True)

    found["no number"] = outcome(not_a_number_in_one_process(), folder / "no number")

    def full(*_: object) -> None:
        raise BundleError("the disk is full")

    checkpoint.require_space = full
    found["full"] = outcome(small_job(), folder / "full")
    (folder / f"found{RANK}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

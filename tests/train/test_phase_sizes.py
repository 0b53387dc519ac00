"""Phases whose pictures have a size of their own are judged at that size, and the next one starts from a score at its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from picture_samples import SIDE, picture_job, stack
from train_samples import accuracy, timeless, train

from finetune.errors import Interrupted
from finetune.train.events import EpochEnded, Event, Notice, PhaseStarted
from finetune.train.job import Job
from finetune.train.phase import fingerprint
from finetune.transfer.plan import Plan

SMALL = SIDE // 2


def halved(pictures: Sequence[Any]) -> dict[str, np.ndarray]:
    return {name: batch[:, :, ::2, ::2].copy() for name, batch in stack(pictures).items()}


def resized_job(**options: Any) -> Job:
    """Small pictures in the first of two phases."""
    job = picture_job(transfer={"head_epochs": 2, "epochs": 2, "learning_rate": 1e-4}, **options)
    first, second = job.plan.phases
    return replace(
        job, plan=Plan((replace(first, image_size=SMALL), second)), collate_of_phase={0: halved}, batchnorm="freeze"
    )


def seen_sizes(job: Job) -> list[int]:
    """Filled with the height of the pictures of every pass in evaluation mode, while the job runs."""
    sizes: list[int] = []

    def look(module: torch.nn.Module, _: Any, inputs: dict[str, torch.Tensor]) -> None:
        if not module.training:
            sizes.append(inputs["pixel_values"].shape[-1])

    job.model.module.register_forward_pre_hook(look, with_kwargs=True)
    return sizes


def test_each_phase_is_validated_at_its_own_size(tmp_path: Path) -> None:
    job, events = resized_job(), list[Event]()
    sizes = seen_sizes(job)
    result = train(job, tmp_path, events=events)
    told = [type(event) for event in events if isinstance(event, PhaseStarted | EpochEnded | Notice)]
    assert told == [PhaseStarted, EpochEnded, EpochEnded, Notice, PhaseStarted, EpochEnded, EpochEnded]
    # Two batches of validation rows: after two epochs, between the phases, after two epochs. Before, folding tries one row.
    assert sizes[-10:] == [SMALL] * 4 + [SIDE] * 2 + [SIDE] * 4
    assert [phase["image_size"] for phase in result.phases] == [SMALL, None]


def test_what_the_second_phase_has_to_beat_is_scored_at_its_size(tmp_path: Path) -> None:
    job = resized_job()
    # Nothing learns, so whatever is best is what the first phase left.
    still = replace(job, plan=Plan(tuple(replace(phase, epochs=1) for phase in job.plan.phases)), score=lambda *_: 0.5)
    losses = iter([1.0, 3.0, 2.0])
    result = train(replace(still, validation_loss=lambda *_: next(losses)), tmp_path)
    # 1.0 at the small size does not count against 2.0 at the full size; 3.0, of the same weights there, does.
    assert [phase["best_epoch"] for phase in result.phases] == [1, 1]


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    straight = resized_job()
    wanted = train(straight, tmp_path / "straight")
    for step in (5, 6, 7):
        job, asked = resized_job(), iter(range(step - 1))
        with pytest.raises(Interrupted):
            train(job, tmp_path / str(step), stop=lambda asked=asked: next(asked, None) is None)
        job = resized_job()
        result = train(job, tmp_path / str(step), resume=True)
        assert fingerprint(job.model.module) == fingerprint(straight.model.module)
        assert timeless(result.history) == timeless(wanted.history)


def test_the_score_is_of_the_weights_that_are_left(tmp_path: Path) -> None:
    job = resized_job()
    result = train(job, tmp_path)
    with torch.no_grad():
        pictures = torch.from_numpy(stack(job.validation.inputs)["pixel_values"])
        logits = job.model.module.eval()(pictures).logits.numpy()
    assert result.phases[-1]["best"] == accuracy(logits, job.validation.labels)

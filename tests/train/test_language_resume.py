"""A language model's run that was stopped anywhere and resumed comes to the same bits, with adapters and without."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from language_samples import documents, language_job, packed
from train_samples import timeless, train

from finetune.errors import Interrupted, RecipeError
from finetune.recipe import L2SPSettings
from finetune.train.checkpoint import CheckpointFolder
from finetune.train.job import Job, Result
from finetune.train.phase import fingerprint

KINDS: dict[str, dict[str, Any]] = {
    "whole": {"l2sp": L2SPSettings(coupling="decoupled", alpha=1.0, beta=0.1)},
    "lora": {"adapter": "lora", "l2sp": L2SPSettings(coupling="decoupled", alpha=1.0, beta=0.1)},
    "dora, in parts, computed again": {"adapter": "dora", "accumulation": 2, "gradient_checkpointing": True},
    "packed, auto": {"adapter": "lora", "packed": True, "transfer": {"unfreeze": "auto", "auto_groups": 1, "depth": "all", "epochs": 2}},
}  # fmt: skip


def job_of(kind: str) -> Job:
    """Two phases of two epochs of two steps."""
    settings = dict(KINDS[kind])
    rows = documents(14)
    return language_job(rows=packed(rows, 2) if settings.pop("packed", False) else rows, batch_size=7, **settings)


def outcome(job: Job, result: Result) -> tuple[Any, ...]:
    return fingerprint(job.model.module), timeless(result.history), timeless(result.phases), result.choice


@cache
def uninterrupted(kind: str) -> tuple[Any, ...]:
    job = job_of(kind)
    with TemporaryDirectory() as folder:
        return outcome(job, train(job, Path(folder)))


def after(count: int) -> Callable[[], bool]:
    asked = iter(range(count - 1))
    return lambda: next(asked, None) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("asked", [1, 5])
def test_a_stop_and_a_resume_give_the_same_bits(tmp_path: Path, kind: str, asked: int) -> None:
    with pytest.raises(Interrupted, match=r"^stopped .*checkpoint$"):
        train(job_of(kind), tmp_path, stop=after(asked))
    job = job_of(kind)
    assert outcome(job, train(job, tmp_path, resume=True)) == uninterrupted(kind)


def test_a_checkpoint_of_adapters_holds_them_alone(tmp_path: Path) -> None:
    job = job_of("lora")
    train(job, tmp_path)
    saved = CheckpointFolder(tmp_path, {}).load()
    assert saved is not None
    assert saved.model.keys() == saved.best.keys() == set(job.model.groups.depth_of())


def test_adapters_that_began_elsewhere_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(job_of("lora"), tmp_path, stop=after(2))
    job = job_of("lora")
    next(p for n, p in job.model.module.named_parameters() if "lora_A" in n).data[0, 0] += 1e-3
    with pytest.raises(RecipeError, match=r"^--resume: the backbone changed since"):
        train(job, tmp_path, resume=True)

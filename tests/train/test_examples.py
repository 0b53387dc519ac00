"""What draws training rows may be noise, may be mixed, and may take place in other processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train_samples import (  # fmt: skip
    LABELS,
    collate,
    encoded,
    largest_difference,
    rising,
    small_job,
    small_model,
    small_rows,
    train,
)

from finetune.data.batches import epoch_steps
from finetune.tasks import TASKS
from finetune.train.job import Batch, EncodedExamples, Examples, Job, Moment, Rows
from finetune.train.phase import fingerprint

BALANCED = np.array([0.5, 1.0, 3.0], dtype=np.float32)
SHORT = {"head_epochs": 1, "epochs": 1}
MOMENT = Moment(seed=0, phase=0, epoch=0, cursor=0, step=(0, 1, 2, 3))


@dataclass(frozen=True)
class Around:
    """Examples around others."""

    inner: Examples

    @property
    def lengths(self) -> Sequence[int]:
        return self.inner.lengths

    @property
    def labels(self) -> np.ndarray:
        return self.inner.labels

    def batch(self, rows: Sequence[int], moment: Moment) -> Batch:
        return self.inner.batch(rows, moment)


class Gambling(Around):
    """Draws from torch's own generator, as many augmentations do."""

    def batch(self, rows: Sequence[int], moment: Moment) -> Batch:
        torch.rand(3)
        return super().batch(rows, moment)


@dataclass(frozen=True)
class Mixed(Around):
    """Each row's target mixed with that of the row before it in its step, at one share for all."""

    share: float = 0.7

    def batch(self, rows: Sequence[int], moment: Moment) -> Batch:
        inputs, labels = super().batch(rows, moment)
        partners = [moment.step[moment.step.index(row) - 1] for row in rows]
        one = np.eye(LABELS, dtype=np.float32)
        return inputs, self.share * one[labels] + (1 - self.share) * one[self.labels[partners]]


@dataclass(frozen=True)
class Recorded(Around):
    asked: Any = None

    def batch(self, rows: Sequence[int], moment: Moment) -> Batch:
        self.asked.append((list(rows), moment))
        return super().batch(rows, moment)


def drawn_by(kind: Any, job: Job, **options: Any) -> Job:
    return replace(job, train=kind(job.train, **options))


def test_rows_without_noise_are_the_same_at_every_moment() -> None:
    rows = small_rows(4)
    examples = encoded(rows, collate)
    inputs, targets = examples.batch((2, 0), MOMENT)
    np.testing.assert_array_equal(inputs["input_ids"], collate([rows.inputs[2], rows.inputs[0]])["input_ids"])
    assert targets.tolist() == [rows.labels[2], rows.labels[0]]
    np.testing.assert_array_equal(examples.batch((2, 0), replace(MOMENT, epoch=3))[0]["input_ids"], inputs["input_ids"])


def test_each_part_is_asked_for_with_its_moment_and_the_whole_step(tmp_path: Path) -> None:
    asked: list[tuple[list[int], Moment]] = []
    job = drawn_by(Recorded, small_job(rows=10, batch_size=4, accumulation=2, seed=5, transfer=SHORT), asked=asked)
    train(job, tmp_path)
    for phase in (0, 1):
        steps = epoch_steps(job.train.lengths, 4, seed=5, phase=phase, epoch=0, bucket=True)
        expected = [(step[part::2], Moment(5, phase, 0, cursor, tuple(step))) for cursor, step in enumerate(steps) for part in (0, 1)]  # fmt: skip
        assert [entry for entry in asked if entry[1].phase == phase] == expected


def test_random_numbers_that_batches_draw_do_not_change_dropout(tmp_path: Path) -> None:
    jobs = [small_job(rows=8, transfer=SHORT), drawn_by(Gambling, small_job(rows=8, transfer=SHORT))]
    for number, job in enumerate(jobs):
        train(job, tmp_path / str(number))
    assert fingerprint(jobs[0].model.module) == fingerprint(jobs[1].model.module)


def test_processes_that_make_batches_ahead_change_nothing(tmp_path: Path) -> None:
    jobs = [
        small_job(rows=8, transfer={"unfreeze": "head_only"}),
        small_job(rows=8, transfer={"unfreeze": "head_only"}),
    ]
    jobs[1] = replace(jobs[1], workers=1)
    for number, job in enumerate(jobs):
        train(job, tmp_path / str(number))
    assert fingerprint(jobs[0].model.module) == fingerprint(jobs[1].model.module)


@pytest.mark.parametrize("weights", [None, BALANCED])
def test_whole_shares_of_a_label_are_the_label(tmp_path: Path, weights: np.ndarray | None) -> None:
    plain, shares = (rising(small_job(dropout=0.0, optimizer="sgd", class_weights=weights, transfer=SHORT, label_smoothing=0.1)) for _ in "ab")  # fmt: skip
    one, other = train(plain, tmp_path / "plain"), train(drawn_by(Mixed, shares, share=1.0), tmp_path / "shares")
    assert largest_difference(plain.model.module, shares.model.module) < 1e-5
    assert one.history[0]["train_loss"] == pytest.approx(other.history[0]["train_loss"], abs=1e-5)


@pytest.mark.parametrize("weights", [None, BALANCED])
def test_the_number_of_parts_does_not_change_what_mixed_rows_come_to(
    tmp_path: Path, weights: np.ndarray | None
) -> None:
    jobs = [
        drawn_by(Mixed, rising(small_job(accumulation=parts, dropout=0.0, optimizer="sgd", class_weights=weights, transfer=SHORT)))
        for parts in (1, 3)
    ]  # fmt: skip
    one, other = (train(job, tmp_path / str(job.settings.accumulation)) for job in jobs)
    assert largest_difference(jobs[0].model.module, jobs[1].model.module) < 1e-5
    assert one.history[0]["train_loss"] == pytest.approx(other.history[0]["train_loss"], abs=1e-5)


def test_rows_of_one_size_come_in_the_batches_of_a_plain_shuffle() -> None:
    """Sorting by length leaves them as they are; only the order of the batches is another, with the short one anywhere."""
    for count in (5, 8, 70, 200):
        kinds = [epoch_steps([1] * count, 4, seed=3, phase=1, epoch=2, bucket=bucket) for bucket in (True, False)]
        assert sorted(kinds[0]) == sorted(kinds[1])


LEARNED = {
    "text_regression": (1, lambda rows: np.array([row[0] / 50 - 1 for row in rows], dtype=np.float32)),
    "text_multi_label_classification": (
        2, lambda rows: np.array([[row[0] % 2, row[0] > 50] for row in rows], dtype=np.float32),
    ),
}  # fmt: skip


@pytest.mark.parametrize("task", LEARNED)
def test_numbers_and_several_labels_are_learned_too(tmp_path: Path, task: str) -> None:
    outputs, labels_of = LEARNED[task]
    target = TASKS[task].target

    def loss(logits: np.ndarray, labels: np.ndarray) -> float:
        truth = torch.from_numpy(labels)
        sums = target.loss_sums(torch.from_numpy(logits), truth, None, 0.0, None)
        return float(sums) / target.loss_denominator(truth, None)

    def rows(count: int, seed: int) -> Rows:
        plain = small_rows(count, seed=seed)
        return replace(plain, labels=labels_of(plain.inputs))

    examples = encoded(rows(60, 0), collate)
    assert isinstance(examples, EncodedExamples)
    job = replace(
        small_job(batch_size=8, transfer={"unfreeze": "full", "depth": "all", "epochs": 5}),
        model=small_model(dropout=0.0, outputs=outputs), task=TASKS[task], train=examples, plain=examples,
        validation=rows(11, 1), score=loss, validation_loss=loss, higher_is_better=False,
    )  # fmt: skip
    history = train(job, tmp_path).history
    assert history[-1]["train_loss"] < history[0]["train_loss"] * 0.8
    assert all(record["validation_metric"] == record["validation_loss"] for record in history)

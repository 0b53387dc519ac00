"""A step is the same whether it is computed whole or in parts, and it is what an ordinary loop would do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train_samples import collate, collated_by, largest_difference, rising, small_job, small_model, train

from finetune.data.batches import epoch_steps
from finetune.train.job import EncodedExamples, Job

BALANCED = np.array([0.5, 1.0, 3.0], dtype=np.float32)
UNEQUAL = np.random.default_rng(5).uniform(0.1, 4.0, 22)
LOSSES: list[dict[str, Any]] = [
    {},
    {"class_weights": BALANCED},
    {"class_weights": BALANCED, "label_smoothing": 0.2},
    {"row_weights": UNEQUAL, "label_smoothing": 0.2},
    {"row_weights": UNEQUAL, "class_weights": BALANCED},
]
# Without dropout, and without Adam's division by tiny gradients, results differ by rounding alone.
SMOOTH: dict[str, Any] = {"dropout": 0.0, "optimizer": "sgd"}
SHORT = {"head_epochs": 1, "epochs": 1}


def plain_loop(job: Job) -> None:
    """The job's first phase in the most ordinary words: SGD at a constant rate, whole batches, torch's own loss of each row."""
    assert isinstance(job.train, EncodedExamples)
    module, phase, settings = job.model.module, job.plan.phases[0], job.settings
    weight = None if job.class_weights is None else torch.from_numpy(job.class_weights)
    named = dict(module.named_parameters())
    parts = [
        {"params": [named[n]], "lr": rate, "weight_decay": 0.01 if named[n].ndim > 1 else 0.0}
        for group, rate in zip(job.model.groups.groups, phase.learning_rates)
        for n in group.parameters
        if rate
    ]
    optimizer = torch.optim.SGD(parts, momentum=0.9)
    for epoch in range(phase.epochs):
        for rows in epoch_steps(
            job.train.lengths, settings.batch_size, seed=job.seed, phase=0, epoch=epoch, bucket=True
        ):
            inputs = {n: torch.from_numpy(a) for n, a in collate([job.train.rows[row] for row in rows]).items()}
            truth = torch.from_numpy(job.train.labels[rows])
            counted = torch.from_numpy(job.weights_of(rows))
            losses = torch.nn.functional.cross_entropy(
                module(**inputs).logits,
                truth,
                weight=weight,
                label_smoothing=settings.label_smoothing,
                reduction="none",
            )
            loss = (counted * losses).sum() / (len(rows) if weight is None else weight[truth].sum())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for part in parts for p in part["params"]], settings.clip_norm)
            optimizer.step()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_run_comes_to_what_an_ordinary_loop_comes_to(tmp_path: Path, loss: dict[str, Any], accumulation: int) -> None:
    transfer = {"unfreeze": "full", "depth": 3, "learning_rate": 0.3, "epochs": 1}
    same = {**SMOOTH, **loss, "transfer": transfer, "schedule": "constant", "warmup": 0.0}
    ours, plain = rising(small_job(accumulation=accumulation, **same)), small_job(**same)
    train(ours, tmp_path)
    plain_loop(plain)
    assert largest_difference(ours.model.module, plain.model.module) < 1e-5
    assert largest_difference(ours.model.module, small_model().module) > 1e-2


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("batch_size", "accumulation"), [(4, 4), (5, 3), (3, 7)])
def test_the_number_of_parts_does_not_change_the_result(
    tmp_path: Path, loss: dict[str, Any], batch_size: int, accumulation: int
) -> None:
    """22 rows leave a short last batch, so some of its parts are empty; of seven parts of three rows some always are."""
    whole, parts = (
        small_job(batch_size=batch_size, accumulation=n, transfer=SHORT, **SMOOTH, **loss) for n in (1, accumulation)
    )
    one, other = train(whole, tmp_path / "whole"), train(parts, tmp_path / "parts")
    assert largest_difference(whole.model.module, parts.model.module) < 1e-5
    for record, same in zip(one.history, other.history, strict=True):
        assert record["train_loss"] == pytest.approx(same["train_loss"], abs=1e-5)
        assert record["drift"] == pytest.approx(same["drift"], abs=1e-5)


def test_adamw_does_not_depend_on_the_parts_either(tmp_path: Path) -> None:
    jobs = [small_job(dropout=0.0, accumulation=parts, transfer=SHORT) for parts in (1, 4)]
    for job in jobs:
        train(job, tmp_path / str(job.settings.accumulation))
    for (name, one), other in zip(jobs[0].model.module.named_parameters(), jobs[1].model.module.parameters()):
        # The gradient of attention keys' bias is zero but for rounding, which Adam scales up to a step of full size.
        assert name.endswith("key.bias") or torch.allclose(one, other, atol=1e-4), name


def test_no_row_is_computed_twice_and_empty_parts_not_at_all(tmp_path: Path) -> None:
    computed: list[int] = []
    job = small_job(batch_size=4, accumulation=3, transfer={"unfreeze": "head_only", "head_epochs": 1})
    inner = job.collate
    watched = collated_by(job, lambda rows: (computed.append(len(rows)), inner(rows))[1])
    train(watched, tmp_path)
    steps, validation = computed[:-2], computed[-2:]
    assert validation == [8, 3]
    assert sum(steps) == 22
    assert sorted(steps) == [1] * 12 + [2] * 5, "five steps of 2 + 1 + 1 rows and one of 1 + 1"

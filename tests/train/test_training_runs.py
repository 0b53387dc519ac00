"""Whole runs of small jobs: the same bits every time, what trains how fast, when a phase ends, which weights are kept."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train_samples import environment, small_job, timeless, train

from finetune.data.batches import epoch_steps
from finetune.errors import TrainingError
from finetune.recipe import L2SPSettings
from finetune.train import device, loop, step
from finetune.train.checkpoint import CheckpointFolder
from finetune.train.events import EpochEnded, Event, PhaseStarted, StepEnded
from finetune.train.job import Batch, Job
from finetune.train.phase import fingerprint, tensors_of
from finetune.transfer import l2sp
from finetune.transfer.learning_rates import rate_factor

L2SP = {c: L2SPSettings(coupling=c, alpha=1.0, beta=0.1) for c in ("off", "loss", "decoupled")}


@pytest.mark.parametrize(("optimizer", "coupling"), [("adamw", "off"), ("adamw", "decoupled"), ("sgd", "loss")])
def test_two_runs_in_one_process_give_the_same_bits(tmp_path: Path, optimizer: str, coupling: str) -> None:
    jobs = [small_job(optimizer=optimizer, l2sp=L2SP[coupling]) for _ in range(2)]
    results = []
    for number, job in enumerate(jobs):
        torch.manual_seed(number), np.random.seed(number), random.seed(number)
        results.append(train(job, tmp_path / str(number)))
    assert fingerprint(jobs[0].model.module) == fingerprint(jobs[1].model.module)
    assert timeless(results[0].history) == timeless(results[1].history)
    assert timeless(results[0].phases) == timeless(results[1].phases)


def test_a_run_under_other_settings_in_between_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cpu", lambda: type("CPU", (), {"flags": ("avx512_bf16",)}))
    first, second = small_job(), small_job()
    other = small_job(seed=9, optimizer="sgd", accumulation=2, precision="bf16")
    for number, job in enumerate((first, other, second)):
        train(job, tmp_path / str(number))
    assert fingerprint(first.model.module) == fingerprint(second.model.module)
    assert fingerprint(first.model.module) != fingerprint(other.model.module)


def test_a_run_in_another_process_gives_the_same_bits(tmp_path: Path) -> None:
    job = small_job()
    train(job, tmp_path / "here")
    program = (
        "import json, sys, torch; from pathlib import Path; torch.set_num_threads(1)\n"
        "from train_samples import environment, small_job, train; from finetune.train.phase import fingerprint\n"
        "job = small_job(); train(job, Path(sys.argv[1])); print(json.dumps(fingerprint(job.model.module)))"
    )
    there = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "there")], capture_output=True, text=True, timeout=300, check=True,
        env=environment(PYTHONHASHSEED="1"),
    )  # fmt: skip
    assert json.loads(there.stdout) == fingerprint(job.model.module)


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    jobs = [small_job(seed=seed) for seed in (0, 1)]
    for job in jobs:
        train(job, tmp_path / str(job.seed))
    assert fingerprint(jobs[0].model.module) != fingerprint(jobs[1].model.module)


def test_the_callers_generators_are_untouched(tmp_path: Path) -> None:
    def state() -> tuple[object, ...]:
        return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()

    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    before = state()
    train(small_job(), tmp_path)
    assert state() == before


def test_dropout_is_drawn_anew_in_every_part_of_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[torch.Tensor] = []
    original = step.seed_noise

    def seed(*args: Any) -> None:
        original(*args)
        drawn.append(torch.rand(4))
        original(*args)

    monkeypatch.setattr(step, "seed_noise", seed)
    train(small_job(accumulation=2), tmp_path)
    assert len(drawn) == 2 * 2 * 6 * 2
    assert len({tuple(noise.tolist()) for noise in drawn}) == len(drawn)


class Watched(step.Stepper):
    """Looks at the network after each step."""

    taken: list[dict[str, Any]]

    def take(
        self, rows: Sequence[int], batches: Iterator[Batch], *, epoch: int, cursor: int, steps: int
    ) -> torch.Tensor:
        module = self.job.model.module
        seen = {"training": {name for name, part in module.named_modules() if part.training}}
        told = super().take(rows, batches, epoch=epoch, cursor=cursor, steps=steps)
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        seen["state"] = {names[id(parameter)] for parameter in self.optimizer.optimizer.state}
        seen["gradients"] = {name for name, parameter in module.named_parameters() if parameter.grad is not None}
        seen["rates"] = {part["layer_group"]: part["lr"] for part in self.optimizer.param_groups}
        self.taken.append({**seen, "phase": self.index, "epoch": epoch, "cursor": cursor, "rows": list(rows)})
        return told


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the network was like at each step of the runs of this test."""
    steps: list[dict[str, Any]] = []
    monkeypatch.setattr(Watched, "taken", steps, raising=False)
    monkeypatch.setattr(loop, "Stepper", Watched)
    return steps


def test_each_phase_trains_its_groups_and_nothing_else(tmp_path: Path, taken: list[dict[str, Any]]) -> None:
    job = small_job(transfer={"depth": 3})
    start, groups = fingerprint(job.model.module), job.model.groups
    events: list[Event] = []
    result = train(job, tmp_path, events=events)
    expected = [("head",), ("block 1", "head"), ("block 0", "block 1", "head")]
    assert [e.trainable for e in events if isinstance(e, PhaseStarted)] == expected
    assert [tuple(phase["trainable"]) for phase in result.phases] == expected
    assert [phase["check"]["frozen"] for phase in result.phases] == [["embeddings", "block 0", "block 1"], ["embeddings", "block 0"], ["embeddings"]]  # fmt: skip
    assert len(taken) == result.steps == 3 * 2 * 6
    for seen in taken:
        trainable = groups.pick(range(3 - seen["phase"], 4))
        assert seen["state"] == {name for group in trainable for name in group.parameters}
        assert seen["training"] == {name for group in trainable for name in group.modules}
        assert seen["gradients"] == set()
    after = fingerprint(job.model.module)
    moved = {groups.depth_of()[name] for name in start if name in groups.depth_of() and start[name] != after[name]}
    assert moved == {1, 2, 3}


def test_rates_follow_the_plan_and_the_schedule_step_by_step(tmp_path: Path, taken: list[dict[str, Any]]) -> None:
    job = small_job(schedule="cosine", warmup=0.25, transfer={"decay": 0.5, "head_learning_rate": 0.03})
    result = train(job, tmp_path)
    assert [(s["phase"], s["epoch"], s["cursor"]) for s in taken] == [
        (p, e, c) for p in range(2) for e in range(2) for c in range(6)
    ]
    for seen in taken:
        factor = rate_factor("cosine", seen["epoch"] * 6 + seen["cursor"], 12, 0.25)
        peaks = [{"head": 0.03}, {"head": 0.01, "block 1": 0.005}][seen["phase"]]
        assert seen["rates"] == pytest.approx({name: peak * factor for name, peak in peaks.items()})
    assert [record["learning_rates"] for record in result.history] == [s["rates"] for s in taken if s["cursor"] == 5]
    assert result.phases[1]["learning_rates"] == {"block 1": 0.005, "head": 0.01}


def test_every_epoch_has_all_rows_in_an_order_of_its_own(tmp_path: Path, taken: list[dict[str, Any]]) -> None:
    job = small_job()
    train(job, tmp_path)
    orders = [[seen["rows"] for seen in taken[i : i + 6]] for i in range(0, 24, 6)]
    assert orders == [
        epoch_steps(job.train.lengths, 4, seed=0, phase=phase, epoch=epoch, bucket=True)
        for phase in (0, 1)
        for epoch in (0, 1)
    ]
    assert all(sorted(row for rows in order for row in rows) == list(range(22)) for order in orders)


def test_mixed_precision_lasts_through_all_phases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: list[dict[str, Any]]
) -> None:
    monkeypatch.setattr(device, "cpu", lambda: type("CPU", (), {"flags": ("avx512_bf16",)}))
    job = small_job(precision="bf16")
    dtypes: list[torch.dtype] = []
    job.model.module.classifier.register_forward_hook(lambda *args: dtypes.append(args[-1].dtype))
    train(job, tmp_path)
    assert set(dtypes) == {torch.bfloat16}
    assert len(dtypes) == 24 + 4 * 2
    assert {p.dtype for p in job.model.module.parameters()} == {torch.float32}
    with torch.no_grad():
        assert job.model.module(input_ids=torch.tensor([[1, 2]])).logits.dtype == torch.float32
    assert dtypes[-1] == torch.float32, "after the run the network computes in full precision again"


def scored(job: Job, metrics: Sequence[float], losses: Sequence[float] | None = None) -> Job:
    """The job with a metric and a validation loss that go through these values, epoch by epoch."""
    values, sunk = iter(metrics), iter(losses or [1.0] * len(metrics))
    return replace(job, score=lambda *_: next(values), validation_loss=lambda *_: next(sunk))


class Epochs(list):  # type: ignore[type-arg]
    """Keeps the network's fingerprint after each epoch."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job, self.prints, self.improved = job, [fingerprint(job.model.module)], []

    def append(self, event: Event) -> None:
        if isinstance(event, EpochEnded):
            self.prints.append(fingerprint(self.job.model.module))
            self.improved.append(event.improved)
        super().append(event)


FOUR = {"head_epochs": 2, "epochs": 2}


@pytest.mark.parametrize(
    ("metrics", "losses", "improved", "kept"),
    [
        ([1, 2, 3, 4], None, [1, 1, 1, 1], 4),
        ([1, 2, 4, 3], None, [1, 1, 1, 0], 3),
        ([2, 1, 1, 1], None, [1, 0, 0, 0], 1),
        ([1, 4, 3, 2], None, [1, 1, 0, 0], 2),
        ([1, 1, 1, 1], [4, 3, 2, 1], [1, 1, 1, 1], 4),
        ([1, 1, 1, 1], [2, 3, 1, 1], [1, 0, 1, 0], 3),
        ([1, 1, 2, 1], [1, 2, 9, 1], [1, 0, 1, 0], 3),
    ],
)
def test_the_best_weights_by_the_metric_and_then_by_the_loss_are_kept(
    tmp_path: Path, metrics: list[float], losses: list[float] | None, improved: list[int], kept: int
) -> None:
    job = scored(small_job(rows=6, transfer=FOUR), metrics, losses)
    epochs = Epochs(job)
    result = train(job, tmp_path, events=epochs)
    assert epochs.improved == [bool(flag) for flag in improved]
    assert fingerprint(job.model.module) == epochs.prints[kept]
    by_phase = [[i + 1 for i in (0, 1) if improved[2 * phase + i]] for phase in (0, 1)]
    assert [phase["best_epoch"] for phase in result.phases] == [found[-1] if found else None for found in by_phase]
    assert [phase["best"] for phase in result.phases] == [max(metrics[:2]), max(metrics)]


def test_of_a_metric_that_should_fall_the_lowest_is_the_best(tmp_path: Path) -> None:
    job = replace(scored(small_job(rows=6, transfer=FOUR), [3, 1, 2, 2]), higher_is_better=False)
    epochs = Epochs(job)
    train(job, tmp_path, events=epochs)
    assert epochs.improved == [True, True, False, False]
    assert fingerprint(job.model.module) == epochs.prints[2]


def test_a_phase_starts_from_the_best_weights_of_the_one_before(tmp_path: Path) -> None:
    job = scored(small_job(rows=6, transfer=FOUR), [2, 1, 3, 4])
    epochs, started = Epochs(job), []
    epochs.append = lambda event, kept=epochs.append: (  # type: ignore[method-assign]
        started.append(fingerprint(job.model.module)) if isinstance(event, PhaseStarted) else None, kept(event))  # fmt: skip
    train(job, tmp_path, events=epochs)
    assert started == [epochs.prints[0], epochs.prints[1]]


@pytest.mark.parametrize(
    ("metrics", "patience", "run", "ended"),
    [
        ([3, 2, 1, 4, 3, 2], 2, [3, 3], ["patience", "patience"]),
        ([3, 2, 4, 1, 5, 4, 6], 2, [4, 4], ["epochs", "epochs"]),
        ([3, 2, 9, 8], 1, [2, 2], ["patience", "patience"]),
        ([9, 1, 1, 1], 1, [2, 1], ["patience", "patience"]),
        ([1, 2, 3, 4, 5, 6, 7, 8], 1, [4, 4], ["epochs", "epochs"]),
    ],
)
def test_patience_ends_a_phase_that_no_longer_improves(
    tmp_path: Path, metrics: list[float], patience: int, run: list[int], ended: list[str]
) -> None:
    job = small_job(rows=6, transfer={"head_epochs": 4, "epochs": 4, "patience": patience})
    result = train(scored(job, [*metrics, *[0.0] * 9]), tmp_path)
    assert [phase["epochs_run"] for phase in result.phases] == run
    assert [phase["ended"] for phase in result.phases] == ended
    assert [phase["epochs_planned"] for phase in result.phases] == [4, 4]
    assert [phase["steps"] for phase in result.phases] == [2 * n for n in run]


def test_a_loss_that_is_no_number_ends_the_run_and_says_where(tmp_path: Path) -> None:
    job = small_job(transfer={"learning_rate": 1e-2}, clip_norm=None)
    sums = job.task.target.loss_sums
    calls = iter(range(1000))
    # Phase 1 has 12 steps; the call of number 12 + 6 + 2 is the third step of the second phase's second epoch.
    target = replace(job.task.target, loss_sums=lambda *args: sums(*args) * (math.nan if next(calls) == 20 else 1.0))
    with pytest.raises(TrainingError, match=r"^the loss became nan in phase 'top 2', epoch 2, step 3; lower transfer\.learning_rate$"):  # fmt: skip
        train(replace(job, task=replace(job.task, target=target)), tmp_path)


def test_weights_that_are_no_numbers_after_the_last_step_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job()

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        told = original(*args, **kwargs)
        if kwargs["cursor"] == 5:
            with torch.no_grad():
                job.model.module.classifier.weight.fill_(math.nan)
        return told

    original = step.Stepper.take
    monkeypatch.setattr(step.Stepper, "take", poisoned)
    with pytest.raises(TrainingError, match=r"^the validation logits are not finite in phase 'head', epoch 1, step 6;"):
        train(job, tmp_path)
    assert CheckpointFolder(tmp_path, {}).load() is None, "weights that are no numbers are not saved"


def test_a_rate_too_small_to_move_anything_is_an_error(tmp_path: Path) -> None:
    """Biases start at zero, which any rate moves, so they prove nothing."""
    job = small_job(transfer={"learning_rate": 1e-20})
    with pytest.raises(
        TrainingError, match=r"phase 'head': layer group 'head' should have trained but no weight of it"
    ):
        train(job, tmp_path)


def test_a_frozen_weight_that_something_changes_is_an_error(tmp_path: Path) -> None:
    job = small_job()
    table = job.model.module.bert.embeddings.word_embeddings.weight

    def leak(*_: object) -> None:
        table.data.add_(1e-3)

    job.model.module.classifier.register_forward_hook(leak)
    with pytest.raises(TrainingError, match=r"phase 'head': .*'bert\.embeddings\.word_embeddings\.weight'"):
        train(job, tmp_path)


def test_a_weight_that_rightly_stands_still_is_listed(tmp_path: Path) -> None:
    """The pooler's bias gets no gradient here, as attention keys' bias gets none but rounding."""
    job = small_job()
    job.model.module.bert.pooler.dense.bias.register_hook(torch.zeros_like)
    result = train(job, tmp_path)
    assert [phase["check"]["unmoved_parameters"] for phase in result.phases] == [["bert.pooler.dense.bias"]] * 2


def test_anchors_are_kept_only_for_what_ever_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[set[str]] = []
    original = l2sp.Pull
    monkeypatch.setattr(l2sp, "Pull", lambda anchors, *rest: (kept.append(set(anchors)), original(anchors, *rest))[1])
    job = small_job(transfer={"depth": 2})
    train(job, tmp_path)
    names = {name for group in job.model.groups.pick((2, 3)) for name in group.parameters}
    assert kept == [names - job.model.fresh] * 2


def test_a_checkpoint_holds_only_what_ever_trains(tmp_path: Path) -> None:
    job = small_job()
    events: list[Event] = []
    train(job, tmp_path, events=events)
    saved = CheckpointFolder(tmp_path, {}).load()
    assert saved is not None
    assert saved.model.keys() == tensors_of(job.model.module, job.model.groups.pick((2, 3))).keys()
    assert saved.best.keys() == saved.model.keys()
    assert {key.rpartition("|")[0] for key in saved.optimizer} == saved.model.keys()


def test_drift_is_zero_for_a_group_that_l2sp_holds_and_grows_for_one_that_is_free(tmp_path: Path) -> None:
    drifts = []
    for number, pull in enumerate((L2SP["off"], L2SPSettings(coupling="decoupled", alpha=90.0, beta=0.0))):
        result = train(rising_never(small_job(l2sp=pull)), tmp_path / str(number))
        drifts.append(result.history[-1]["drift"])
    assert drifts[0].keys() == drifts[1].keys() == {"block 1", "head"}
    assert 0 < drifts[1]["block 1"] < drifts[0]["block 1"] / 2


def rising_never(job: Job) -> Job:
    return replace(job, score=lambda *_: 0.0)


def test_events_tell_the_whole_story(tmp_path: Path) -> None:
    events: list[Event] = []
    result = train(small_job(), tmp_path, events=events)
    kinds = [type(event) for event in events]
    assert kinds == ([PhaseStarted] + ([StepEnded] * 6 + [EpochEnded]) * 2) * 2
    assert [event.record for event in events if isinstance(event, EpochEnded)] == result.history
    steps = [event for event in events if isinstance(event, StepEnded)]
    assert [(s.phase, s.epoch, s.step, s.steps) for s in steps] == [(p, e, s, 6) for p in (0, 1) for e in (1, 2) for s in range(1, 7)]  # fmt: skip
    assert all(s.loss > 0 and s.rows_per_second > 0 for s in steps)
    assert [s.loss for s in steps if s.step == 6] == [record["train_loss"] for record in result.history]
    assert [record["step"] for record in result.history] == [6, 12, 18, 24]
    json.dumps([result.history, result.phases], allow_nan=False)


def test_a_run_learns(tmp_path: Path) -> None:
    job = small_job(rows=120, dropout=0.0, batch_size=8, transfer={"unfreeze": "full", "depth": "all", "epochs": 8})
    result = train(job, tmp_path)
    assert result.history[-1]["train_loss"] < 0.5 < result.history[0]["train_loss"]


def test_a_phase_leaves_no_optimizer_behind_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[step.Stepper]] = []

    class Followed(step.Stepper):
        def __init__(self, *args: Any) -> None:
            assert all(stepper() is None for stepper in made)
            super().__init__(*args)
            made.append(weakref.ref(self))

    monkeypatch.setattr(loop, "Stepper", Followed)
    train(small_job(rows=6, transfer={"depth": 3, **FOUR}), tmp_path)
    assert len(made) == 3

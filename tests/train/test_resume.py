"""A run that was stopped anywhere and resumed comes to the same bits as one that was not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from train_samples import collated_by, small_job, timeless, train

from finetune.errors import BundleError, Interrupted, RecipeError, TrainingError
from finetune.recipe import L2SPSettings
from finetune.train import checkpoint
from finetune.train.events import EpochEnded, Event, TrainingResumed
from finetune.train.job import Job, Result
from finetune.train.phase import fingerprint

# Two phases of two epochs of three steps: the steps after which a run can stop, and as many evaluations.
KINDS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adamw, decoupled": {"l2sp": L2SPSettings(coupling="decoupled", alpha=1.0, beta=0.1)},
    "sgd, loss": {"optimizer": "sgd", "l2sp": L2SPSettings(coupling="loss")},
    "sgd, parts": {"optimizer": "sgd", "accumulation": 2, "label_smoothing": 0.1},
    "patience": {"transfer": {"head_epochs": 4, "epochs": 4, "patience": 1, "depth": 2}},
}
STEPS = 2 * 2 * 3


def job_of(kind: str) -> Job:
    job = small_job(rows=22, batch_size=8, **KINDS[kind])
    return replace(job, score=alternating) if kind == "patience" else job


def alternating(logits: Any, _labels: Any) -> float:
    """A metric that depends on the weights and often falls, so that patience ends phases early."""
    return float(int(abs(float(logits.sum())) * 1e4) % 7)


class Outcome:
    """What a run came to, as far as it is the same for every run of a job."""

    def __init__(self, job: Job, result: Result) -> None:
        self.prints = fingerprint(job.model.module)
        self.history, self.phases = timeless(result.history), timeless(result.phases)
        self.steps = result.steps

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Outcome) and vars(self) == vars(other)


@cache
def uninterrupted(kind: str) -> Outcome:
    job = job_of(kind)
    with TemporaryDirectory() as folder:
        return Outcome(job, train(job, Path(folder)))


def after(count: int) -> Callable[[], bool]:
    """A wish to stop that comes up after it was asked for `count` times, and then stays."""
    asked = iter(range(count - 1))
    return lambda: next(asked, None) is None


def interrupted(job: Job, folder: Path, stop: Callable[[], bool], **options: Any) -> None:
    with pytest.raises(Interrupted, match=r"^stopped .*checkpoint$"):
        train(job, folder, stop=stop, **options)


# Every step and every end of an epoch asks once.
@pytest.mark.parametrize("asked", range(1, STEPS + 4 + 1))
def test_a_stop_at_any_step_or_epoch_and_a_resume_give_the_same_bits(tmp_path: Path, asked: int) -> None:
    interrupted(job_of("adamw"), tmp_path, after(asked))
    job = job_of("adamw")
    assert Outcome(job, train(job, tmp_path, resume=True)) == uninterrupted("adamw")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "adamw"])
@pytest.mark.parametrize("asked", [2, 7, 10])
def test_every_optimizer_and_regulariser_resumes_to_the_same_bits(tmp_path: Path, kind: str, asked: int) -> None:
    interrupted(job_of(kind), tmp_path, after(asked))
    job = job_of(kind)
    assert Outcome(job, train(job, tmp_path, resume=True)) == uninterrupted(kind)


def test_a_phase_that_patience_ended_is_not_taken_up_again(tmp_path: Path) -> None:
    whole = uninterrupted("patience")
    assert "patience" in [phase["ended"] for phase in whole.phases]
    epochs = len(whole.history)
    for number in range(1, epochs + 1):
        folder = tmp_path / str(number)
        events: list[Event] = []
        interrupted(job_of("patience"), folder, after_epochs(number, events), events=events)
        job = job_of("patience")
        assert Outcome(job, train(job, folder, resume=True)) == whole


def after_epochs(count: int, events: list[Event]) -> Callable[[], bool]:
    return lambda: sum(isinstance(event, EpochEnded) for event in events) >= count


def test_a_run_that_is_stopped_at_every_step_still_gets_to_the_same_end(tmp_path: Path) -> None:
    result, stops = None, 0
    while result is None:
        job = job_of("adamw, decoupled")
        try:
            result = train(job, tmp_path, resume=True, stop=after(1))
        except Interrupted:
            stops += 1
    assert stops == STEPS + 4
    assert Outcome(job, result) == uninterrupted("adamw, decoupled")


class Killed(BaseException):
    """The process dies here."""


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("saves", [1, 4, 7])
def test_a_killed_run_goes_on_from_its_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, saves: int
) -> None:
    """It dies while it writes the next one, after the tensors and before the manifest."""
    count = iter(range(100))
    original = checkpoint.write_json

    def dies(path: Path, content: object) -> None:
        if path.name == "manifest.json" and next(count) == saves:
            raise Killed
        original(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_json", dies)
        patch.setattr(checkpoint.shutil, "rmtree", lambda *_, **__: None)  # a killed process tidies nothing up
        with pytest.raises(Killed):
            train(small_job(rows=22, batch_size=8, checkpoint_every_steps=every), tmp_path)
    assert list(tmp_path.glob("*.partial"))
    job, events = small_job(rows=22, batch_size=8, checkpoint_every_steps=every), []
    result = train(job, tmp_path, resume=True, events=events)
    assert Outcome(job, result) == uninterrupted("adamw")
    assert not list(tmp_path.glob("*.partial"))
    assert len(list(tmp_path.iterdir())) == 1


def test_checkpoints_come_every_so_many_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[int, int]] = []
    original = checkpoint.CheckpointFolder.save
    monkeypatch.setattr(checkpoint.CheckpointFolder, "save", lambda self, c: (written.append((c.progress.global_step, c.progress.cursor)), original(self, c))[1])  # fmt: skip
    train(small_job(rows=22, batch_size=8, checkpoint_every_steps=2), tmp_path)
    # After steps 6 and 12 the epoch's own checkpoint stands for both.
    assert written == [(2, 2), (3, 0), (4, 1), (6, 0), (8, 2), (9, 0), (10, 1), (12, 0)]


def test_without_a_checkpoint_a_resume_starts_anew(tmp_path: Path) -> None:
    job = job_of("adamw")
    assert Outcome(job, train(job, tmp_path, resume=True)) == uninterrupted("adamw")


def test_a_resumed_run_first_tells_what_is_done(tmp_path: Path) -> None:
    before: list[Event] = []
    interrupted(job_of("adamw"), tmp_path, after(6), events=before)
    after_it: list[Event] = []
    result = train(job_of("adamw"), tmp_path, resume=True, events=after_it)
    done = [event.record for event in before if isinstance(event, EpochEnded)]
    assert after_it[0] == TrainingResumed(5, tuple(done))
    assert done == result.history[:1]
    assert [event.record for event in after_it if isinstance(event, EpochEnded)] == result.history[1:]


def test_the_time_before_an_interruption_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by ten seconds with each batch, three of training and two of validation in an epoch."""
    now = [0.0]
    monkeypatch.setattr("finetune.train.loop.time.perf_counter", lambda: now[0])

    def job() -> Job:
        plain = job_of("adamw")
        return collated_by(plain, lambda rows: (now.__setitem__(0, now[0] + 10), plain.collate(rows))[1])

    interrupted(job(), tmp_path, after(2))
    now[0] += 1e6
    result = train(job(), tmp_path, resume=True)
    assert [record["seconds"] for record in result.history] == [30.0] * 4
    assert [record["rows_per_second"] for record in result.history] == [22 / 30] * 4
    assert [phase["seconds"] for phase in result.phases] == [2 * (30.0 + 20.0)] * 2


@pytest.mark.parametrize("name", ["recipe", "data", "number_of_processes"])
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, name: str) -> None:
    key: dict[str, object] = {"recipe": "r", "data": "d", "number_of_processes": 1}
    interrupted(job_of("adamw"), tmp_path, after(2), key=key)
    with pytest.raises(RecipeError, match=f"^--resume: the {name.replace('_', ' ')} changed since"):
        train(job_of("adamw"), tmp_path, resume=True, key={**key, name: "other"})


def test_another_backbone_is_refused_since_the_anchors_would_differ(tmp_path: Path) -> None:
    interrupted(job_of("adamw"), tmp_path, after(2))
    job = job_of("adamw")
    with torch.no_grad():
        job.model.module.bert.embeddings.word_embeddings.weight[7, 7] += 1e-3
    with pytest.raises(RecipeError, match=r"^--resume: the backbone changed since"):
        train(job, tmp_path, resume=True)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    interrupted(job_of("adamw"), tmp_path, after(2))
    file = next(tmp_path.glob("*/model.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(TrainingError, match="was altered after it was written"):
        train(job_of("adamw"), tmp_path, resume=True)


def test_a_disk_that_fills_up_ends_the_run_which_resumes_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise BundleError("a checkpoint needs more than there is")

    with monkeypatch.context() as patch:
        events: list[Event] = []
        original = checkpoint.require_space
        patch.setattr(
            checkpoint, "require_space",
            lambda *args: full() if sum(isinstance(e, EpochEnded) for e in events) == 3 else original(*args),
        )  # fmt: skip
        with pytest.raises(BundleError, match=r"^a checkpoint needs more than there is$"):
            train(job_of("adamw"), tmp_path, events=events)
    job = job_of("adamw")
    assert Outcome(job, train(job, tmp_path, resume=True)) == uninterrupted("adamw")


def test_the_resumed_phase_does_not_hold_the_checkpoint_in_memory(tmp_path: Path) -> None:
    import gc
    import weakref

    interrupted(job_of("adamw"), tmp_path, after(2))
    loaded: list[weakref.ref[torch.Tensor]] = []
    original = checkpoint.CheckpointFolder.load

    def load(self: checkpoint.CheckpointFolder) -> checkpoint.Checkpoint | None:
        saved = original(self)
        assert saved is not None
        loaded.extend(weakref.ref(tensor) for part in saved.tensors.values() for tensor in part.values())
        return saved

    alive: list[int] = []

    class Count(list):  # type: ignore[type-arg]
        def append(self, event: Event) -> None:
            if isinstance(event, EpochEnded):
                gc.collect()
                alive.append(sum(reference() is not None for reference in loaded))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.CheckpointFolder, "load", load)
        train(job_of("adamw"), tmp_path, resume=True, events=Count())
    assert loaded
    assert alive[0] == 0

"""Runs that choose by themselves which layer groups to unfreeze."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from picture_samples import picture_job
from train_samples import small_job, timeless, train

from finetune.data.batches import epoch_steps
from finetune.errors import Interrupted
from finetune.train import loop, measure
from finetune.train.checkpoint import CheckpointFolder
from finetune.train.events import Event, Notice, PhaseStarted
from finetune.train.job import Job
from finetune.train.phase import fingerprint, tensors_of
from finetune.transfer.surgical import relative_gradient_norms

AUTO = {"unfreeze": "auto", "auto_groups": 2, "head_epochs": 1, "epochs": 2, "depth": "all"}


def auto_job(**options: Any) -> Job:
    return picture_job(transfer={**AUTO, **options.pop("transfer", {})}, **options)


def after_steps(count: int) -> Any:
    asked = iter(range(count - 1))
    return lambda: next(asked, None) is None


def test_the_groups_with_the_largest_relative_gradients_train_beside_the_head(tmp_path: Path) -> None:
    job, events = auto_job(), list[Event]()
    start = fingerprint(job.model.module)
    result = train(job, tmp_path, events=events)
    choice, names = result.choice, job.model.groups.names
    assert choice is not None
    norms = [entry["relative_gradient_norm"] for entry in choice["ranking"]]
    assert norms == sorted(norms, reverse=True)
    assert {entry["group"] for entry in choice["ranking"]} == set(names[:-1])
    assert choice["chosen"] == [entry["group"] for entry in choice["ranking"][:2]]
    trained = [name for name in names if name in {*choice["chosen"], "head"}]
    assert [phase["trainable"] for phase in result.phases] == [["head"], trained]
    assert [phase["choice"] for phase in result.phases] == [None, choice]
    assert [event.trainable for event in events if isinstance(event, PhaseStarted)][1] == tuple(trained)
    depths = job.model.groups.depth_of()
    moved = {names[depths[n]] for n, p in fingerprint(job.model.module).items() if n in depths and p != start[n]}
    assert moved <= set(trained)


def test_the_choice_is_told_in_one_sentence_before_the_phase_starts(tmp_path: Path) -> None:
    events: list[Event] = []
    result = train(auto_job(), tmp_path, events=events)
    assert result.choice is not None
    at = next(i for i, event in enumerate(events) if isinstance(event, Notice))
    assert events[at] == Notice(result.choice["reason"], result.choice)
    assert isinstance(events[at + 1], PhaseStarted)
    assert result.choice["reason"].startswith(f"unfreezing {result.choice['chosen'][0]} and {result.choice['chosen'][1]}: the largest relative gradients ")  # fmt: skip


def test_rates_are_the_discriminative_ones_of_the_chosen_depths(tmp_path: Path) -> None:
    job = auto_job(transfer={"decay": 0.5, "learning_rate": 1e-2})
    phase = train(job, tmp_path).phases[1]
    top = len(job.model.groups) - 1
    expected = {name: 1e-2 * 0.5 ** (top - job.model.groups.names.index(name)) for name in phase["trainable"]}
    assert phase["learning_rates"] == pytest.approx(expected)


def test_gradients_are_of_the_phases_first_steps_without_noise_after_the_head_has_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "GRADIENT_STEPS", 2)
    job = auto_job(shaken=True, label_smoothing=0.1, accumulation=2)
    job = replace(job, row_weights=np.random.default_rng(7).uniform(0.1, 4.0, len(job.train.labels)))
    found: list[dict[str, float]] = []

    def watched(*args: Any) -> dict[str, Any]:
        module = job.model.module
        rows = epoch_steps(job.plain.lengths, 6, seed=0, phase=1, epoch=0, bucket=True)[:2]

        def loss(step: list[int]) -> torch.Tensor:
            logits = module(**{n: torch.from_numpy(a) for n, a in job.plain.batch(step, None)[0].items()}).logits  # type: ignore[arg-type]
            truth, counted = torch.from_numpy(job.plain.labels[step]), torch.from_numpy(job.weights_of(step))
            each = torch.nn.functional.cross_entropy(logits, truth, label_smoothing=0.1, reduction="none")
            return (counted * each).mean()

        losses = ([loss(step)] for step in rows)
        found.append(relative_gradient_norms(module, job.model.groups, losses))
        return measure.choose_layer_groups(*args)

    monkeypatch.setattr(loop, "choose_layer_groups", watched)
    result = train(job, tmp_path)
    assert result.choice is not None
    told = {entry["group"]: entry["relative_gradient_norm"] for entry in result.choice["ranking"]}
    assert told == pytest.approx(found[0], rel=1e-4)


@pytest.mark.parametrize("batchnorm", ["freeze", "train"])
# Three steps and the end of the first phase's epoch, then three steps and an end for each of the second's.
@pytest.mark.parametrize("asked", [3, 4, 5, 8, 10])
def test_an_interrupted_and_resumed_run_has_the_same_choice_and_the_same_bits(
    tmp_path: Path, batchnorm: str, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = auto_job(batchnorm=batchnorm)
    expected = train(whole, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(auto_job(batchnorm=batchnorm), tmp_path / "parts", stop=after_steps(asked))
    if asked > 4:
        monkeypatch.setattr(loop, "choose_layer_groups", None)  # the checkpoint remembers; nothing is measured again
    job = auto_job(batchnorm=batchnorm)
    result = train(job, tmp_path / "parts", resume=True)
    assert fingerprint(job.model.module) == fingerprint(whole.model.module)
    assert result.choice == expected.choice
    assert timeless(result.history) == timeless(expected.history)
    assert timeless(result.phases) == timeless(expected.phases)


def test_a_remembered_choice_is_followed_even_if_it_would_now_be_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"ranking": [], "chosen": ["stem", "block 1"], "reason": "of old"}
    with monkeypatch.context() as patch:
        patch.setattr(loop, "choose_layer_groups", lambda *_: other)
        with pytest.raises(Interrupted):
            train(auto_job(), tmp_path, stop=after_steps(6))
    result = train(auto_job(), tmp_path, resume=True)
    assert result.choice == other
    assert result.phases[1]["trainable"] == ["stem", "block 1", "head"]


def test_a_checkpoint_holds_what_might_be_chosen(tmp_path: Path) -> None:
    job = auto_job()
    train(job, tmp_path)
    saved = CheckpointFolder(tmp_path, {}).load()
    assert saved is not None
    assert saved.model.keys() == tensors_of(job.model.module, job.model.groups.groups).keys()


def test_auto_works_on_texts_too(tmp_path: Path) -> None:
    result = train(small_job(rows=8, transfer={**AUTO, "auto_groups": 1, "epochs": 1}), tmp_path)
    assert result.choice is not None
    assert len(result.phases[1]["trainable"]) == 2


def test_runs_that_do_not_choose_have_no_choice(tmp_path: Path) -> None:
    result = train(small_job(rows=6), tmp_path)
    assert result.choice is None
    assert [phase["choice"] for phase in result.phases] == [None, None]

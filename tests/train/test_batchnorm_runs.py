"""Whole runs of small convolutional networks under each BatchNorm policy."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from picture_samples import picture_job
from train_samples import small_job, timeless, train

from finetune.errors import TrainingError
from finetune.model.groups import LayerGroup
from finetune.recipe import L2SPSettings
from finetune.train import recalibration
from finetune.train.events import Event, Notice
from finetune.train.job import Job
from finetune.train.phase import fingerprint
from finetune.transfer.batchnorm import batchnorms

POLICIES = ("freeze", "train", "recalibrate")
NETWORKS = ("test_efficientnet", "test_resnet")


def rising(job: Job) -> Job:
    """A metric by which each epoch is better than the one before, so that the last weights are kept."""
    counter = itertools.count()
    return replace(job, score=lambda *_: float(next(counter)))


def tensors(job: Job, groups: Sequence[LayerGroup]) -> dict[str, torch.Tensor]:
    """Everything BatchNorm has in some layer groups: weights and statistics."""
    module = job.model.module
    named = [*module.named_parameters(), *module.named_buffers()]
    owners = batchnorms(module, groups)
    return {name: tensor.detach().clone() for name, tensor in named if name.rpartition(".")[0] in owners}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Last part of the names of what is not the same to the last bit."""
    return {name.rpartition(".")[2] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("policy", POLICIES)
def test_frozen_layers_keep_statistics_and_weights_to_the_last_bit(tmp_path: Path, network: str, policy: str) -> None:
    job = rising(picture_job(network, batchnorm=policy))
    frozen = job.model.groups.groups[:-3]
    before = tensors(job, frozen)
    assert {name.rpartition(".")[2] for name in before} == {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}  # fmt: skip
    result = train(job, tmp_path)
    assert result.phases[1]["trainable"] == list(job.model.groups.names[-3:])
    assert changed(before, tensors(job, frozen)) == set()


@pytest.mark.parametrize("network", NETWORKS)
def test_freeze_keeps_batchnorm_of_training_layers_too_while_the_rest_moves(tmp_path: Path, network: str) -> None:
    job = rising(picture_job(network, batchnorm="freeze"))
    start, before = fingerprint(job.model.module), tensors(job, job.model.groups.groups)
    result = train(job, tmp_path)
    assert changed(before, tensors(job, job.model.groups.groups)) == set()
    moved = {job.model.groups.depth_of()[n] for n, p in fingerprint(job.model.module).items() if p != start[n]}
    top = len(job.model.groups) - 1
    assert moved == {top - 2, top - 1, top}
    assert all(not set(before) & set(phase["check"]["unmoved_parameters"]) for phase in result.phases)
    assert result.batchnorm["policy"] == "freeze"
    assert result.batchnorm["recalibration"] is None


@pytest.mark.parametrize("policy", ["train", "recalibrate"])
def test_under_the_other_policies_batchnorm_of_training_layers_learns(tmp_path: Path, policy: str) -> None:
    job = rising(picture_job(batchnorm=policy))
    learned = job.model.groups.groups[-3:]
    before = tensors(job, learned)
    train(job, tmp_path)
    assert changed(before, tensors(job, learned)) >= {"weight", "bias", "running_mean", "running_var"}


def test_recalibrated_statistics_are_those_of_training_rows_without_noise(tmp_path: Path) -> None:
    """Training sees pictures that are far too bright: running averages remember that, recalibrated ones do not."""
    means = {}
    for policy in ("train", "recalibrate"):
        job = rising(picture_job(batchnorm=policy, shaken=True, transfer={"unfreeze": "full", "depth": "all"}))
        train(job, tmp_path / policy)
        stem = job.model.module.net.bn1
        with torch.no_grad():
            seen = job.model.module.net.conv_stem(torch.from_numpy(np.stack(job.plain.rows)))  # type: ignore[attr-defined]
        means[policy] = float((stem.running_mean - seen.mean((0, 2, 3))).abs().max())
    # Of 18 rows all take part, in three batches of six.
    assert means["recalibrate"] < 1e-5
    assert means["train"] > 1e-2


def test_what_recalibration_changed_is_told_and_reported(tmp_path: Path) -> None:
    job, events = picture_job(batchnorm="recalibrate", shaken=True), list[Event]()
    result = train(job, tmp_path, events=events)
    found = result.batchnorm["recalibration"]
    assert found.keys() == {"rows", "batches", "metric_before", "metric_after", "loss_before", "loss_after"}
    assert (found["rows"], found["batches"]) == (18, 3)
    best = min(result.history, key=lambda record: (-record["validation_metric"], record["validation_loss"]))
    assert (found["metric_before"], found["loss_before"]) == (best["validation_metric"], best["validation_loss"])
    with torch.no_grad():
        logits = job.model.module(torch.from_numpy(np.stack(job.validation.inputs))).logits.numpy()
    assert found["metric_after"] == job.score(logits, job.validation.labels)
    assert found["loss_after"] == pytest.approx(job.validation_loss(logits, job.validation.labels), rel=1e-5)
    assert found["loss_after"] != found["loss_before"]
    notices = [event for event in events if isinstance(event, Notice)]
    assert [notice.values for notice in notices] == [found]
    assert notices[0].message.startswith("recalibrated BatchNorm on 18 training rows: validation metric ")
    assert result.batchnorm["layers"] == {
        "trained_groups": len(batchnorms(job.model.module, job.model.groups.groups[-3:])),
        "frozen_groups": len(batchnorms(job.model.module, job.model.groups.groups[:-3])),
    }


def test_recalibration_uses_a_bounded_number_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recalibration, "MOST_ROWS", 11)
    result = train(picture_job(batchnorm="recalibrate", transfer={"unfreeze": "full", "depth": 2}), tmp_path)
    # Two batches of one size, so of eleven rows one is left out.
    assert (result.batchnorm["recalibration"]["rows"], result.batchnorm["recalibration"]["batches"]) == (10, 2)


def test_recalibration_that_changes_anything_else_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = picture_job(batchnorm="recalibrate")

    def leaky(module: torch.nn.Module, *_: object) -> int:
        next(iter(module.parameters())).data.add_(1)
        return 1

    monkeypatch.setattr(recalibration.batchnorm, "recalibrate", leaky)
    with pytest.raises(TrainingError, match=r"changed 'net\.conv_stem\.weight', which it must not"):
        train(job, tmp_path)


@pytest.mark.parametrize("policy", POLICIES)
def test_two_runs_give_the_same_bits(tmp_path: Path, policy: str) -> None:
    jobs = [picture_job(batchnorm=policy, transfer={"depth": 2}) for _ in range(2)]
    results = [train(job, tmp_path / str(number)) for number, job in enumerate(jobs)]
    assert fingerprint(jobs[0].model.module) == fingerprint(jobs[1].model.module)
    assert results[0].batchnorm == results[1].batchnorm
    assert timeless(results[0].history) == timeless(results[1].history)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_network_without_batchnorm_trains_as_ever(tmp_path: Path, policy: Any) -> None:
    plain, job = small_job(rows=6), replace(small_job(rows=6), batchnorm=policy)
    events: list[Event] = []
    train(plain, tmp_path / "plain")
    result = train(job, tmp_path / "policy", events=events)
    assert fingerprint(job.model.module) == fingerprint(plain.model.module)
    assert result.batchnorm == {"policy": policy, "layers": {"trained_groups": 0, "frozen_groups": 0}, "recalibration": None}  # fmt: skip
    said = [event.message for event in events if isinstance(event, Notice)]
    assert said == (["transfer.batchnorm: recalibrate had nothing to do, since no layer group that trained has BatchNorm"] if policy == "recalibrate" else [])  # fmt: skip


def test_a_step_of_one_row_that_batchnorm_cannot_take_is_refused_in_words(tmp_path: Path) -> None:
    """The last layers of these networks see a picture of 16 pixels as a single one."""
    job = picture_job(rows=7, transfer={"unfreeze": "full", "depth": 2})
    with pytest.raises(TrainingError, match=r"^BatchNorm cannot normalise over a single row; choose a train\.batch_size"):  # fmt: skip
        train(job, tmp_path / "train")
    train(picture_job(rows=7, batchnorm="freeze", transfer={"unfreeze": "full", "depth": 2}), tmp_path / "freeze")


def test_the_number_of_parts_changes_nothing_where_batchnorm_is_frozen(tmp_path: Path) -> None:
    jobs = [picture_job(batchnorm="freeze", optimizer="sgd", accumulation=parts) for parts in (1, 4)]
    for job in jobs:
        train(job, tmp_path / str(job.settings.accumulation))
    for one, other in zip(jobs[0].model.module.parameters(), jobs[1].model.module.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_l2sp_leaves_batchnorm_and_biases_out(tmp_path: Path) -> None:
    """Under a pull of full strength kernels hardly leave their start; vectors go where the loss wants them."""
    pull = L2SPSettings(coupling="decoupled", alpha=99.0, beta=0.0)
    jobs = [rising(picture_job(l2sp=held, transfer={"depth": 2, "decay": 1.0})) for held in (L2SPSettings(), pull)]
    moved: list[dict[str, float]] = []
    for number, job in enumerate(jobs):
        start = {name: p.detach().clone() for name, p in job.model.module.named_parameters()}
        train(job, tmp_path / str(number))
        group = job.model.groups.groups[-2]
        named = dict(job.model.module.named_parameters())
        moved.append({name: float((named[name] - start[name]).detach().norm()) for name in group.parameters})
    for name, free in moved[0].items():
        vector = jobs[0].model.module.get_parameter(name).ndim == 1
        assert (moved[1][name] > free / 2) == vector, name


def test_the_order_of_pixels_in_memory_changes_only_how_sums_are_rounded(tmp_path: Path) -> None:
    start = {name: p.detach().clone() for name, p in picture_job().model.module.named_parameters()}
    trained = {}
    for form in ("contiguous", "channels_last"):
        job = rising(picture_job(batchnorm="freeze"))
        job = replace(job, settings=job.settings.model_copy(update={"memory_format": form}))
        train(job, tmp_path / form)
        trained[form] = {name: p.detach() for name, p in job.model.module.named_parameters()}
        assert all(p.is_contiguous() for p in trained[form].values())
    apart = max(float((trained["contiguous"][name] - p).abs().max()) for name, p in trained["channels_last"].items())
    moved = max(float((start[name] - p).abs().max()) for name, p in trained["channels_last"].items())
    assert 0 < apart < moved / 50

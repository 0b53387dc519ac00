"""A whole gradual run in two processes over gloo: replicas stay equal, and two come to what one comes to."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from train_samples import environment, timeless, train

HERE = Path(__file__).parent
# Two processes that import torch on a busy machine take a minute; one that waits for ever takes longer.
LONGEST_S = 300


def launch(folder: Path, processes: int) -> list[dict[str, Any]]:
    """What each process found."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={processes}", "--rdzv-backend=c10d",
               "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1", str(HERE / "many_processes.py"), str(folder)]  # fmt: skip
    alone = environment(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo", CUDA_VISIBLE_DEVICES="")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=alone) as group:
        try:
            said, _ = group.communicate(timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            group.terminate()  # the launcher passes it on to its processes
            group.wait(timeout=60)
            pytest.fail(f"{processes} processes were still running after {LONGEST_S} s")
    assert group.returncode == 0, said
    return [json.loads((folder / f"found{rank}.json").read_text("utf-8")) for rank in range(processes)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("two")
    return folder, launch(folder, 2)


def test_replicas_are_equal_bit_for_bit_and_tell_the_same(two: tuple[Path, list[dict[str, Any]]]) -> None:
    _, (first, second) = two
    for name in ("smooth", "noisy", "resumed 0", "resumed 1", "pictures frozen", "pictures", "pictures resumed",
                 "language none", "language lora", "noisy language", "language resumed"):  # fmt: skip
        assert "ended" not in first[name], first[name]
        assert first[name] == second[name], name
    assert [phase["trainable"] for phase in first["smooth"]["phases"]] == [["head"], ["block 1", "head"]]


def test_two_processes_come_to_what_one_comes_to(two: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    from many_processes import smooth_job

    folder, (found, _) = two
    job = smooth_job()
    result = train(job, tmp_path)
    trained = load_file(folder / "smooth0.safetensors")
    for name, parameter in job.model.module.named_parameters():
        assert torch.allclose(parameter, trained[name], atol=1e-5), name
    for one, other in zip(timeless(result.history), found["smooth"]["history"], strict=True):
        assert one.pop("drift") == pytest.approx(other.pop("drift"), abs=1e-5)
        assert one.pop("learning_rates") == other.pop("learning_rates")
        assert one.pop("phase_name") == other.pop("phase_name")
        assert one == pytest.approx(other, abs=1e-5)


def test_two_processes_come_to_what_one_comes_to_where_batchnorm_is_frozen(
    two: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    from many_processes import frozen_pictures

    alone = train(frozen_pictures(), tmp_path)
    for one, other in zip(alone.history, two[1][0]["pictures frozen"]["history"], strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=1e-5)
        assert one["validation_loss"] == pytest.approx(other["validation_loss"], abs=1e-5)


def test_processes_whose_batchnorm_learns_agree_choose_alike_and_resume_to_the_same_bits(
    two: tuple[Path, list[dict[str, Any]]],
) -> None:
    for found in two[1]:
        assert len(found["pictures"]["choice"]["chosen"]) == 2
        assert found["pictures"]["batchnorm"]["recalibration"]["rows"] == 16
        assert "ended" in found["pictures stopped"]
        assert found["pictures resumed"] == found["pictures"]


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_two_processes_of_a_language_model_come_to_what_one_comes_to_by_tokens(
    two: tuple[Path, list[dict[str, Any]]], tmp_path: Path, adapter: str
) -> None:
    from many_processes import smooth_language

    job = smooth_language(adapter)
    result = train(replace(job, settings=job.settings.model_copy(update={"accumulation": 1})), tmp_path)
    trained = load_file(two[0] / f"{adapter}0.safetensors")
    for name, parameter in job.model.module.named_parameters():
        assert torch.allclose(parameter, trained[name], atol=1e-5), name
    for one, other in zip(result.history, two[1][0][f"language {adapter}"]["history"], strict=True):
        for measured in ("train_loss", "validation_loss"):
            assert one[measured] == pytest.approx(other[measured], abs=1e-5)


def test_a_language_model_stopped_in_one_process_resumes_in_both_to_the_same_bits(
    two: tuple[Path, list[dict[str, Any]]],
) -> None:
    for found in two[1]:
        assert "ended" in found["language stopped"]
        assert found["language resumed"] == found["noisy language"]


@pytest.mark.parametrize("number", [0, 1])
def test_a_stop_of_one_process_stops_both_and_they_resume_to_the_same_bits(
    two: tuple[Path, list[dict[str, Any]]], number: int
) -> None:
    for found in two[1]:
        assert found[f"stopped {number}"] == {"ended": "Interrupted: stopped at a step boundary after writing a checkpoint"}  # fmt: skip
        assert found[f"resumed {number}"] == found["noisy"]


def test_a_loss_that_is_no_number_in_one_process_ends_both_in_one_sentence(
    two: tuple[Path, list[dict[str, Any]]],
) -> None:
    said = [found["no number"]["ended"] for found in two[1]]
    assert said[0] == said[1]
    assert said[0].startswith("TrainingError: the loss became nan in phase 'head', epoch 2, step 3;")


def test_a_checkpoint_that_one_process_cannot_write_ends_both(two: tuple[Path, list[dict[str, Any]]]) -> None:
    assert [found["full"] for found in two[1]] == [{"ended": "BundleError: the disk is full"}] * 2

"""What one process of a run does alone while the others wait, over gloo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from train_samples import environment

from finetune.errors import GateError
from finetune.train.processes import company

MEET = """
import os, sys, time
from datetime import timedelta
import torch.distributed as dist
from accelerate import Accelerator
from finetune.errors import FinetuneError, GateError
from finetune.train.processes import company, minimum_over_processes

rank, timeout = int(sys.argv[1]), timedelta(seconds=5)
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2, timeout=timeout)

def refused():
    raise GateError("it is worse than allowed")

"""


def together(folder: Path, body: str) -> list[tuple[int, str]]:
    """Exit status and output of two processes that run the same lines."""
    # The address is what Accelerate asks for; the processes meet in a file.
    alone = environment(
        OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo", CUDA_VISIBLE_DEVICES="", WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1", MASTER_PORT="29500",
    )  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MEET + body, str(rank), str(folder / "meet")],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**alone, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    said = [process.communicate(timeout=200)[0] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def test_the_others_wait_longer_than_a_collective_operation_may_take_and_end_as_the_main_one_does(
    tmp_path: Path,
) -> None:
    body = """
print("least", minimum_over_processes(7 + rank, Accelerator(cpu=True)))
with company() as processes:
    print("found", processes.main_alone(lambda: time.sleep(2 * timeout.total_seconds()) or "bundle"))
    try:
        processes.main_alone(refused)
    except FinetuneError as error:
        print(type(error).__name__, error)
"""
    for rank, (status, text) in enumerate(together(tmp_path, body)):
        assert status == 0, text
        found = "bundle" if rank == 0 else None
        assert text.splitlines()[-3:] == ["least 7", f"found {found}", "GateError it is worse than allowed"]


def test_a_main_process_that_dies_ends_the_others_with_a_sentence(tmp_path: Path) -> None:
    body = """
with company() as processes:
    try:
        processes.main_alone(lambda: os._exit(7))
    except FinetuneError as error:
        print(type(error).__name__, error)
"""
    (status, _), (other, text) = together(tmp_path, body)
    assert status == 7
    assert other == 0, text
    last = text.splitlines()[-1]
    assert last == "TrainingError the main process has ended without a word; what it printed says why"


def test_a_process_alone_just_works() -> None:
    def refused() -> None:
        raise GateError("worse")

    with company() as processes:
        assert processes.main_alone(lambda: 3) == 3
        with pytest.raises(GateError, match="worse"):
            processes.main_alone(refused)

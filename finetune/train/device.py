"""The machine's side of training: Accelerate, arithmetic that the hardware really has, and determinism."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from finetune.errors import RecipeError
from finetune.hardware import cpu

SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def make_accelerator(*, precision: str, device: str) -> Accelerator:
    """An Accelerator for this process; RecipeError when the precision is not real here or the launcher asks for sharding.

    DeepSpeed and FSDP fix what trains when they wrap a model, so a plan of several phases would train wrongly.
    """
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    chosen = _precision(precision, on_cpu)
    # A second run in one process may ask for another precision, which Accelerate's shared state would refuse.
    AcceleratorState._reset_state(reset_partial_state=False)
    accelerator = Accelerator(mixed_precision="no" if chosen == "fp32" else chosen, cpu=on_cpu)
    if accelerator.distributed_type not in SUPPORTED:
        raise RecipeError(
            f"{accelerator.distributed_type.value} cannot change what trains between phases; launch with plain data parallelism"
        )
    return accelerator


def _precision(asked: str, on_cpu: bool) -> str:
    """`auto` is bf16 where it is computed in hardware; elsewhere it is emulated and many times slower."""
    if on_cpu:
        native_bf16 = bool({"avx512_bf16", "amx_bf16"} & set(cpu().flags))
        if asked == "fp16":
            raise RecipeError("train.precision: fp16 needs a GPU; use fp32 or auto")
    else:
        native_bf16 = torch.cuda.get_device_capability()[0] >= 8
    if asked == "bf16" and not native_bf16:
        raise RecipeError(
            "train.precision: this hardware has no bf16 arithmetic, so it would be emulated and slow; use auto"
        )
    return ("bf16" if native_bf16 else "fp32") if asked == "auto" else asked


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Seed every generator and ask torch for deterministic kernels; on leaving, give the caller's state back."""
    python, array = random.getstate(), np.random.get_state()
    kernels, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark, cublas = torch.backends.cudnn.benchmark, os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    # cuBLAS is deterministic only with a fixed workspace, which it reads when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)
            torch.use_deterministic_algorithms(kernels, warn_only=warn_only)
            torch.backends.cudnn.benchmark = benchmark
            if cublas is None:
                os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)

"""The machine's side of training: Accelerate, arithmetic that the hardware really has, and determinism."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, GradientAccumulationPlugin, parse_flag_from_env
from torch import nn

from finetune.errors import RecipeError
from finetune.hardware import cpu

SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
# What a launcher's environment asks for that fixes what trains when a network is wrapped, or splits one network up.
SHARDING = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "Accelerate's parallelism configuration",
}


def make_accelerator(*, precision: str, device: str) -> Accelerator:
    """An Accelerator for this process; RecipeError when the precision is not real here or the launcher asks for sharding.

    The recipe decides: precision, accumulation and compilation that a launcher's environment asks for have no effect.
    """
    for variable, name in SHARDING.items():
        if parse_flag_from_env(variable):
            raise _sharding_refused(name)
    on_cpu = device == "cpu" or not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    chosen = _precision(precision, on_cpu)
    # A second run in one process may ask for another precision or device, which Accelerate's shared state would refuse.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    accelerator = Accelerator(
        mixed_precision="no" if chosen == "fp32" else chosen,
        cpu=on_cpu,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend="no",
    )
    if accelerator.distributed_type not in SUPPORTED:
        raise _sharding_refused(accelerator.distributed_type.value)
    if on_cpu != (accelerator.device.type == "cpu"):
        raise RecipeError(
            f"train.device: this process already runs on {accelerator.device.type} together with others; start a new one"
        )
    return accelerator


def memory_format(module: nn.Module, asked: str, device: torch.device, *, frozen: bool) -> torch.memory_format:
    """How a network's 4-d tensors shall lie in memory: "contiguous", "channels_last", or by "auto" what is faster.

    frozen: whether batch normalisation keeps its statistics. On CPUs depthwise convolutions are then faster with the channels
    last; dense ones, and batch statistics, are not (benchmarks/memory_format.py).
    """
    if asked == "auto":
        depthwise = any(isinstance(part, nn.Conv2d) and part.groups > 1 for part in module.modules())
        asked = "channels_last" if depthwise and frozen and device.type == "cpu" else "contiguous"
    return torch.channels_last if asked == "channels_last" else torch.contiguous_format


def release(accelerator: Accelerator, module: nn.Module) -> None:
    """Undo what `accelerator.prepare` did to a network itself, so that it is plain again and can be prepared anew.

    Accelerate marks a prepared network and returns a marked one as it is, so without this only a run's first phase
    would compute in mixed precision.
    """
    accelerator.free_memory()
    original = vars(module).pop("_original_forward", None)
    if original is not None:
        del module.forward
        # An instance's own forward, if it had one; the class's needs no copy, which would keep pointing at this instance.
        if getattr(original, "__func__", None) is not type(module).forward:
            module.forward = original
    vars(module).pop("_is_accelerate_prepared", None)


def _sharding_refused(name: str) -> RecipeError:
    return RecipeError(f"{name} cannot change what trains between phases; launch with plain data parallelism")


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
    kernels = torch.get_deterministic_debug_mode()
    memory: Any = torch.utils.deterministic
    fill, benchmark = memory.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    cublas = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    # cuBLAS is deterministic only with a fixed workspace, which it reads when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        torch.set_deterministic_debug_mode("warn")
        # Filling every new tensor with NaN would show a read of unwritten memory; it costs some percent of each step.
        memory.fill_uninitialized_memory = False
        torch.backends.cudnn.benchmark = False
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)
            torch.set_deterministic_debug_mode(kernels)
            memory.fill_uninitialized_memory = fill
            torch.backends.cudnn.benchmark = benchmark
            if cublas is None:
                os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)

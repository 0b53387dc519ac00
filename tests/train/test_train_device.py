"""The process's side of training: precision that is real, no sharding, and a caller whose generators stay as they were."""

from __future__ import annotations

import os
import random
import warnings

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from train_samples import small_model

from finetune.errors import RecipeError
from finetune.train import device
from finetune.train.device import deterministic, make_accelerator, memory_format, release


def flags(monkeypatch: pytest.MonkeyPatch, *found: str) -> None:
    """Let the processor have these instruction sets."""
    monkeypatch.setattr(device, "cpu", lambda: type("CPU", (), {"flags": found}))


def test_bf16_is_refused_where_it_would_be_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    flags(monkeypatch, "avx2")
    with pytest.raises(RecipeError, match=r"^train\.precision: this hardware has no bf16 arithmetic.*use auto$"):
        make_accelerator(precision="bf16", device="cpu")


def test_fp16_is_refused_without_a_gpu() -> None:
    with pytest.raises(RecipeError, match=r"^train\.precision: fp16 needs a GPU; use fp32 or auto$"):
        make_accelerator(precision="fp16", device="cpu")


@pytest.mark.parametrize(("found", "expected"), [((), "no"), (("avx512_bf16",), "bf16"), (("amx_bf16",), "bf16")])
def test_auto_precision_is_what_the_hardware_has(
    monkeypatch: pytest.MonkeyPatch, found: tuple[str, ...], expected: str
) -> None:
    flags(monkeypatch, *found)
    assert make_accelerator(precision="auto", device="cpu").mixed_precision == expected


def test_a_second_run_may_use_another_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    flags(monkeypatch, "amx_bf16")
    for precision, expected in (("fp32", "no"), ("bf16", "bf16"), ("fp32", "no")):
        assert make_accelerator(precision=precision, device="cpu").mixed_precision == expected


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_FSDP", "FSDP"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
    ],
)
def test_launchers_that_shard_are_refused(monkeypatch: pytest.MonkeyPatch, variable: str, name: str) -> None:
    monkeypatch.setenv(variable, "true")
    with pytest.raises(RecipeError, match=f"^{name} cannot change what trains between phases; launch with plain"):
        make_accelerator(precision="fp32", device="cpu")


def test_any_other_kind_of_distribution_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "SUPPORTED", (DistributedType.MULTI_GPU,))
    with pytest.raises(RecipeError, match="launch with plain data parallelism"):
        make_accelerator(precision="fp32", device="cpu")


def test_the_recipe_decides_and_not_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch` passes its own configuration on in variables; accumulation would shrink every gradient."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    accelerator = make_accelerator(precision="fp32", device="cpu")
    weight = torch.ones(1, requires_grad=True)
    accelerator.backward(weight.sum())
    assert weight.grad is not None
    assert weight.grad.item() == 1
    assert accelerator.mixed_precision == "no"
    assert accelerator.state.dynamo_plugin.backend.value == "NO"


def test_a_network_is_plain_again_after_its_release(monkeypatch: pytest.MonkeyPatch) -> None:
    flags(monkeypatch, "amx_bf16")
    module = small_model().module
    untouched = set(vars(module))
    accelerator = make_accelerator(precision="bf16", device="cpu")
    ids, optimizer = torch.tensor([[1, 2, 3]]), torch.optim.SGD(module.parameters(), lr=0.1)
    with torch.no_grad():
        exact = module(input_ids=ids).logits
        for _ in range(3):
            accelerator.prepare(module, optimizer)
            assert not torch.equal(module(input_ids=ids).logits, exact), "prepared for bf16, it computes in fp32"
            release(accelerator, module)
            assert torch.equal(module(input_ids=ids).logits, exact)
    assert set(vars(module)) == untouched


def test_a_release_keeps_a_forward_that_the_network_had_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    flags(monkeypatch, "amx_bf16")
    module = torch.nn.Linear(2, 2)
    own = module.forward = lambda x: x + 1
    accelerator = make_accelerator(precision="bf16", device="cpu")
    accelerator.prepare(module, torch.optim.SGD(module.parameters(), lr=0.1))
    release(accelerator, module)
    assert module.forward is own


def generators() -> tuple[object, ...]:
    state = np.random.get_state()
    return random.getstate(), state[1].tobytes(), state[2:], torch.get_rng_state().numpy().tobytes()


@pytest.mark.parametrize("fails", [False, True])
def test_the_callers_state_comes_back(fails: bool) -> None:
    def settings() -> tuple[object, ...]:
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
            torch.backends.cudnn.benchmark,
            os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
            list(warnings.filters),
        )

    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    before = generators(), settings()
    try:
        with deterministic(1):
            assert torch.are_deterministic_algorithms_enabled()
            random.random(), np.random.rand(), torch.rand(1)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert (generators(), settings()) == before


def test_everything_drawn_inside_depends_on_the_seed_alone() -> None:
    def draw(seed: int) -> tuple[float, float, float]:
        with deterministic(seed):
            return random.random(), float(np.random.rand()), float(torch.rand(1))

    first = draw(1)
    random.random(), np.random.rand(), torch.rand(1)
    assert draw(1) == first
    assert all(a != b for a, b in zip(draw(2), first))


def test_networks_with_depthwise_convolutions_get_channels_last_on_a_cpu() -> None:
    dense, depthwise = torch.nn.Conv2d(4, 4, 3), torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, groups=4))
    on_cpu = torch.device("cpu")
    assert memory_format(depthwise, "auto", on_cpu, frozen=True) == torch.channels_last
    assert memory_format(depthwise, "auto", on_cpu, frozen=False) == torch.contiguous_format
    assert memory_format(dense, "auto", on_cpu, frozen=True) == torch.contiguous_format
    assert memory_format(depthwise, "auto", torch.device("cuda"), frozen=True) == torch.contiguous_format
    assert memory_format(dense, "channels_last", on_cpu, frozen=False) == torch.channels_last
    assert memory_format(depthwise, "contiguous", on_cpu, frozen=True) == torch.contiguous_format

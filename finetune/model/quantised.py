"""Frozen weights in 8 or 4 bits through bitsandbytes, to train adapters beside them; and back to fp32.

What runs on a GPU only is refused elsewhere: bitsandbytes has slow kernels for a CPU, where nothing would be gained.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from finetune.errors import RecipeError

Base = Literal["fp32", "int8", "nf4"]
# bitsandbytes' classes of parameters.
_FORMS: dict[str, Base] = {"Int8Params": "int8", "Params4bit": "nf4"}


def require_gpu(base: Base) -> None:
    """RecipeError unless weights in this form can be held here: int8 and nf4 need a GPU and the package bitsandbytes."""
    import importlib.util

    if base == "fp32":
        return
    if not torch.cuda.is_available():
        raise RecipeError(
            f"transfer.adapter.base: {base} weights need a GPU, and none is here; set it to fp32, or run on a machine with a GPU"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RecipeError(
            f"transfer.adapter.base: {base} weights need the package bitsandbytes; run pip install 'finetune-recipes[bitsandbytes]'"
        )


def quantisation(base: Base, *, compute: torch.dtype | None = None) -> Any:
    """The setting of transformers that loads weights in this form; None for fp32.

    compute: what 4-bit weights are multiplied in; bf16 where the GPU has it, else fp16, when absent.
    """
    if base == "fp32":
        return None
    from transformers import BitsAndBytesConfig

    if base == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if compute is None:
        compute = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def base_of(module: nn.Module) -> Base:
    """The form in which a network holds its linear layers' weights."""
    kinds = {type(parameter).__name__ for parameter in module.parameters()}
    return next((form for kind, form in _FORMS.items() if kind in kinds), "fp32")


def weights_in(parameter: nn.Parameter) -> int:
    """Number of weights in a parameter; bitsandbytes packs two of 4 bits into a byte."""
    state = getattr(parameter, "quant_state", None)
    return int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()


def with_plain_weights(module: Any) -> nn.Module | None:
    """A new network of the same class on the CPU with the weights of `module` in fp32, adapters left out.

    None when nothing in `module` is quantised.
    """
    quantised = {name: child for name, child in module.named_modules() if _quantised_weight(child)}
    if not quantised:
        return None
    import copy

    from peft.tuners.tuners_utils import BaseTunerLayer

    tuned = {name for name, child in module.named_modules() if isinstance(child, BaseTunerLayer)}
    config = copy.deepcopy(module.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.random.fork_rng(devices=[]):
        plain = type(module)(config).to(torch.float32)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            owner, _, last = name.rpartition(".")
            inside = f"{owner}.base_layer" if owner in tuned else owner
            holder = quantised.get(inside)
            value = (
                _dequantised(holder)
                if holder is not None and last == "weight"
                else module.get_parameter(f"{inside}.{last}")
            )
            parameter.copy_(value.to("cpu", torch.float32))
        for name, buffer in plain.named_buffers():
            buffer.copy_(module.get_buffer(name))
    plain.generation_config = module.generation_config
    return plain.eval()  # type: ignore[no-any-return]


def _quantised_weight(module: nn.Module) -> bool:
    return type(getattr(module, "weight", None)).__name__ in _FORMS


def _dequantised(module: Any) -> torch.Tensor:
    from peft.utils.integrations import dequantize_bnb_weight

    return dequantize_bnb_weight(module.weight, state=getattr(module, "state", None))

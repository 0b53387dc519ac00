"""A pretrained causal language model, ready for transfer learning: its weights, its layer groups, adapters if asked for.

Nothing about it is new: the head is the last normalisation and, where it is not the input embeddings again, the output
matrix. So no parameter lacks a pretrained value, unless there is an adapter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune.errors import SourceError
from finetune.model.adapters import AdapterSettings, add_adapter
from finetune.model.backbone import TransferModel, short_text
from finetune.model.groups import find_layer_groups
from finetune.model.heads import body_of
from finetune.model.modes import evaluating
from finetune.model.quantised import Base, base_of, quantisation, require_gpu
from finetune.model.quiet import quiet_transformers
from finetune.model_files import first_line

# How much two computations of the same numbers in another order may differ, as a share of the largest. One token more or less
# in sight changes the logits of a random network by a hundredth, and weights in 8 bits depend a little on what is beside them.
_SAME: dict[Base, float] = {"fp32": 1e-4, "int8": 5e-2, "nf4": 5e-2}


def load_causal_lm(folder: Path, *, seed: int, adapter: AdapterSettings | None = None) -> TransferModel:
    """Load `folder` in fp32; with an adapter its parameters alone may train, and its values depend on `seed` alone.

    A tied weight is one parameter, in the group of the embeddings. Neither torch's generator nor transformers' settings
    change. SourceError when weights are missing, a token can see those after it, or the network cannot be divided into layer
    groups; RecipeError for an adapter that this network or this machine cannot have.
    """
    wanted = adapter if adapter is not None and adapter.kind != "none" else None
    base = wanted.base if wanted is not None else "fp32"
    require_gpu(base)
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        module = _load(folder, quantisation(base), "cpu" if base == "fp32" else f"cuda:{torch.cuda.current_device()}")
        return _divided(folder, module, seed=seed, adapter=wanted)


def keeps_documents_apart(module: nn.Module) -> bool:
    """Whether a token of a packed block sees its own document only, tried on a short block of two.

    Most architectures take a mask of which token may see which; one that builds its own, or that carries a state from token
    to token, does not heed it.
    """
    first = _ids(module)[:, :4]
    second = first.flip(1)
    documents = torch.arange(2, device=first.device).repeat_interleave(first.shape[1])
    apart = (documents[:, None] == documents[None, :]).tril()[None, None]
    places = torch.arange(first.shape[1], device=first.device).repeat(2)[None]
    alone = torch.cat([_logits(module, first), _logits(module, second)], dim=1)
    try:
        together = _logits(module, torch.cat([first, second], dim=1), attention_mask=apart, position_ids=places)
    except (
        Exception
    ):  # an architecture that does not take such a mask, or positions, says so in whatever class it likes
        return False
    return _same(module, together, alone)


def _divided(folder: Path, module: Any, *, seed: int, adapter: AdapterSettings | None) -> TransferModel:
    _refuse_what_looks_ahead(folder, module)
    probe = {name: tensor.to(module.device) for name, tensor in short_text(module).items()}
    groups = find_layer_groups(module, body_of(module), lambda: module(**probe), headless=True)
    architecture = type(module).__name__
    if adapter is None:
        return TransferModel(module, groups, frozenset(), architecture)
    torch.manual_seed(seed)
    groups, fresh = add_adapter(module, groups, adapter)
    return TransferModel(module, groups, fresh, architecture)


def _load(folder: Path, quantised: Any, device: str) -> Any:
    from transformers import AutoModelForCausalLM

    settings = {"quantization_config": quantised, "device_map": {"": device}} if quantised is not None else {}
    try:
        module, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False,
            ignore_mismatched_sizes=True, output_loading_info=True, **settings,
        )  # fmt: skip
    except Exception as error:  # transformers passes on whatever the architecture or a file reader raises
        raise SourceError(f"backbone '{folder}' cannot be loaded as a language model: {first_line(error)}") from error
    lacking = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if lacking:
        raise SourceError(
            f"backbone '{folder}' lacks the weights of {len(lacking)} parameters, such as '{lacking[0]}', or has them in "
            f"another shape; it is not a checkpoint of {type(module).__name__}"
        )
    return module


def _refuse_what_looks_ahead(folder: Path, module: Any) -> None:
    """SourceError when an earlier token's answer depends on a later token, as in BERT: it has seen what it should say."""
    ids = _ids(module)
    other = ids.clone()
    other[:, -1] = ids[:, 0]
    try:
        one, two = _logits(module, ids), _logits(module, other)
    except Exception as error:  # whatever this architecture's own code raises
        raise SourceError(
            f"backbone '{folder}': {type(module).__name__} fails on a short text ({first_line(error)}); choose another backbone"
        ) from error
    if not _same(module, one[:, :-1], two[:, :-1]):
        raise SourceError(
            f"backbone '{folder}': {type(module).__name__} sees the tokens that it should predict, so it is no causal language model; choose another backbone"
        )


def _ids(module: Any) -> torch.Tensor:
    return short_text(module)["input_ids"].to(module.device)


@torch.no_grad()
def _logits(module: Any, ids: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    """Logits (B, T, V) without dropout."""
    with evaluating(module):
        logits: torch.Tensor = module(input_ids=ids, use_cache=False, **inputs).logits.float()
    return logits


def _same(module: nn.Module, one: torch.Tensor, two: torch.Tensor) -> bool:
    return bool((one - two).abs().max() <= _SAME[base_of(module)] * one.abs().max())

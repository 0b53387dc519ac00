"""Low-rank adapters through peft: LoRA (Hu et al. 2022, arXiv:2106.09685) and DoRA (Liu et al. 2024, arXiv:2402.09353).

An adapter learns an update B·A of a frozen weight W, scaled by alpha / rank: A begins at random values and B at zero, so the
network begins as it was pretrained. The layers are put into the network itself, whose class stays what it was; their parameters
form the layer groups, one for each depth, so that every idea about depth works on them too.

The frozen weights may be held in 8 bits (Dettmers et al. 2022, arXiv:2208.07339) or in 4-bit NormalFloat with double
quantisation (QLoRA, Dettmers et al. 2023, arXiv:2305.14314) by bitsandbytes, on a GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn

from finetune.errors import RecipeError, TrainingError, nearest
from finetune.model.groups import LayerGroups, groups_within
from finetune.model.quantised import base_of, with_plain_weights

NAME = "default"
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."  # what PeftModel calls the network inside it


class AdapterSettings(Protocol):
    """What the recipe says about an adapter; `Adapter` is its plain form."""

    @property
    def kind(self) -> Literal["none", "lora", "dora"]: ...
    @property
    def rank(self) -> int: ...
    @property
    def alpha(self) -> float: ...
    @property
    def dropout(self) -> float: ...
    @property
    def targets(self) -> Literal["auto"] | Sequence[str]: ...
    @property
    def base(self) -> Literal["fp32", "int8", "nf4"]: ...


@dataclass(frozen=True)
class Adapter:
    """An adapter: the update is scaled by alpha / rank; targets are endings of the names of linear layers."""

    kind: Literal["none", "lora", "dora"] = "lora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: Literal["auto"] | Sequence[str] = "auto"
    base: Literal["fp32", "int8", "nf4"] = "fp32"


def add_adapter(module: Any, groups: LayerGroups, settings: AdapterSettings) -> tuple[LayerGroups, frozenset[str]]:
    """Put adapters into `module`, from torch's current generator; the groups of their parameters, and those with no anchor.

    groups: of the network as it is. Afterwards the adapter's parameters alone are in a layer group, and what is in none
    stays frozen; a group without any of them is gone, so that the head may be the last block's adapter. A and B are new:
    L2-SP pulls them to zero, which is the pretrained network. DoRA's magnitudes begin as the norms of W and are anchored there.
    RecipeError when `targets` names something that is no linear layer, or the input embeddings.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = _targets(module, groups, settings.targets)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=_shortened(module, names),
        use_dora=settings.kind == "dora",
        # The transposed linear layer of GPT-2.
        fan_in_fan_out=any(_is_transposed(module.get_submodule(name)) for name in names),
        task_type="CAUSAL_LM",
        inference_mode=False,
    )
    with _quiet_peft():
        inject_adapter_in_model(config, module, adapter_name=NAME)
    added = set(_adapter_parameters(module))
    fresh = frozenset(name for name in added if "magnitude" not in name)
    return groups_within(groups, module, added), fresh


def has_adapter(module: Any) -> bool:
    """Whether adapters are inside a network and not merged yet."""
    return NAME in (getattr(module, "peft_config", None) or {})


def describe_adapter(module: Any) -> dict[str, Any] | None:
    """report["transfer"]["adapter"]: kind, rank, alpha, targets, form of the frozen weights, and the number of its parameters."""
    if not has_adapter(module):
        return None
    config = module.peft_config[NAME]
    return {
        "kind": "dora" if config.use_dora else "lora",
        "rank": config.r,
        "alpha": float(config.lora_alpha),
        "dropout": float(config.lora_dropout),
        "targets": sorted(config.target_modules),
        "base": base_of(module),
        "parameters": sum(tensor.numel() for tensor in _state(module).values()),
    }


def save_adapter(module: Any, folder: Path, *, base_model: str | None) -> Path:
    """Write the adapter in peft's own format; `PeftModel.from_pretrained(base, folder)` loads it. Returns `folder`.

    base_model: where people find the pretrained network that it belongs to, such as a hub id. Call it before `merge`.
    """
    import copy

    from safetensors.torch import save_file

    if not has_adapter(module):
        raise TrainingError(f"{type(module).__name__} has no adapter to save; save it before it is merged")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {_PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in _state(module).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = copy.copy(module.peft_config[NAME])
    config.base_model_name_or_path, config.inference_mode = base_model, True
    config.target_modules = sorted(config.target_modules)  # peft keeps a set, whose order changes from run to run
    config.save_pretrained(str(folder))
    return folder


def merge(module: Any) -> nn.Module:
    """The plain network, with the adapters' updates in its weights; a network without adapters is given back as it is.

    Plain weights change in place. Weights in 8 or 4 bits are turned back into fp32 first, in a network of their own on the
    CPU: what quantisation lost is not restored, because the adapter learned beside the quantised weights.
    TrainingError when a merged weight is not finite.
    """
    from peft import inject_adapter_in_model, set_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not has_adapter(module):
        return module  # type: ignore[no-any-return]
    if (plain := with_plain_weights(module)) is not None:
        with _quiet_peft():
            inject_adapter_in_model(module.peft_config[NAME], plain, adapter_name=NAME)
            set_peft_model_state_dict(plain, {name: tensor.cpu() for name, tensor in _state(module).items()})
        module = plain
    for name, layer in [(n, m) for n, m in module.named_modules() if isinstance(m, BaseTunerLayer)]:
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:
            raise TrainingError(
                f"the adapter of '{name}' does not merge ({error}); lower the learning rate or alpha"
            ) from error
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, layer.get_base_layer())
    del module.peft_config
    return module  # type: ignore[no-any-return]


def _adapter_parameters(module: Any) -> list[str]:
    """Names of what the adapters added: all in their layers but the layer that each of them stands before."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[tuple[str, Any]] = [(n, m) for n, m in module.named_modules() if isinstance(m, BaseTunerLayer)]
    return [
        f"{name}.{inside}"
        for name, layer in layers
        for inside, _ in layer.named_parameters()
        if not inside.startswith("base_layer.")
    ]


def _state(module: Any) -> dict[str, torch.Tensor]:
    """The adapter's tensors by peft's names."""
    from peft import get_peft_model_state_dict

    # The embeddings are never its targets; to find out whether they changed, peft would ask the hub.
    return dict(get_peft_model_state_dict(module, adapter_name=NAME, save_embedding_layers=False))


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or _is_transposed(module)


def _is_transposed(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def _targets(module: Any, groups: LayerGroups, targets: Literal["auto"] | Sequence[str]) -> list[str]:
    """Names of the layers that get an adapter: every linear layer of every block, or those that end as asked."""
    linear = [name for name, child in module.named_modules() if _is_linear(child)]
    if targets == "auto":
        blocks = {name for group in groups.groups if group.name.startswith("block") for name in group.modules}
        return [name for name in linear if name in blocks]
    tied = id(module.get_input_embeddings().weight)
    chosen: set[str] = set()
    for target in targets:
        found = [name for name in linear if name == target or name.endswith(f".{target}")]
        if not found:
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise RecipeError(
                f"transfer.adapter.targets: {type(module).__name__} has no linear layer '{target}'{nearest(target, known)}"
            )
        if shared := next((name for name in found if id(module.get_submodule(name).weight) == tied), None):
            raise RecipeError(
                f"transfer.adapter.targets: the weight of '{shared}' is the input embeddings' too, so an adapter would change both; leave it out"
            )
        chosen.update(found)
    return [name for name in linear if name in chosen]


def _shortened(module: nn.Module, names: Sequence[str]) -> list[str]:
    """The last parts of `names`, if they mean these modules and no others; else the names themselves."""
    short = sorted({name.rpartition(".")[2] for name in names})
    meant = {name for name, _ in module.named_modules() if name.rpartition(".")[2] in short}
    return short if meant == set(names) else list(names)


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """Silence peft's advice about settings that were chosen on purpose."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"peft(\.|$)")
        yield

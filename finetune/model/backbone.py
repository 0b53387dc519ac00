"""A pretrained backbone with a new head: load it, renew the head, find its layer groups."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune.errors import FinetuneError, SourceError
from finetune.model.configure import HEAD_DROPOUT_FIELDS, TIMM, configure, no_drop_path
from finetune.model.groups import LayerGroups, find_layer_groups
from finetune.model.heads import (
    body_of,
    new_head,
    new_picture_head,
    new_timm_head,
    no_head_dropout,
    renew,
    set_head_dropout,
)
from finetune.model.pickles import convert_pickle
from finetune.model.quantised import weights_in
from finetune.model.quiet import quiet_transformers
from finetune.model.scale import require_shift
from finetune.model.timm_groups import timm_layer_groups
from finetune.model_files import first_line

__all__ = [
    "HEAD_DROPOUT_FIELDS",
    "TransferModel",
    "blank_picture",
    "convert_pickle",
    "load_backbone",
    "short_text",
]

Probe = Callable[[nn.Module], Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class TransferModel:
    """A network ready for transfer learning; the module is the only mutable part.

    fresh: names of parameters that have no pretrained value: a new head's, all of them in its group, or an adapter's.
    """

    module: nn.Module
    groups: LayerGroups
    fresh: frozenset[str]
    architecture: str

    @property
    def parameters(self) -> int:
        """Number of weights; a tied one counts once."""
        return sum(weights_in(p) for p in self.module.parameters())


def short_text(module: nn.Module) -> dict[str, torch.Tensor]:
    """A text of five tokens as `module` takes it; the last ends it, as encoder-decoders require."""
    end = getattr(module.config, "eos_token_id", None)
    ids = torch.tensor([[1, 2, 3, 4, end if isinstance(end, int) else 5]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {name: inputs[name] for name in inspect.signature(module.forward).parameters if name in inputs}


def blank_picture(size: tuple[int, int]) -> Probe:
    """A probe of one grey picture of `size` (height, width): pixel_values float32 (1, 3, H, W)."""
    return lambda module: {"pixel_values": torch.zeros(1, 3, *size)}


def load_backbone(
    folder: Path, labels: Sequence[str], *, auto_class: str, problem_type: str, outputs: int, dropout: float | None,
    seed: int, pad_token_id: int | None = None, drop_path: float | None = None, probe: Probe | None = None,
) -> TransferModel:  # fmt: skip
    """Load `folder` in fp32 with a new head of `outputs`; the head's values depend on `seed` alone.

    labels: their names, or none for a number; problem_type: as in the configurations of transformers; pad_token_id: what
    the tokenizer of a text model pads with; drop_path: stochastic depth; probe: a small input of the network, a short
    text if None. Neither torch's generator nor transformers' settings change.
    SourceError when weights of the pretrained body are missing, it cannot be divided into layer groups, or a regression's
    last layer has no bias; RecipeError when the head has no dropout to set or the network no stochastic depth.
    """
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        config = configure(
            folder, labels, problem_type=problem_type, outputs=outputs, dropout=dropout, drop_path=drop_path,
            pad_token_id=pad_token_id,
        )  # fmt: skip
        torch.manual_seed(seed)
        module, missing, absent = _load(folder, auto_class, config)
        inputs = dict((probe or short_text)(module))
        groups = _layer_groups(module, inputs)
        new = _new_head(module, missing, picture="pixel_values" in inputs)
        fresh = frozenset(name for name, _ in module.named_parameters() if name in absent | new)
        _refuse_gaps(folder, module, groups, fresh, missing)
        # The head first and from the seed itself, so that a pooler in need of values does not change the head's.
        for names in (new, fresh - new):
            torch.manual_seed(seed)
            renew(module, names)
    if problem_type == "regression":
        require_shift(module, fresh)
    if dropout is not None and config.model_type != TIMM:
        set_head_dropout(module, dropout)
    architecture = config.architecture if config.model_type == TIMM else type(module).__name__
    return TransferModel(module, groups, fresh, architecture)


def _load(folder: Path, auto_class: str, config: Any) -> tuple[Any, set[str], set[str]]:
    """The module, the names that the checkpoint lacks, and those that it lacks or has in another shape."""
    import transformers

    try:
        module, info = getattr(transformers, auto_class).from_pretrained(
            folder, config=config, dtype=torch.float32, local_files_only=True, use_safetensors=True,
            trust_remote_code=False, ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    except Exception as error:  # transformers passes on whatever the architecture or a file reader raises
        raise _not_loaded(folder, auto_class, config, error) from error
    missing = set(info["missing_keys"])
    return module, missing, missing | {key for key, *_ in info["mismatched_keys"]}


def _not_loaded(folder: Path, auto_class: str, config: Any, error: Exception) -> FinetuneError:
    """What the failure means: timm's architectures take the recipe's settings as arguments, and some take not all."""
    asked = getattr(config, "model_args", None) or {}
    for argument, refusal in (("drop_rate", no_head_dropout), ("drop_path_rate", no_drop_path)):
        if argument in asked and isinstance(error, TypeError) and f"'{argument}'" in str(error):
            return refusal(config.architecture)
    return SourceError(f"backbone '{folder}' cannot be loaded as {auto_class}: {first_line(error)}")


def _new_head(module: Any, missing: set[str], *, picture: bool) -> set[str]:
    if module.config.model_type == TIMM:
        return new_timm_head(module)
    return new_picture_head(module, missing) if picture else new_head(module, missing)


def _layer_groups(module: Any, inputs: Mapping[str, torch.Tensor]) -> LayerGroups:
    picture = inputs.get("pixel_values")
    trial = "a short text" if picture is None else "a picture of {}×{} pixels".format(*picture.shape[-2:])
    if module.config.model_type == TIMM:
        return timm_layer_groups(module, "timm_model", lambda: module(**inputs), trial=trial)
    return find_layer_groups(module, body_of(module), lambda: module(**inputs), trial=trial)


def _refuse_gaps(folder: Path, module: Any, groups: LayerGroups, fresh: frozenset[str], missing: set[str]) -> None:
    """SourceError when what lies below the head is not all from the checkpoint, running statistics included."""
    stray = sorted(fresh - set(groups.head.parameters))
    head = set(groups.head.modules)
    statistics = {n for n, _ in module.named_buffers() if n.endswith((".running_mean", ".running_var"))}
    stray += sorted(n for n in statistics & missing if n.rpartition(".")[0] not in head)
    if stray:
        raise SourceError(
            f"backbone '{folder}' lacks the weights of {len(stray)} parameters below the head, such as '{stray[0]}', "
            "or has them in another shape; it is not a checkpoint of this architecture"
        )

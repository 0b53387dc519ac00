"""The new head: which parameters it has, how they begin, and its dropout."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from finetune.errors import RecipeError, SourceError
from finetune.model.timm_groups import classifier_parameters


def body_of(module: Any) -> nn.Module:
    """The pretrained body of a transformers model; where its class does not name it, the largest part."""
    base: nn.Module = module.base_model
    if base is not module:
        return base
    return max(module.children(), key=lambda child: sum(p.numel() for p in child.parameters()))


def new_head(module: Any, missing: set[str]) -> set[str]:
    """Names of the head's parameters that must be new, of those outside the pretrained body.

    A checkpoint with a whole head of this kind was made for other labels: all of it goes. One that only lacks the
    classifier may share other parts with its pretraining (ModernBERT's dense layer), and those stay.
    """
    body = {id(p) for p in body_of(module).parameters()}
    head = {name for name, p in module.named_parameters() if id(p) not in body}
    if head.isdisjoint(missing):
        return head
    incomplete = {name.rpartition(".")[0] for name in missing}
    return {name for name in head if name.rpartition(".")[0] in incomplete}


def new_picture_head(module: Any, missing: set[str]) -> set[str]:
    """`new_head` for an image classifier: a normalisation before the classifier is the body's, wherever it is registered."""

    def is_norm(name: str) -> bool:
        return not isinstance(module.get_submodule(name.rpartition(".")[0]), nn.Linear | nn.Conv2d)

    return {name for name in new_head(module, missing) if name in missing or not is_norm(name)}


def new_timm_head(module: Any) -> set[str]:
    """Names of the classifier's parameters of a wrapped timm model: always all of them."""
    return {f"timm_model.{name}" for name in classifier_parameters(module.timm_model)}


@torch.no_grad()
def renew(module: Any, names: Iterable[str]) -> None:
    """Give parameters new values, as transformers initialises their architecture, from torch's current generator.

    transformers initialises what is not marked as loaded. NaN shows what it would not touch; that would be a head with
    a stranger's values.
    """
    parameters = dict(module.named_parameters())
    for name in names:
        parameters[name]._is_hf_initialized = False
        parameters[name].fill_(torch.nan)
        parts = name.split(".")
        for end in range(len(parts)):
            module.get_submodule(".".join(parts[:end]))._is_hf_initialized = False
    module.initialize_weights()
    if untouched := sorted(name for name in names if parameters[name].isnan().any()):
        raise SourceError(f"{type(module).__name__} does not say how '{untouched[0]}' begins; choose another backbone")


def no_head_dropout(architecture: str) -> RecipeError:
    """The refusal of head dropout where there is none to set."""
    return RecipeError(f"head.dropout: {architecture} has no dropout before its classifier; remove the key")


def set_head_dropout(module: Any, dropout: float) -> None:
    """Set the dropout before the classifier: the last one outside the pretrained body."""
    body = set(body_of(module).modules())
    found = [child for child in module.modules() if isinstance(child, nn.Dropout) and child not in body]
    if found:
        found[-1].p = dropout
    elif dropout > 0:  # without dropout there may be no module for it, which is what 0 asks for
        raise no_head_dropout(type(module).__name__)

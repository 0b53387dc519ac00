"""Memory that training need not hold: keys and values that nobody goes on from, activations that can be computed again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from finetune.errors import RecipeError


@contextmanager
def without_cache(module: nn.Module) -> Iterator[None]:
    """Let a language model keep no keys and values, which only generation goes on from; its configuration is put back."""
    config: Any = getattr(module, "config", None)
    before = getattr(config, "use_cache", None)
    if not before:
        yield
        return
    config.use_cache = False
    try:
        yield
    finally:
        config.use_cache = before


@contextmanager
def recomputing(module: nn.Module, wanted: bool) -> Iterator[None]:
    """Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174): blocks that train keep their inputs alone.

    The backward pass computes the rest again, with the dropout that the forward pass drew, so gradients are the same. Blocks
    in evaluation mode are not affected, so nothing changes for frozen blocks, for evaluation, and after the context.
    RecipeError where an architecture cannot do it.
    """
    if not wanted:
        yield
        return
    network: Any = module
    if not getattr(network, "supports_gradient_checkpointing", False):
        raise RecipeError(
            f"train.gradient_checkpointing: {type(module).__name__} cannot compute activations again; remove it"
        )
    # transformers 5.23 calls it by another name, under which older versions do not know it.
    enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
    disable = getattr(network, "activation_checkpointing_disable", None) or network.gradient_checkpointing_disable
    enable({"use_reentrant": False})
    if hasattr(network, "_require_grads_hook"):
        # It also asks the embeddings' output for a gradient, which only the reentrant kind needs, and which would carry
        # the backward pass down through every frozen block.
        network.disable_input_require_grads()
    try:
        yield
    finally:
        disable()

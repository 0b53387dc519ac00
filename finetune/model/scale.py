"""A regression head learns standardised targets; afterwards their scale is folded into its last layer.

So training sees numbers near one whatever the unit, and the saved network answers in the labels' own unit by itself.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from finetune.errors import SourceError


def require_shift(module: nn.Module, fresh: Collection[str]) -> None:
    """SourceError when there is no last layer with one output, or it has no bias to fold a mean into (GPT-2, Llama)."""
    if any(layer.bias is None for layer in _last_layers(module, fresh)):
        raise SourceError(
            f"{type(module).__name__}: its last layer has no bias, without which it cannot learn numbers around any mean; choose another backbone for a regression"
        )


@torch.no_grad()
def fold_scale(module: nn.Module, fresh: Collection[str], mean: float, std: float) -> None:
    """Change the last layer, so that the network answers y·std + mean where it answered y.

    fresh: names of the new parameters. SourceError as `require_shift` says.
    """
    require_shift(module, fresh)
    for layer in _last_layers(module, fresh):
        layer.weight.mul_(std)
        if layer.bias is not None:
            layer.bias.mul_(std).add_(mean)


def _last_layers(module: nn.Module, fresh: Collection[str]) -> list[nn.Linear | nn.Conv2d]:
    """The new layers with one output; a distilled network has two, whose mean is the answer."""
    layers = [
        child
        for name, child in module.named_modules()
        if isinstance(child, nn.Linear | nn.Conv2d) and f"{name}.weight" in fresh and child.weight.shape[0] == 1
    ]
    if not layers:
        raise SourceError(f"{type(module).__name__} has no last layer with one output; choose another backbone")
    return layers

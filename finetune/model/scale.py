"""A regression head learns standardised targets; afterwards their scale is folded into its last layer.

So training sees numbers near one whatever the unit, and the saved network answers in the labels' own unit by itself.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from finetune.errors import SourceError


def target_scale(module: nn.Module, fresh: Collection[str], labels: NDArray[np.floating]) -> tuple[float, float]:
    """Mean and standard deviation by which the training targets (N,) are standardised.

    The mean is 0 where the last layer has no bias to fold it into (GPT-2, Llama), the deviation 1 where all are equal.
    """
    biased = all(layer.bias is not None for layer in _last_layers(module, fresh))
    values = labels.astype(np.float64)
    return float(values.mean()) if biased else 0.0, float(values.std()) or 1.0


@torch.no_grad()
def fold_scale(module: nn.Module, fresh: Collection[str], mean: float, std: float) -> None:
    """Change the last layer, so that the network answers y·std + mean where it answered y.

    fresh: names of the new parameters. SourceError when there is no last layer with one output, or it has no bias for
    `mean`.
    """
    for layer in _last_layers(module, fresh):
        if layer.bias is None and mean != 0:
            raise SourceError(f"{type(module).__name__}: its last layer has no bias, so no mean can be folded into it")
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

"""BatchNorm under transfer: what its layers do while the rest of their layer group trains.

    freeze        statistics and affine weights keep their pretrained values; the layer runs as it will be served
    train         batches' own statistics, running averages of them, and affine weights learn, as in plain training
    recalibrate   as `train`; at the very end the running statistics are estimated anew, for the final weights

A running average follows weights that were still moving, and of the pictures as augmentation bent them. Recalibration
(the "precise BatchNorm" of Wu & Johnson 2021, arXiv:2105.07576, §3) replaces it by the mean over training rows seen as
evaluation sees them. Frozen layers stay as they came under every policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from finetune.model.groups import LayerGroup, LayerGroups

Policy = Literal["freeze", "train", "recalibrate"]


def batchnorms(module: nn.Module, groups: Iterable[LayerGroup]) -> dict[str, _BatchNorm]:
    """The BatchNorm layers of some layer groups, by module name, in the network's own order."""
    members = {name for group in groups for name in group.modules}
    return {n: child for n, child in module.named_modules() if n in members and isinstance(child, _BatchNorm)}


def that_may_learn(module: nn.Module, groups: LayerGroups, policy: Policy) -> LayerGroups:
    """The layer groups without what a policy holds still in all of them: under `freeze` every BatchNorm layer.

    As whatever is in no trainable group is frozen, this is all that `freeze` needs. A group may be left empty.
    """
    held = batchnorms(module, groups.groups) if policy == "freeze" else {}
    if not held:
        return groups
    return LayerGroups(tuple(_without(group, held) for group in groups.groups))


def statistics(module: nn.Module, groups: Iterable[LayerGroup]) -> dict[str, torch.Tensor]:
    """Buffers of some layer groups by name, as they lie in the network: what a forward pass in training mode may change."""
    members = {name for group in groups for name in group.modules}
    return {name: buffer for name, buffer in module.named_buffers() if name.rpartition(".")[0] in members}


@torch.no_grad()
def recalibrate(module: nn.Module, layers: Sequence[_BatchNorm], batches: Iterable[Mapping[str, torch.Tensor]]) -> int:
    """Set the running statistics of some layers to their mean over batches of the same size; returns how many there were.

    batches: arguments of the network. Everything else in it runs as in evaluation and keeps its bits, which is also how it
    is left. Layers that keep no statistics are passed over; without batches nothing changes.
    """
    kept = [layer for layer in layers if layer.track_running_stats and layer.running_mean is not None]
    count = 0
    with _cumulative(module, kept):
        for batch in batches:
            if count == 0:
                for layer in kept:
                    layer.reset_running_stats()
            module(**batch)
            count += 1
    return count


@contextmanager
def _cumulative(module: nn.Module, layers: Sequence[_BatchNorm]) -> Iterator[None]:
    """Only these layers in training mode, each averaging over all batches alike (torch's momentum=None)."""
    momenta = [layer.momentum for layer in layers]
    module.eval()
    for layer in layers:
        layer.train()
        layer.momentum = None
    try:
        yield
    finally:
        module.eval()
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def _without(group: LayerGroup, held: Mapping[str, object]) -> LayerGroup:
    return replace(
        group,
        parameters=tuple(name for name in group.parameters if name.rpartition(".")[0] not in held),
        modules=tuple(name for name in group.modules if name not in held),
    )

"""One phase's trainability, applied to an unwrapped network and proven afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from finetune.errors import TrainingError
from finetune.model.groups import LayerGroups
from finetune.transfer.plan import Phase


@dataclass(frozen=True)
class PhaseCheck:
    """What moved in a phase and what stood still, by layer group; `unmoved` names trainable parameters that did not."""

    moved: tuple[str, ...]
    frozen: tuple[str, ...]
    unmoved: tuple[str, ...]


def set_trainable(module: nn.Module, groups: LayerGroups, trainable: int) -> None:
    """requires_grad for the `trainable` groups nearest the output, and for nothing else. Never call it on a wrapped model."""
    names = {name for group in groups.trainable(trainable) for name in group.parameters}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in names)
        parameter.grad = None


def set_modes(module: nn.Module, groups: LayerGroups, trainable: int) -> None:
    """Training mode for trainable groups; frozen ones run as they will be served, without dropout or batch statistics."""
    module.eval()
    members = {name for group in groups.trainable(trainable) for name in group.modules}
    for name, child in module.named_modules():
        child.training = name in members


def fingerprint(module: nn.Module) -> dict[str, str]:
    """SHA-256 of the bytes of every parameter and buffer, by name."""
    prints = {}
    # Not state_dict, which lists a tied weight under each of its names.
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        prints[name] = hashlib.sha256(raw.numpy().data).hexdigest()
    return prints


def check_phase(phase: Phase, groups: LayerGroups, before: Mapping[str, str], after: Mapping[str, str]) -> PhaseCheck:
    """Compare fingerprints from a phase's start and end; TrainingError if a group moved or stood still against the plan.

    A group counts as moved if any parameter of it did; single parameters may rightly stand still (the bias of attention
    keys has no gradient) and are listed instead. Buffers of frozen groups must not change either.
    """
    trainable = groups.trainable(phase.trainable)
    free = {name for group in trainable for name in group.parameters}
    free_modules = {name for group in trainable for name in group.modules}
    changed = {name for name in before if before[name] != after[name]}
    strayed = sorted(n for n in changed if n not in free and n.rpartition(".")[0] not in free_modules)
    if strayed:
        raise TrainingError(
            f"phase '{phase.name}': {len(strayed)} frozen tensors changed, such as '{strayed[0]}'; this is a defect, please report it"
        )
    stuck = [group.name for group in trainable if changed.isdisjoint(group.parameters)]
    if stuck:
        raise TrainingError(
            f"phase '{phase.name}': layer group '{stuck[0]}' should have trained but no weight of it moved; raise its learning rate"
        )
    return PhaseCheck(
        moved=tuple(group.name for group in trainable),
        frozen=tuple(group.name for group in groups.groups if group not in trainable),
        unmoved=tuple(sorted(n for n in free if n in before and n not in changed)),
    )


def check_replicas(phase: Phase, prints: list[dict[str, str]]) -> None:
    """TrainingError unless every process holds the same weights."""
    for rank, other in enumerate(prints[1:], start=1):
        different = sorted(name for name in prints[0] if prints[0][name] != other[name])
        if different:
            raise TrainingError(
                f"phase '{phase.name}': process {rank} holds other weights than process 0, such as '{different[0]}'; replicas have diverged"
            )

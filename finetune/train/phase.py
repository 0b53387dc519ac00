"""One phase's trainability, applied to an unwrapped network and proven afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from finetune.errors import TrainingError
from finetune.model.groups import LayerGroup, LayerGroups
from finetune.transfer.plan import Phase


@dataclass(frozen=True)
class PhaseCheck:
    """What moved in a phase and what stood still, by layer group; `unmoved` names trainable parameters that did not."""

    moved: tuple[str, ...]
    frozen: tuple[str, ...]
    unmoved: tuple[str, ...]


def set_trainable(module: nn.Module, groups: LayerGroups, trainable: Sequence[int]) -> None:
    """requires_grad for the groups of these indices, and for nothing else. Never call it on a wrapped model."""
    names = {name for group in groups.pick(trainable) for name in group.parameters}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in names)
        parameter.grad = None


def set_modes(module: nn.Module, groups: LayerGroups, trainable: Sequence[int]) -> None:
    """Training mode for the groups of these indices; the others run as they will be served, without dropout or batch statistics."""
    members = {name for group in groups.pick(trainable) for name in group.modules}
    for name, child in module.named_modules():
        child.training = name in members


def tensors_of(module: nn.Module, groups: Sequence[LayerGroup]) -> dict[str, torch.Tensor]:
    """Parameters and saved buffers of some layer groups by name, as they lie in the network.

    A weight that two modules share is listed once, under the name that its layer group has for it.
    """
    parameters = {name for group in groups for name in group.parameters}
    modules = {name for group in groups for name in group.modules}
    return {
        name: tensor.detach()
        for name, tensor in module.state_dict(keep_vars=True).items()
        if name in parameters or (name.rpartition(".")[0] in modules and not isinstance(tensor, nn.Parameter))
    }


@torch.no_grad()
def put_back(tensors: Mapping[str, torch.Tensor], into: Mapping[str, torch.Tensor]) -> None:
    """Copy values into the tensors of the same names, in place."""
    for name, tensor in tensors.items():
        into[name].copy_(tensor)


def fingerprint(module: nn.Module) -> dict[str, str]:
    """SHA-256 of the bytes of every parameter and buffer, by name."""
    prints = {}
    # Not state_dict, which lists a tied weight under each of its names.
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        prints[name] = hashlib.sha256(raw.numpy().data).hexdigest()
    return prints


def digest(prints: Mapping[str, str]) -> str:
    """One SHA-256 over a whole fingerprint."""
    return hashlib.sha256("\n".join(f"{name} {value}" for name, value in prints.items()).encode()).hexdigest()


def check_phase(phase: Phase, groups: LayerGroups, before: Mapping[str, str], after: Mapping[str, str]) -> PhaseCheck:
    """Compare fingerprints from a phase's start and end; TrainingError if a group moved or stood still against the plan.

    A group counts as moved if any weight of it did; a bias proves nothing where there are weights, as it often starts at
    zero, which the smallest rate moves. Single parameters may rightly stand still (the bias of attention keys has no
    gradient) and are listed instead. Buffers of frozen groups must not change either. What belongs to no group is frozen,
    and a group left empty (all of it BatchNorm that keeps still) counts as frozen too.
    """
    trainable = [group for group in groups.pick(phase.trainable) if group.parameters]
    free = {name for group in trainable for name in group.parameters}
    free_modules = {name for group in trainable for name in group.modules}
    changed = {name for name in before if before[name] != after[name]}
    strayed = sorted(n for n in changed if n not in free and n.rpartition(".")[0] not in free_modules)
    if strayed:
        count = f"{len(strayed)} frozen tensors changed, such as" if len(strayed) > 1 else "a frozen tensor changed,"
        raise TrainingError(f"phase '{phase.name}': {count} '{strayed[0]}'; this is a defect, please report it")
    stuck = [group.name for group in trainable if changed.isdisjoint(_proof(group))]
    if stuck:
        raise TrainingError(
            f"phase '{phase.name}': layer group '{stuck[0]}' should have trained but no weight of it moved; raise its learning rate"
        )
    return PhaseCheck(
        moved=tuple(group.name for group in trainable),
        frozen=tuple(group.name for group in groups.groups if group not in trainable),
        unmoved=tuple(sorted(n for n in free if n in before and n not in changed)),
    )


def _proof(group: LayerGroup) -> list[str]:
    """The parameters whose change proves that a group trains."""
    return [name for name in group.parameters if not name.endswith("bias")] or list(group.parameters)


def check_replicas(phase: Phase, prints: Sequence[Mapping[str, str]]) -> None:
    """TrainingError unless every process holds the same weights."""
    for rank, other in enumerate(prints[1:], start=1):
        different = sorted(name for name in prints[0] if prints[0][name] != other[name])
        if different:
            raise TrainingError(
                f"phase '{phase.name}': process {rank} holds other weights than process 0, such as '{different[0]}'; replicas have diverged"
            )

"""Layer groups: every parameter of a network belongs to exactly one, ordered from the input to the head.

A module belongs where it first runs: before the first block (embeddings), inside a block, or after the last one
(head). So no table of architectures is needed, and a module that a model's author registered in an odd place
(DeBERTa's normalisation of relative positions, say) still lands where its numbers are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from finetune.errors import SourceError


@dataclass(frozen=True)
class LayerGroup:
    """Names of the parameters and of the modules of one depth."""

    name: str
    parameters: tuple[str, ...]
    modules: tuple[str, ...]


@dataclass(frozen=True)
class LayerGroups:
    """All layer groups, input side first, head last."""

    groups: tuple[LayerGroup, ...]

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(group.name for group in self.groups)

    @property
    def head(self) -> LayerGroup:
        return self.groups[-1]

    def depth_of(self) -> dict[str, int]:
        """Parameter name -> index of its group."""
        return {name: depth for depth, group in enumerate(self.groups) for name in group.parameters}

    def trainable(self, count: int) -> tuple[LayerGroup, ...]:
        """The `count` groups nearest the output, head included."""
        return self.groups[len(self.groups) - count :]


def find_layer_groups(model: nn.Module, blocks_under: nn.Module, run: Callable[[], object]) -> LayerGroups:
    """Group a network's parameters and modules by when they first run.

    model: the whole network; blocks_under: the part in which lists of blocks are searched (the pretrained body);
    run: one small forward pass of `model`.
    SourceError when no blocks are found, or a parameter has no place.
    """
    blocks = _blocks(model, blocks_under)
    if not blocks:
        raise SourceError(f"{type(model).__name__} has no list of blocks, so it cannot be divided into layer groups")
    first_run = _first_runs(model, blocks, run)
    order = sorted((b for b in blocks if b in first_run), key=lambda b: first_run[b])
    names = ["embeddings", *(f"block {i}" for i in range(len(order))), "head"]
    modules: list[list[str]] = [[] for _ in names]
    parameters: list[list[str]] = [[] for _ in names]
    for name, module in model.named_modules():
        depth = _depth(name, module, order, first_run)
        if depth is not None:
            modules[depth].append(name)
    depth_of_module = {name: depth for depth, members in enumerate(modules) for name in members}
    for name, _ in model.named_parameters():
        owner = name.rpartition(".")[0]
        if owner not in depth_of_module:
            raise SourceError(
                f"{type(model).__name__}: parameter '{name}' takes no part in a forward pass, so it belongs to no layer group"
            )
        parameters[depth_of_module[owner]].append(name)
    return LayerGroups(
        tuple(LayerGroup(n, tuple(p), tuple(m)) for n, p, m in zip(names, parameters, modules, strict=True) if p)
    )


def _blocks(model: nn.Module, body: nn.Module) -> list[str]:
    """Names of the members of every outermost list of parametrised modules inside the body."""
    prefix = next(name for name, module in model.named_modules() if module is body)
    lists: list[str] = []
    blocks: list[str] = []
    for name, module in model.named_modules():
        inside = prefix == "" or name == prefix or name.startswith(prefix + ".")
        nested = any(name.startswith(outer + ".") for outer in lists)
        if inside and not nested and isinstance(module, nn.ModuleList) and any(True for _ in module.parameters()):
            lists.append(name)
            blocks += [f"{name}.{i}" for i in range(len(module))]
    return blocks


def _first_runs(model: nn.Module, blocks: list[str], run: Callable[[], object]) -> Mapping[str, int]:
    """Module name -> position in the order in which modules are first called; a block's end counts as a call too."""
    seen: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            seen.setdefault(name, len(seen))

        return hook

    handles = [module.register_forward_pre_hook(note(name)) for name, module in model.named_modules()]
    handles += [model.get_submodule(block).register_forward_hook(note(block + " ends")) for block in blocks]
    was_training = model.training
    try:
        model.eval()
        with torch.no_grad():
            run()
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return seen


def _depth(name: str, module: nn.Module, order: list[str], first_run: Mapping[str, int]) -> int | None:
    """Group index of one module; None when it never ran and nothing tells where it belongs."""
    for i, block in enumerate(order):
        if name == block or name.startswith(block + "."):
            return i + 1
    if name in first_run:
        started = [i for i, block in enumerate(order) if first_run[block] < first_run[name]]
        if not started:
            return 0
        after_all = len(started) == len(order) and first_run[name] > first_run[order[-1] + " ends"]
        return len(order) + 1 if after_all else started[-1] + 1
    # A table that is read as a weight rather than called: relative positions, mostly.
    if isinstance(module, nn.Embedding) or not any(True for _ in module.parameters(recurse=False)):
        return 0
    return None

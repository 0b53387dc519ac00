"""Layer groups: every parameter of a network belongs to exactly one, ordered from the input to the head.

A module belongs where it first runs: before the first block (embeddings), inside a block, or after the last one
(head). So no table of architectures is needed, and a module that a model's author registered in an odd place
(DeBERTa's normalisation of relative positions, say) still lands where its numbers are used. Blocks that are one module
used many times (ALBERT) are one layer group; a tied weight belongs to the lowest of the groups that use it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from finetune.errors import SourceError
from finetune.model.modes import evaluating
from finetune.model_files import first_line


class UnfitInputError(SourceError):
    """A network failed on the small input that it was tried with; `reason` is what it said."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


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

    def pick(self, indices: Sequence[int]) -> tuple[LayerGroup, ...]:
        """The groups of these indices, 0 at the input side, in the network's order."""
        return tuple(self.groups[index] for index in sorted(indices))


def groups_within(groups: LayerGroups, model: nn.Module, parameters: Collection[str]) -> LayerGroups:
    """The layer groups of some parameters of `model` alone: groups without any of them disappear.

    model: the network after modules were added inside those that `groups` knows; what was added belongs where the module
    around it does. parameters: names in `model`.
    """
    depth_of_module = {name: depth for depth, group in enumerate(groups.groups) for name in group.modules}

    def depth_of(name: str) -> int | None:
        while name not in depth_of_module and name:
            name = name.rpartition(".")[0]
        return depth_of_module.get(name)

    modules = {name: depth_of(name) for name, _ in model.named_modules()}
    kept = [name for name, _ in model.named_parameters() if name in parameters]
    if lost := [name for name in kept if modules[name.rpartition(".")[0]] is None]:
        raise SourceError(
            f"{type(model).__name__}: parameter '{lost[0]}' lies in no layer group; choose another backbone"
        )
    found = (
        LayerGroup(
            group.name,
            tuple(name for name in kept if modules[name.rpartition(".")[0]] == depth),
            tuple(name for name, at in modules.items() if at == depth),
        )
        for depth, group in enumerate(groups.groups)
    )
    return LayerGroups(tuple(group for group in found if group.parameters))


# A block is usually one module; where an architecture spreads a block over several lists (XLM), it is one of each.
Block = tuple[str, ...]


def find_layer_groups(
    model: nn.Module, blocks_under: nn.Module, run: Callable[[], object], *, trial: str = "a short text",
    headless: bool = False,
) -> LayerGroups:  # fmt: skip
    """Group a network's parameters and modules by when they first run.

    model: the whole network; blocks_under: the part in which lists of blocks are searched (the pretrained body);
    run: one small forward pass of `model`, on what `trial` says; headless: the last block may be the head, where there are
    no weights after it (a language model whose output is its input embeddings, without a last normalisation).
    SourceError when the pass fails, no blocks are found, nothing comes after them, or a parameter has no place.
    """
    architecture = type(model).__name__
    lists = _lists_of_blocks(model, blocks_under)
    if not lists:
        raise SourceError(
            f"{architecture} has no list of blocks, so it cannot be divided into layer groups; choose another backbone"
        )
    first_run = first_runs(model, run, trial)
    blocks = _in_running_order(_merge_parallel(lists, first_run), first_run)
    depth_of_module = {
        name: depth
        for name, module in model.named_modules()
        if (depth := _depth(name, module, blocks, first_run)) is not None
    }
    depth_of_parameter = _place_parameters(model, depth_of_module)
    if not headless and len(blocks) + 1 not in depth_of_parameter.values():
        raise SourceError(f"{architecture} has no weights after its last block, so it has no head to train")
    names = ["embeddings", *(f"block {i}" for i in range(len(blocks))), "head"]
    return LayerGroups(
        tuple(
            LayerGroup(
                name,
                tuple(n for n, d in depth_of_parameter.items() if d == depth),
                tuple(n for n, d in depth_of_module.items() if d == depth),
            )
            for depth, name in enumerate(names)
            if depth in depth_of_parameter.values()
        )
    )


def _lists_of_blocks(model: nn.Module, body: nn.Module) -> list[list[str]]:
    """Names of the members of every outermost list of parametrised modules inside the body; lists of lists are flattened."""
    prefix = next(name for name, module in model.named_modules() if module is body)
    lists: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        inside = prefix == "" or name.startswith(prefix + ".")
        nested = any(name.startswith(outer + ".") for outer in lists)
        if inside and not nested and isinstance(module, nn.ModuleList) and any(True for _ in module.parameters()):
            lists[name] = list(_members(name, module))
    return list(lists.values())


def _members(name: str, modules: nn.ModuleList) -> Iterator[str]:
    for i, member in enumerate(modules):
        if isinstance(member, nn.ModuleList):
            yield from _members(f"{name}.{i}", member)
        elif any(True for _ in member.parameters()):
            yield f"{name}.{i}"


def first_runs(model: nn.Module, run: Callable[[], object], trial: str) -> dict[str, int]:
    """Module name -> position in the order in which modules are first called in one forward pass, in eval mode.

    UnfitInputError when the pass fails; `trial` says on what.
    """
    seen: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            seen.setdefault(name, len(seen))

        return hook

    handles = [module.register_forward_pre_hook(note(name)) for name, module in model.named_modules()]
    try:
        with evaluating(model), torch.no_grad():
            run()
    except Exception as error:  # whatever this architecture's own code raises
        reason = first_line(error)
        raise UnfitInputError(
            f"{type(model).__name__} fails on {trial} ({reason}), so its layer groups cannot be found; choose another backbone",
            reason,
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _merge_parallel(lists: Sequence[list[str]], first_run: Mapping[str, int]) -> list[Block]:
    """Blocks as tuples of modules: lists of one parent whose members take turns hold parts of the same blocks."""
    groups: list[list[list[str]]] = []
    for members in lists:
        home = next((g for g in groups if _take_turns(g[0], members, first_run)), None)
        if home is None:
            groups.append([members])
        else:
            home.append(members)
    return [block for group in groups for block in zip(*group, strict=True)]


def _take_turns(one: list[str], other: list[str], first_run: Mapping[str, int]) -> bool:
    """Whether two lists of the same length and parent run as one[0], other[0], one[1], other[1], ..."""
    parents = {members[0].rpartition(".")[0].rpartition(".")[0] for members in (one, other)}
    if len(one) != len(other) or len(one) < 2 or len(parents) > 1:
        return False
    starts = [_span((name,), first_run) for name in (one[0], other[0], one[1], other[1])]
    found = [span[0] for span in starts if span is not None]
    return len(found) == 4 and max(found[:2]) < min(found[2:])


def _span(block: Block, first_run: Mapping[str, int]) -> tuple[int, int] | None:
    """Positions of the first and the last module of a block to be called first; None when none ever was.

    The modules inside count too, because some architectures (SqueezeBERT) call a block's method, not the block.
    """
    positions = [at for name, at in first_run.items() if _inside(name, block)]
    return (min(positions), max(positions)) if positions else None


def _inside(name: str, block: Block) -> bool:
    return any(name == part or name.startswith(part + ".") for part in block)


def _in_running_order(blocks: Sequence[Block], first_run: Mapping[str, int]) -> dict[Block, tuple[int, int]]:
    """The blocks that ran, in that order, with their spans."""
    spans = {block: span for block in blocks if (span := _span(block, first_run)) is not None}
    return dict(sorted(spans.items(), key=lambda item: item[1]))


def _depth(
    name: str, module: nn.Module, blocks: Mapping[Block, tuple[int, int]], first_run: Mapping[str, int]
) -> int | None:
    """Group index of one module; None when it never ran and nothing tells where it belongs."""
    for i, block in enumerate(blocks):
        if _inside(name, block):
            return i + 1
    if name in first_run:
        begun = sum(start < first_run[name] for start, _ in blocks.values())
        after_all = begun == len(blocks) and first_run[name] > max(end for _, end in blocks.values())
        return begun + after_all
    # A table that is read as a weight rather than called: relative positions, mostly.
    if isinstance(module, nn.Embedding) or not any(True for _ in module.parameters(recurse=False)):
        return 0
    return None


def _place_parameters(model: nn.Module, depth_of_module: Mapping[str, int]) -> dict[str, int]:
    """Parameter name -> group index, in the network's own order; a tied weight counts once, at its lowest place."""
    places: dict[int, int] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = name.rpartition(".")[0]
        if owner in depth_of_module:
            places[id(parameter)] = min(depth_of_module[owner], places.get(id(parameter), len(depth_of_module)))
    for name, parameter in model.named_parameters():
        if id(parameter) not in places:
            raise SourceError(
                f"{type(model).__name__}: parameter '{name}' takes no part in a forward pass, so it belongs to no layer group; choose another backbone"
            )
    return {name: places[id(parameter)] for name, parameter in model.named_parameters()}

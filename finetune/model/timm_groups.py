"""Layer groups of timm models, as their authors divided them: stem, each stage or block, head.

A timm model says itself which parameters belong together (`group_matcher`, coarse). What its matcher leaves out belongs to
the head if it runs after everything else, as the last normalisation does, or if it is the network's own parameter and first
used there, as the shares are by which EfficientViM joins its stages' answers. Else it lies where the fine division puts it;
anything left out there too is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from finetune.errors import SourceError
from finetune.model.groups import LayerGroup, LayerGroups, first_runs
from finetune.model.modes import evaluating

# Some convolutional networks have no matcher; these are the names under which timm keeps their stages.
_USUAL_STAGES = {"blocks": r"^(?:stages|transformers|layers|blocks)\.(\d+)"}
# A name that no matcher knows: what is placed with it was not matched.
_NOWHERE = "~"


def classifier_parameters(model: Any) -> frozenset[str]:
    """Names of the parameters of a timm model's classifier, all of them where it has several (distilled models).

    SourceError for a model without one.
    """
    found = model.get_classifier() if hasattr(model, "get_classifier") else ()
    modules = found if isinstance(found, tuple | list) else (found,)
    inside = {id(p) for module in modules if isinstance(module, nn.Module) for p in module.parameters()}
    if not inside:
        raise SourceError(
            f"{type(model).__name__} has no classifier, so it has no head to train; choose another backbone"
        )
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) in inside)


def timm_layer_groups(model: nn.Module, prefix: str, run: Callable[[], object], *, trial: str) -> LayerGroups:
    """Group the parameters and modules of a network around a timm model.

    model: the whole network; prefix: where the timm model is inside it; run: one forward pass of `model`, on what `trial`
    says. SourceError when the pass fails, or the matcher leaves out a parameter that nothing else places.
    """
    inner: Any = model.get_submodule(prefix)
    first_run = first_runs(model, run, trial)
    places = _place_parameters(inner, {_inside(name, prefix): at for name, at in first_run.items()}, run)
    depths = {f"{prefix}.{name}": depth for name, depth in places.items()}
    members = _place_modules(model, depths, first_run)
    return LayerGroups(
        tuple(
            LayerGroup(
                name,
                tuple(n for n, d in depths.items() if d == depth),
                tuple(n for n, d in members.items() if d == depth),
            )
            for depth, name in enumerate(_group_names(inner, max(depths.values()) + 1))
        )
    )


def _inside(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).removeprefix(".")


def _matcher(model: Any, *, coarse: bool) -> Any:
    if not hasattr(model, "group_matcher"):
        return _USUAL_STAGES
    try:
        return model.group_matcher(coarse=coarse)
    except AssertionError:  # how timm says that there is only the fine division
        return model.group_matcher(coarse=False)


def _matched(model: Any, *, coarse: bool) -> dict[str, int]:
    """Parameter name -> place in the matcher's order, for those that it knows; the classifier is left out."""
    from timm.models._manipulate import group_with_matcher

    names = [name for name, _ in model.named_parameters()]
    objects = ((name, None) for name in (*names, _NOWHERE))
    places = group_with_matcher(objects, _matcher(model, coarse=coarse), reverse=True)
    head = classifier_parameters(model)
    nowhere = places.get(_NOWHERE)
    return {name: places[name] for name in names if name not in head and places.get(name, nowhere) != nowhere}


def _place_parameters(model: Any, first_run: Mapping[str, int], run: Callable[[], object]) -> dict[str, int]:
    """Parameter name -> group index, 0 the stem and the greatest the head, in the network's own order."""
    matched = _matched(model, coarse=True)
    if not matched:
        raise SourceError(
            f"{type(model).__name__} does not say where its stages are, so it cannot be divided into layer groups; choose another backbone"
        )
    runs = [_when(name, first_run) for name in matched]
    first, last = min(runs), max(runs)
    lowest = not hasattr(model, "group_matcher")  # without a matcher nothing says what the stem is
    order = {place: index + lowest for index, place in enumerate(sorted(set(matched.values())))}
    places = {name: order[place] for name, place in matched.items()}
    head = max(places.values()) + 1
    classifier = classifier_parameters(model)
    for name, _ in model.named_parameters():
        if name in places:
            continue
        if name in classifier or _when(name, first_run) > last:
            places[name] = head
        elif lowest and _when(name, first_run) < first:
            places[name] = 0
        elif "." not in name and _used_after(model, name, [n for n, at in first_run.items() if at == last][-1], run):
            places[name] = head
        elif (place := _fine_neighbours(model, name, matched)) is not None:
            places[name] = order[place]
        else:
            raise SourceError(
                f"{type(model).__name__}: its authors put parameter '{name}' into no layer group, and it does not run after the last one; choose another backbone"
            )
    return {name: places[name] for name, _ in model.named_parameters()}


def _used_after(model: Any, parameter: str, module: str, run: Callable[[], object]) -> bool:
    """Whether a forward pass computes with a parameter, and not before this module begins.

    For what the network owns itself: no hook tells when it is used.
    """
    watched = model.get_parameter(parameter)
    begun: list[bool] = []
    uses: list[bool] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            taken = any(value is watched for value in tree_leaves((args, kwargs)))
            if taken and any(isinstance(value, torch.Tensor) for value in tree_leaves(result)):  # not its shape alone
                uses.append(bool(begun))
            return result

    handle = model.get_submodule(module).register_forward_pre_hook(lambda *_: begun.append(True))
    try:
        with evaluating(model), torch.no_grad(), Watch():
            run()
    finally:
        handle.remove()
    return bool(uses) and uses[0]


def _fine_neighbours(model: Any, parameter: str, matched: Mapping[str, int]) -> int | None:
    """The coarse place of what the fine division puts together with a parameter; None without one, or with several."""
    fine = _matched(model, coarse=False)
    found = {matched[name] for name in matched if parameter in fine and fine.get(name) == fine[parameter]}
    return found.pop() if len(found) == 1 else None


def _when(parameter: str, first_run: Mapping[str, int]) -> int:
    """When the module that holds a parameter first runs; if it is never called itself, the module around it."""
    owner = parameter.rpartition(".")[0]
    while owner not in first_run:
        owner = owner.rpartition(".")[0]
    return first_run[owner]


def _place_modules(model: nn.Module, depths: Mapping[str, int], first_run: Mapping[str, int]) -> dict[str, int]:
    """Module name -> group index.

    A module belongs where its parameters do. One that spans groups belongs to the highest: the network itself to the head,
    because many drop out what enters the classifier in their own forward method. One without parameters belongs to the
    group that it lies in, or else to what ran before it.
    """
    under: dict[str, set[int]] = {name: set() for name, _ in model.named_modules()}
    for parameter, depth in depths.items():
        parts = parameter.split(".")
        for end in range(len(parts)):
            if (name := ".".join(parts[:end])) in under:
                under[name].add(depth)
    head = max(depths.values())
    settled = {at: depth for name, at in first_run.items() for depth in under[name] if len(under[name]) == 1}
    last = max((at for at, depth in settled.items() if depth < head), default=0)

    def place(name: str) -> int:
        if under[name]:
            return max(under[name])
        around = name
        while not under[around]:
            around = around.rpartition(".")[0]
        if len(under[around]) == 1 or name not in first_run:
            return max(under[around])
        before = [at for at in settled if at < first_run[name]]
        return head if first_run[name] > last else settled[max(before)] if before else 0

    return {name: place(name) for name in under}


def _group_names(model: Any, count: int) -> list[str]:
    """stem, the groups between by what they are, head."""
    fine = len(set(_matched(model, coarse=False).values()))
    kind = "block" if hasattr(model, "group_matcher") and fine == count - 1 else "stage"
    return ["stem", *(f"{kind} {i}" for i in range(count - 2)), "head"]

"""Batch normalisation that stands still, computed within the convolution before it: the same numbers in fewer passes.

Where statistics m, v and weights γ, β never change, BN(W∗x + b) = W'∗x + b' with W' = W·s, b' = β + (b − m)·s and
s = γ/√(v + ε). W stays the parameter and gets its gradient through W', so layer groups, optimizer and checkpoints know
nothing of this. What is saved is a pass over the activations forward, another backward, and the memory between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

Pair = tuple[nn.Conv2d, nn.BatchNorm2d]

# Rounding apart, a folded network answers as it did; one that does not has another layer that reads the convolution's output.
TOLERANCE = 1e-3


@contextmanager
def folded(module: nn.Module, sample: Mapping[str, Tensor] | None) -> Iterator[int]:
    """Run every BatchNorm2d that follows a convolution inside it; gives how many, and puts all back afterwards.

    sample: arguments of the network, to see in which order layers run; None leaves everything as it is. BatchNorm must be
    in evaluation mode whenever the network runs, and stays untouched. Nothing is folded in a network that then answers
    otherwise than before.
    """
    pairs = [] if sample is None else _pairs(module, sample)
    with ExitStack() as stack:
        if pairs and _answers_alike(module, sample or {}, pairs):
            stack.enter_context(_patched(pairs))
            yield len(pairs)
        else:
            yield 0


def _pairs(module: nn.Module, sample: Mapping[str, Tensor]) -> list[Pair]:
    """Convolutions, and the BatchNorm2d that reads what each puts out; both run once."""
    made: list[tuple[Tensor, nn.Conv2d]] = []  # with the tensors themselves, so that none is mistaken for a later one
    read: list[tuple[Tensor, nn.BatchNorm2d]] = []
    kinds, hooks = _kinds(), []
    for child in module.modules():
        if type(child) in kinds.convolutions:
            hooks.append(child.register_forward_hook(lambda conv, _, out: made.append((out, conv))))
        elif type(child) in kinds.norms and child.track_running_stats:
            hooks.append(child.register_forward_pre_hook(lambda norm, given: read.append((given[0], norm))))
    try:
        _run(module, sample)
    finally:
        for hook in hooks:
            hook.remove()
    found = [(conv, norm) for given, norm in read for out, conv in made if out is given]
    once = [
        (conv, norm)
        for conv, norm in found
        if sum(conv is other for _, other in made) == 1 and sum(norm is other for _, other in read) == 1
    ]
    return [pair for pair in once if sum(pair[0] is conv for conv, _ in found) == 1]


def _answers_alike(module: nn.Module, sample: Mapping[str, Tensor], pairs: list[Pair]) -> bool:
    before = _run(module, sample)
    with _patched(pairs):
        after = _run(module, sample)
    return bool(torch.allclose(before, after, rtol=TOLERANCE, atol=TOLERANCE * float(before.abs().max())))


def _run(module: nn.Module, sample: Mapping[str, Tensor]) -> Tensor:
    """Logits in evaluation mode, without a trace in the layers' modes."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            logits: Tensor = module(**sample).logits
    finally:
        for child, mode in modes:
            child.training = mode
    return logits


@contextmanager
def _patched(pairs: list[Pair]) -> Iterator[None]:
    kinds = _kinds()
    for conv, norm in pairs:
        vars(conv)["forward"] = partial(kinds.convolutions[type(conv)], conv, norm)
        vars(norm)["forward"] = partial(kinds.norms[type(norm)], norm)
    try:
        yield
    finally:
        for pair in pairs:
            for layer in pair:
                del vars(layer)["forward"]


def _within(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Kernel and bias that do the normalisation too."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = (conv.bias - mean if conv.bias is not None else -mean) * scale
    return conv.weight * scale[:, None, None, None], shift if norm.bias is None else shift + norm.bias


@dataclass(frozen=True)
class _Kinds:
    """How each class of layer runs in a pair. Subclasses that are not named may do anything, so they are left alone."""

    convolutions: Mapping[type, Callable[[Any, Any, Tensor], Tensor]]
    norms: Mapping[type, Callable[[Any, Tensor], Tensor]]


@cache
def _kinds() -> _Kinds:
    from timm.layers import BatchNormAct2d
    from timm.layers.conv2d_same import Conv2dSame, conv2d_same

    def plain(conv: nn.Conv2d, norm: nn.BatchNorm2d, pixels: Tensor) -> Tensor:
        convolved: Tensor = conv._conv_forward(pixels, *_within(conv, norm))
        return convolved

    def same(conv: nn.Conv2d, norm: nn.BatchNorm2d, pixels: Tensor) -> Tensor:
        padded: Tensor = conv2d_same(
            pixels, *_within(conv, norm), conv.stride, conv.padding, conv.dilation, conv.groups
        )
        return padded

    def activated(norm: Any, pixels: Tensor) -> Tensor:
        active: Tensor = norm.act(norm.drop(pixels))
        return active

    return _Kinds(
        convolutions={nn.Conv2d: plain, Conv2dSame: same},
        norms={nn.BatchNorm2d: lambda norm, pixels: pixels, BatchNormAct2d: activated},
    )

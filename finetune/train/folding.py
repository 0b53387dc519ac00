"""Batch normalisation that stands still, computed within the convolution before it: the same numbers in fewer passes.

Where statistics m, v and weights γ, β never change, BN(W∗x + b) = W'∗x + b' with W' = W·s, b' = β + (b − m)·s and
s = γ/√(v + ε). W stays the parameter and gets its gradient through W', so layer groups, optimizer and checkpoints know
nothing of this. What is saved is a pass over the activations forward, another backward, and the memory between them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from finetune.model.modes import evaluating
from finetune.train.job import Job
from finetune.train.predict import to_tensors

# Rounding apart, a folded network answers as it did.
TOLERANCE = 1e-3


class Pair:
    """A convolution and the BatchNorm2d that alone reads what it puts out.

    BatchNorm must stand still for as long as the pair is used: its part is computed once.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        self.conv, self.norm = conv, norm
        self._parts: tuple[Tensor, Tensor] | None = None

    def within(self) -> tuple[Tensor, Tensor]:
        """Kernel and bias of the convolution that does the normalisation too."""
        scale, shift = self._scale_and_shift()
        bias = self.conv.bias
        return self.conv.weight * scale[:, None, None, None], shift if bias is None else bias * scale + shift

    def _scale_and_shift(self) -> tuple[Tensor, Tensor]:
        norm, device = self.norm, self.conv.weight.device
        if self._parts is None or self._parts[0].device != device:
            mean, variance = norm.running_mean, norm.running_var
            assert mean is not None
            assert variance is not None
            with torch.no_grad():
                scale = torch.rsqrt(variance + norm.eps)
                scale = scale if norm.weight is None else scale * norm.weight
                shift = -mean * scale
                self._parts = scale, shift if norm.bias is None else shift + norm.bias
        return self._parts


def pairs_of(job: Job) -> list[Pair]:
    """What a job may compute as one: only `batchnorm: freeze` keeps all BatchNorm still for the whole run."""
    module = job.model.module
    if job.batchnorm != "freeze" or not any(isinstance(child, nn.BatchNorm2d) for child in module.modules()):
        return []
    return find_pairs(module, to_tensors(job.collate(job.validation.inputs[:1]), next(module.parameters()).device))


def find_pairs(module: nn.Module, sample: Mapping[str, Tensor]) -> list[Pair]:
    """Every convolution with its BatchNorm2d that may be computed as one; none if the network then answered otherwise.

    sample: arguments of the network, to see which layer reads which. A pair's layers run once, and nothing but the
    normalisation reads the convolution's output: the graph of the backward pass tells.
    """
    pairs = _pairs(module, sample)
    if not pairs:
        return []
    with evaluating(module), torch.no_grad():
        before = module(**sample).logits
        with folded(pairs):
            after = module(**sample).logits
    same = torch.allclose(before, after, rtol=TOLERANCE, atol=TOLERANCE * float(before.abs().max()))
    return pairs if same else []


@contextmanager
def folded(pairs: Sequence[Pair]) -> Iterator[None]:
    """Compute the pairs' normalisation inside their convolutions; afterwards the layers are as they were."""
    kinds = _kinds() if pairs else None
    try:
        for pair in pairs:
            assert kinds is not None
            vars(pair.conv)["forward"] = kinds.convolutions[type(pair.conv)](pair)
            vars(pair.norm)["forward"] = kinds.norms[type(pair.norm)](pair.norm)
        yield
    finally:
        for pair in pairs:
            for layer in (pair.conv, pair.norm):
                vars(layer).pop("forward", None)


def _pairs(module: nn.Module, sample: Mapping[str, Tensor]) -> list[Pair]:
    kinds = _kinds()
    # Steps of the graph rather than tensors, since a tensor's number may be another's when it is gone.
    made: list[tuple[Any, nn.Conv2d]] = []
    read: list[tuple[Any, nn.BatchNorm2d]] = []
    hooks = []
    for child in module.modules():
        if "forward" in vars(child):  # somebody else's, who may do anything
            continue
        if type(child) in kinds.convolutions:
            hooks.append(child.register_forward_hook(lambda conv, _, out: made.append((out.grad_fn, conv))))
        elif type(child) in kinds.norms and child.track_running_stats:
            hooks.append(child.register_forward_pre_hook(lambda norm, given: read.append((given[0].grad_fn, norm))))
    try:
        with evaluating(module), torch.inference_mode(False), torch.enable_grad():
            # The picture itself asks for gradients, so that frozen layers are in the graph too; as a copy, since nothing may
            # change a leaf in place.
            given = {name: tensor.clone().requires_grad_().clone() for name, tensor in sample.items()}
            readers = _readers(module(**given).logits)
    finally:
        for hook in hooks:
            hook.remove()
    runs = Counter(id(layer) for _, layer in [*made, *read])
    return [
        Pair(conv, norm)
        for step, norm in read
        for source, conv in made
        if source is step and readers[source] == runs[id(conv)] == runs[id(norm)] == 1
    ]


def _readers(logits: Tensor) -> Counter[Any]:
    """How many steps of the graph behind some logits read what each step puts out."""
    found: Counter[Any] = Counter()
    waiting, seen = [logits.grad_fn], {logits.grad_fn}
    while waiting:
        step = waiting.pop()
        assert step is not None
        for source, _ in step.next_functions:
            if source is None:
                continue
            found[source] += 1
            if source not in seen:
                seen.add(source)
                waiting.append(source)
    return found


@dataclass(frozen=True)
class _Kinds:
    """How each class of layer runs in a pair. Subclasses that are not named may do anything, so they are left alone."""

    convolutions: Mapping[type, Callable[[Pair], Callable[[Tensor], Tensor]]]
    norms: Mapping[type, Callable[[Any], Callable[[Tensor], Tensor]]]


@cache
def _kinds() -> _Kinds:
    from timm.layers import BatchNormAct2d
    from timm.layers.conv2d_same import Conv2dSame, conv2d_same

    def plain(pair: Pair) -> Callable[[Tensor], Tensor]:
        conv: Any = pair.conv
        return lambda pixels: conv._conv_forward(pixels, *pair.within())

    def same(pair: Pair) -> Callable[[Tensor], Tensor]:
        conv = pair.conv
        shape = (conv.stride, conv.padding, conv.dilation, conv.groups)
        return lambda pixels: conv2d_same(pixels, *pair.within(), *shape)

    return _Kinds(
        convolutions={nn.Conv2d: plain, Conv2dSame: same},
        norms={
            nn.BatchNorm2d: lambda norm: lambda pixels: pixels,
            BatchNormAct2d: lambda norm: lambda pixels: norm.act(norm.drop(pixels)),
        },
    )

"""L2-SP: regularise towards the starting point (Li, Grandvalet & Davoine 2018, arXiv:1802.01483).

    Ω(w) = α/2 · ‖w_S − w_S⁰‖² + β/2 · ‖w_new‖²

w_S are weights with a pretrained value w⁰ (the anchor); w_new are new ones, which decay to zero. As in the authors'
code, biases and normalisation weights are left out, and Ω takes the place of weight decay.

Adapters (LoRA) are new weights beside frozen ones: what computes is w⁰ + s·B·A, so their start is w⁰ itself and the pull of
A and B to zero is a pull back to it. β/2·(‖A‖² + ‖B‖²) is never less than β·‖B·A‖_*, the update's nuclear norm, and equal to
it at the best A and B for that update (Srebro, Rennie & Jaakkola 2004): where the penalty on full weights keeps an update
small, this one also keeps its rank low. DoRA's magnitudes are vectors that start at ‖w⁰‖, and are left out as all vectors are.

Two couplings with the same α and β. `loss` adds ∇Ω = α(w − w⁰) to the gradient, as the paper does with SGD. Adam
divides that by √v, which weakens the pull exactly where gradients are large, so `decoupled` applies w ← w − η·α(w − w⁰)
beside the step, as AdamW does with weight decay (Loshchilov & Hutter 2019). AdamW shrinks w before its step, this
after it, when it is known that a step was made (mixed precision may skip one): with w⁰ = 0 the two differ by η·α
times the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CONVENTION = "Ω = α/2·‖w − w⁰‖² + β/2·‖w_new‖², biases and normalisation weights left out"


@dataclass(frozen=True)
class Pull:
    """What L2-SP holds on to, by parameter name: anchors w⁰ of pretrained weights, and the names of new ones."""

    anchors: Mapping[str, Tensor]
    fresh: frozenset[str]
    alpha: float
    beta: float


def is_regularised(name: str, parameter: Tensor) -> bool:
    """Whether a penalty acts on a parameter: matrices and kernels yes; normalisation weights, all vectors, and biases no.

    A bias may have two dimensions (XLNet's `r_w_bias`, one row for each attention head), and a vector may be laid out for
    broadcasting (ResMLP's `alpha` of 1×1×C, the gains of NFNet's convolutions).
    """
    own = name.rpartition(".")[2]
    if parameter.ndim < 2 or own.endswith(("bias", "biases")):
        return False
    if sum(size > 1 for size in parameter.shape) > 1:
        return True
    # One axis or none is longer than 1. Layers with a kernel or a matrix call it `weight`, and so it may be: of a single
    # output, a depthwise 1×1 convolution, a table with one row. Scales for broadcasting have other names, but for
    # ConvNeXt V2's of 1×1×1×C; a kernel of that shape would slide along a single channel.
    return own == "weight" and not (parameter.ndim > 3 and parameter.shape[-1] == parameter.numel())


@torch.no_grad()
def add_gradient(pull: Pull, parameters: Mapping[str, nn.Parameter]) -> None:
    """`loss` coupling: add α(w − w⁰) and β·w_new to the gradients in place; KeyError for a weight without an anchor."""
    old, new = _pulled(pull, parameters)
    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    if old and pull.alpha:
        moved = torch._foreach_sub([parameters[n].data for n in old], [pull.anchors[n] for n in old])
        torch._foreach_add_([gradients[n] for n in old], moved, alpha=pull.alpha)
    if new and pull.beta:
        torch._foreach_add_([gradients[n] for n in new], [parameters[n].data for n in new], alpha=pull.beta)


@torch.no_grad()
def pull_back(pull: Pull, parameters: Mapping[str, nn.Parameter], rates: Mapping[str, float]) -> None:
    """`decoupled` coupling: w ← w + η·α·(w⁰ − w), and w_new ← (1 − η·β)·w_new, after the optimizer's step.

    rates: the learning rate η that each parameter's step just used; KeyError for a weight without a rate or an anchor.
    """
    old, new = _pulled(pull, parameters)
    for rate in {rates[name] for name in (*old, *new)}:
        near = [n for n in old if rates[n] == rate]
        if near and pull.alpha:
            torch._foreach_lerp_([parameters[n].data for n in near], [pull.anchors[n] for n in near], rate * pull.alpha)
        shrinking = [n for n in new if rates[n] == rate]
        if shrinking and pull.beta:
            torch._foreach_mul_([parameters[n].data for n in shrinking], 1 - rate * pull.beta)


def penalty(pull: Pull, parameters: Mapping[str, nn.Parameter]) -> float:
    """The value of Ω, for logs."""
    with torch.no_grad():
        named = [(n, p) for n, p in parameters.items() if is_regularised(n, p)]
        old = sum(float((p - pull.anchors[n]).square().sum()) for n, p in named if n not in pull.fresh)
        new = sum(float(p.square().sum()) for n, p in named if n in pull.fresh)
    return pull.alpha / 2 * old + pull.beta / 2 * new


@torch.no_grad()
def drift(parameters: Mapping[str, Tensor], anchors: Mapping[str, Tensor]) -> float:
    """‖θ − θ⁰‖ / ‖θ⁰‖ over the parameters that have an anchor; 0 when none has."""
    names = [name for name in parameters if name in anchors]
    moved = sum(float((parameters[n] - anchors[n]).double().square().sum()) for n in names)
    start = sum(float(anchors[n].double().square().sum()) for n in names)
    return math.sqrt(moved / start) if start > 0 else 0.0


def _pulled(pull: Pull, parameters: Mapping[str, nn.Parameter]) -> tuple[list[str], list[str]]:
    """Names of the anchored and of the new weights to pull. One without a gradient makes no step and is not pulled."""
    names = [n for n, p in parameters.items() if p.grad is not None and is_regularised(n, p)]
    return [n for n in names if n not in pull.fresh], [n for n in names if n in pull.fresh]

"""Surgical fine-tuning: train the layer groups that the new data pulls at hardest (Lee et al. 2022, arXiv:2210.11466, Auto-RGN).

Layers are ranked by their relative gradient norm ‖∇‖₂ / ‖θ‖₂: how far, measured by their own size, the loss wants them to
move. The authors scale the learning rate of each tensor by it, anew in each epoch; here it chooses which layer groups
train at all, once, after the head has learned, since a head that knows nothing sends down gradients that mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetune.errors import TrainingError
from finetune.model.groups import LayerGroups
from finetune.transfer.l2sp import is_regularised


@dataclass(frozen=True)
class Choice:
    """Layer groups by relative gradient norm, largest first, the names of those chosen in that order, and why in a sentence."""

    ranking: tuple[tuple[str, float], ...]
    chosen: tuple[str, ...]
    reason: str

    def to_json(self) -> dict[str, Any]:
        """As it stands in the report and in checkpoints."""
        ranking = [{"group": name, "relative_gradient_norm": norm} for name, norm in self.ranking]
        return {"ranking": ranking, "chosen": list(self.chosen), "reason": self.reason}


def relative_gradient_norms(
    module: nn.Module, groups: LayerGroups, batches: Iterable[Iterable[Tensor]]
) -> dict[str, float]:
    """‖∇‖₂ / ‖θ‖₂ of each layer group below the head, by name, averaged over batches.

    batches: of each batch the parts of its mean loss, computed as they are asked for, so that memory holds one part at a
    time. θ are a group's matrices and kernels: normalisation is left out as in the authors' code, and biases as well, since
    near zero every gradient is large. What is in no group, as the weights beside adapters are, gets no gradient. Leaves the
    network in evaluation mode, all groups requiring a gradient and nothing holding one. TrainingError when a gradient is not finite.
    """
    module.eval()
    members = groups.depth_of()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in members)
        parameter.grad = None
    weights = {group.name: _weights(module, group.parameters) for group in groups.groups[:-1]}
    sizes = {name: _norm(found) for name, found in weights.items()}
    sums, count = dict.fromkeys(weights, 0.0), 0
    for parts in batches:
        for loss in parts:
            loss.backward()  # type: ignore[no-untyped-call]
        for name, found in weights.items():
            sums[name] += _norm([p.grad for p in found if p.grad is not None]) / max(sizes[name], 1e-12)
        module.zero_grad(set_to_none=True)
        count += 1
    bad = [name for name, total in sums.items() if not math.isfinite(total)]
    if bad:
        raise TrainingError(
            f"transfer.unfreeze: the gradients of layer group '{bad[0]}' are not finite, so nothing can be chosen; lower transfer.learning_rate"
        )
    return {name: total / count for name, total in sums.items()}


def choose(norms: dict[str, float], count: int) -> Choice:
    """The `count` layer groups with the largest relative gradient norms; of equal ones the nearest to the head.

    norms: by name, input side first.

    >>> choose({"stem": 0.022, "block 0": 0.0012, "block 1": 0.031}, 2).reason
    'unfreezing block 1 and stem: the largest relative gradients 0.031, 0.022; the smallest was block 0 with 0.0012'
    """
    nearest_first = reversed(norms.items())
    ranking = tuple(sorted(nearest_first, key=lambda item: -item[1]))
    chosen, left = ranking[:count], ranking[count:]
    plural = "s" if len(chosen) > 1 else ""
    values = ", ".join(f"{norm:.2g}" for _, norm in chosen)
    rest = f"the smallest was {ranking[-1][0]} with {ranking[-1][1]:.2g}" if left else "there are no others"
    reason = (
        f"unfreezing {_listed([name for name, _ in chosen])}: the largest relative gradient{plural} {values}; {rest}"
    )
    return Choice(ranking, tuple(name for name, _ in chosen), reason)


def _weights(module: nn.Module, names: Sequence[str]) -> list[nn.Parameter]:
    return [p for name in names if is_regularised(name, p := module.get_parameter(name))]


@torch.no_grad()
def _norm(tensors: Sequence[Tensor]) -> float:
    """Euclidean norm over all of some tensors, which is that of their norms."""
    return math.sqrt(sum(float(norm) ** 2 for norm in torch._foreach_norm(list(tensors)))) if tensors else 0.0


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))

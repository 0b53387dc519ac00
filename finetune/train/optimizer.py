"""The optimizer of one phase: fresh, over the trainable layer groups, each with its own rate."""

from __future__ import annotations

import torch
from torch import nn

from finetune.model.groups import LayerGroups
from finetune.transfer.l2sp import is_regularised
from finetune.transfer.learning_rates import rate_factor
from finetune.transfer.plan import Phase


def make_optimizer(
    module: nn.Module, groups: LayerGroups, phase: Phase, *, kind: str, weight_decay: float, scaled: bool = False
) -> torch.optim.Optimizer:
    """AdamW or SGD with one parameter group per layer group and decay; frozen layer groups have no state in it.

    scaled: whether a gradient scaler (fp16) decides about each step. Each parameter group carries `names`, `layer_group` and `peak_lr`, from which `set_rates` works.
    """
    parameters = dict(module.named_parameters())
    parts: list[dict[str, object]] = []
    for depth, group in enumerate(groups.groups):
        if depth not in phase.trainable:
            continue
        for decayed in (True, False):
            names = [n for n in group.parameters if is_regularised(n, parameters[n]) == decayed]
            if names:
                parts.append(
                    {
                        "params": [parameters[n] for n in names],
                        "names": names,
                        "layer_group": group.name,
                        "peak_lr": phase.learning_rates[depth],
                        "lr": phase.learning_rates[depth],
                        "weight_decay": weight_decay if decayed else 0.0,
                    }
                )
    if kind == "sgd":
        return torch.optim.SGD(parts, momentum=0.9, foreach=True)
    # The fused kernel is several times faster than the default on CPUs too. Under a gradient scaler it would skip a step
    # inside the kernel, where nobody learns of it.
    return torch.optim.AdamW(parts, fused=not scaled, foreach=scaled)


def set_rates(optimizer: torch.optim.Optimizer, phase: Phase, step: int, steps: int) -> None:
    """Set every group's rate for this step; a pure function of the step, so there is no scheduler state to lose."""
    factor = rate_factor(phase.schedule, step, steps, phase.warmup)
    for part in optimizer.param_groups:
        part["lr"] = part["peak_lr"] * factor


def rates_by_group(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Layer group -> current learning rate."""
    return {part["layer_group"]: float(part["lr"]) for part in optimizer.param_groups}


def rates_by_parameter(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Parameter name -> current learning rate."""
    return {name: float(part["lr"]) for part in optimizer.param_groups for name in part["names"]}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as named tensors, `parameter|field`, for a checkpoint without pickles."""
    tensors = {}
    for part in optimizer.param_groups:
        for name, parameter in zip(part["names"], part["params"], strict=True):
            for field, value in optimizer.state.get(parameter, {}).items():
                if value is not None:
                    tensors[f"{name}|{field}"] = torch.as_tensor(value).detach().cpu().contiguous()
    return tensors


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `optimizer_tensors` returned."""
    by_name: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        name, _, field = key.rpartition("|")
        by_name.setdefault(name, {})[field] = value
    for part in optimizer.param_groups:
        for name, parameter in zip(part["names"], part["params"], strict=True):
            for field, value in by_name.get(name, {}).items():
                # Step counters of unfused optimizers stay on the CPU; everything else lives beside its parameter. The copy
                # lets go of the checkpoint's file, and lies in memory as the parameter does, which the fused kernel relies on.
                if field == "step":
                    device = parameter.device if part.get("fused") else torch.device("cpu")
                    optimizer.state[parameter][field] = value.to(device, copy=True)
                else:
                    optimizer.state[parameter][field] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

"""What a run needs of memory, said before it starts, against what the machine has. Imports torch only to ask a GPU.

Counted are the weights, the copies of them that training keeps (the best so far, and the start that drift and L2-SP are measured
from), gradients, the optimizer's state, and for the largest part of a step the activations that the backward pass waits for
and the logits. A transformer block keeps about `VALUES` numbers per token and unit of its width: 16 to 18 by the count of
Korthikanti et al. 2022 (arXiv:2205.05198, §4.1), to which come activation functions and normalisations that torch computes in
several operations, each keeping its own input. The estimate is meant to be
right within a factor of two; tests/train/test_memory.py compares it with what torch allocates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from finetune import hardware
from finetune.errors import SourceError, TrainingError
from finetune.model.limits import layer_shape

if TYPE_CHECKING:
    import torch
    from torch import nn

    from finetune.model.backbone import TransferModel
    from finetune.recipe import TrainSettings
    from finetune.transfer.plan import Plan

# Numbers that a block keeps per token and unit of width; DoRA's outputs before and after scaling come on top.
VALUES = 28.0
DORA_VALUES = 20.0
# Attention scores, where they are kept: as they are, after dropout, and dropout's mask.
SCORES = 3.0
# Logits: log-probabilities, their gradient and that of the logits, each in float32.
LOGITS = 12.0
FP32 = 4.0
OPTIMIZER_STATES = {"adamw": 2, "sgd": 1}
"""Numbers that an optimizer keeps per weight that trains: AdamW's two moments, SGD's momentum."""
UNITS = ("bytes", "KB", "MB", "GB", "TB")


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by what they are for, at the moment of a run that needs most."""

    weights: int
    copies: int
    """Of what trains: the best weights so far and, but for new weights such as adapters, the start."""
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(getattr(self, part.name) for part in fields(self))

    def to_json(self) -> dict[str, int]:
        """Bytes by part, and `total`."""
        return {**{part.name: getattr(self, part.name) for part in fields(self)}, "total": self.total}

    def sentence(self, available: int) -> str:
        """For people, before training: what is needed, for what, and what there is."""
        parts = ", ".join(f"{part.name} {readable(getattr(self, part.name))}" for part in fields(self))
        return f"training needs about {readable(self.total)} of memory ({parts}), and {readable(available)} are free"


@dataclass(frozen=True)
class NetworkShape:
    """The sizes of a transformer that its memory follows from."""

    layers: int
    hidden: int
    heads: int
    vocabulary: int
    keeps_scores: bool
    """Whether attention keeps its scores: fused kernels do not, but none has dropout on a CPU."""


def shape_of(config: Mapping[str, Any], *, on_cpu: bool = True) -> NetworkShape | None:
    """The sizes that a model's config.json tells, under whichever names its family has for them; None when it does not."""
    config = config.get("text_config") or config
    try:
        layers, hidden, heads, vocabulary = layer_shape(config)
    except SourceError:
        return None
    dropout = any(config.get(key) for key in ("attn_pdrop", "attention_dropout", "attention_probs_dropout_prob"))
    eager = config.get("_attn_implementation") == "eager"
    return NetworkShape(layers, hidden, heads, vocabulary, eager or (on_cpu and dropout))


def estimate(
    *, parameters: int, trainable: int, layers: int, hidden: int, heads: int, vocabulary: int, batch_rows: int, length: int,
    checkpointing: bool, bytes_per_weight: float = FP32, bytes_per_activation: float = FP32, optimizer: str = "adamw",
    anchored: int | None = None, evaluation_rows: int = 0, values: float = VALUES,
) -> MemoryEstimate:  # fmt: skip
    """The memory that one process needs.

    Args: parameters of the network, and how many of them train at once; layers through which the gradient goes, hidden their
    width; heads whose attention scores are kept, 0 where none are; batch_rows: sequences in a part of a step, of `length`
    tokens; checkpointing: whether activations are computed again; bytes_per_weight: of frozen weights, those that train are
    in fp32; bytes_per_activation: 2 under bf16 and fp16; anchored: parameters whose start is kept, all that train if None;
    evaluation_rows: sequences that are evaluated at once; values: numbers kept per token and unit of width.
    """
    tokens = batch_rows * length
    block = tokens * (values * hidden + SCORES * heads * length) * bytes_per_activation
    activations = layers * tokens * hidden * FP32 + block * (layers > 0) if checkpointing else layers * block
    if bytes_per_activation < FP32 <= bytes_per_weight:
        activations += parameters * bytes_per_activation  # autocast keeps a copy of each weight until the backward pass
    return MemoryEstimate(
        weights=round((parameters - trainable) * bytes_per_weight + trainable * FP32),
        copies=round((trainable + (trainable if anchored is None else anchored)) * FP32),
        gradients=round(trainable * FP32),
        optimizer=round(trainable * FP32 * OPTIMIZER_STATES[optimizer]),
        activations=round(activations),
        logits=round(max(tokens * LOGITS, evaluation_rows * length * FP32) * vocabulary),
    )


def estimate_run(
    model: TransferModel, plan: Plan, settings: TrainSettings, *, length: int, precision: str, processes: int = 1,
    on_cpu: bool = True,
) -> MemoryEstimate | None:  # fmt: skip
    """The memory that one process needs for a plan of phases of a loaded network; None when its config tells too little.

    length: tokens of the longest sequence; precision: as Accelerate computes, `no` for fp32.
    """
    sizes = {name: parameter.numel() for name, parameter in model.module.named_parameters()}
    config: Any = model.module.config
    shape = shape_of(config.to_dict() | {"_attn_implementation": config._attn_implementation}, on_cpu=on_cpu)
    if shape is None:
        return None
    groups, total = model.groups, sum(sizes.values())
    frozen = [p for name, p in model.module.named_parameters() if name not in groups.depth_of()]
    in_frozen = sum(p.numel() * p.element_size() for p in frozen) / max(1, sum(p.numel() for p in frozen))
    learned = {name for group in groups.pick(plan.may_train) for name in group.parameters}
    most = max(
        sum(sizes[name] for group in groups.pick(phase.may_train) for name in group.parameters) for phase in plan.phases
    )
    dora = any("lora_magnitude_vector" in name for name in sizes)
    return estimate(
        parameters=total,
        trainable=most,
        layers=_blocks_above(groups.names[plan.may_train[0]], shape.layers),
        hidden=shape.hidden,
        heads=shape.heads if shape.keeps_scores else 0,
        vocabulary=shape.vocabulary,
        batch_rows=math.ceil(settings.batch_size / (settings.accumulation * processes)),
        length=length,
        checkpointing=settings.gradient_checkpointing,
        bytes_per_weight=in_frozen if frozen else FP32,
        bytes_per_activation=FP32 if precision == "no" else FP32 / 2,
        optimizer=settings.optimizer,
        anchored=sum(sizes[name] for name in learned - model.fresh),
        evaluation_rows=settings.eval_batch_size,
        values=VALUES + DORA_VALUES * dora,
    )


def _blocks_above(lowest: str, blocks: int) -> int:
    """Blocks that the gradient passes on its way down to the lowest layer group that trains, by that group's name."""
    kind, _, number = lowest.partition(" ")
    below = {"block": int(number or 0), "head": blocks}
    return blocks - below.get(kind, 0)


def require_memory(
    needed: MemoryEstimate, available: int, on_excess: Literal["refuse", "warn"] = "refuse"
) -> str | None:
    """None if it fits into `available` bytes; else TrainingError, or the same words to warn with."""
    if needed.total <= available:
        return None
    found = needed.sentence(available)
    if on_excess == "warn":
        return f"{found}, so it may end for want of memory"
    raise TrainingError(
        f"{found}; lower train.batch_size or data.max_length, raise train.accumulation, set train.gradient_checkpointing: true, "
        "train less at once (transfer.depth, transfer.adapter), or set train.memory: warn to start all the same"
    )


def available_memory(device: torch.device | str, *, processes: int = 1, loaded: nn.Module | None = None) -> int:
    """Bytes of a device that a run may have: of a GPU what is free; of the host this process's share among `processes` of one run.

    loaded: the network, if it was loaded before this is asked; what it already takes of the device counts as available.
    """
    import torch

    device = torch.device(device)
    tensors = [*loaded.parameters(), *loaded.buffers()] if loaded is not None else []
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.device.type == device.type)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + held
    return hardware.available_memory() // processes + held


def readable(size: int) -> str:
    """Bytes in decimal units.

    >>> readable(3_456_000_000)
    '3.46 GB'
    """
    value, unit = float(size), 0
    while value >= 999.5 and unit + 1 < len(UNITS):
        value, unit = value / 1000, unit + 1
    return f"{value:.3g} {UNITS[unit]}"

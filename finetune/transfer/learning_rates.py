"""Learning rates over depth and over time. Pure functions: a phase's rates need no scheduler object and no state."""

from __future__ import annotations

import math
from collections.abc import Callable

# Slanted triangular schedules end at 1/RATIO of the peak (Howard & Ruder 2018, §3.2).
RATIO = 32.0
# One-cycle starts at 1/25 of the peak and ends at 1/10,000 of that (Smith & Topin 2018; fastai's values).
ONE_CYCLE_START = 1 / 25
ONE_CYCLE_END = ONE_CYCLE_START / 1e4


def discriminative_lrs(top: float, decay: float, depth: int) -> list[float]:
    """Learning rate per layer group, head last: top · decay^(depth-1-l) (Howard & Ruder 2018, §3.2).

    >>> discriminative_lrs(0.5, 0.5, 3)
    [0.125, 0.25, 0.5]
    """
    return [top * decay ** (depth - 1 - level) for level in range(depth)]


def slanted_triangular(progress: float, warmup: float) -> float:
    """Linear rise over the first `warmup` share of steps, then a linear fall to 1/32 (Howard & Ruder 2018, §3.2)."""
    share = progress / warmup if progress < warmup else (1 - progress) / (1 - warmup)
    return (1 + share * (RATIO - 1)) / RATIO


def one_cycle(progress: float, warmup: float) -> float:
    """Cosine rise from 1/25, then a cosine fall to 1/250,000 of the peak (Smith & Topin 2018)."""
    if progress < warmup:
        return _cosine_between(ONE_CYCLE_START, 1.0, progress / warmup)
    return _cosine_between(1.0, ONE_CYCLE_END, (progress - warmup) / (1 - warmup))


def cosine(progress: float, warmup: float) -> float:
    """Linear warm-up, then half a cosine to zero (Loshchilov & Hutter 2017, without restarts)."""
    return progress / warmup if progress < warmup else _cosine_between(1.0, 0.0, (progress - warmup) / (1 - warmup))


def linear(progress: float, warmup: float) -> float:
    """Linear warm-up, then a linear fall to zero."""
    return progress / warmup if progress < warmup else (1 - progress) / (1 - warmup)


def constant(progress: float, warmup: float) -> float:
    """Linear warm-up, then the full rate."""
    return progress / warmup if progress < warmup else 1.0


SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "slanted_triangular": slanted_triangular,
    "one_cycle": one_cycle,
    "cosine": cosine,
    "linear": linear,
    "constant": constant,
}


def rate_factor(schedule: str, step: int, steps: int, warmup: float) -> float:
    """Factor on every group's rate for step `step` of `steps`, counted from 0.

    A step stands at the middle of its slot, so that neither the first nor the last step is wasted on a rate of zero.

    >>> [rate_factor("linear", step, 4, 0.5) for step in range(4)]
    [0.25, 0.75, 0.75, 0.25]
    """
    if not 0 <= step < steps:
        raise ValueError(f"step {step} lies outside a phase of {steps} steps")
    return SCHEDULES[schedule]((step + 0.5) / steps, warmup)


def _cosine_between(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

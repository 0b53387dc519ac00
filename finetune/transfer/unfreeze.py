"""Which layer groups train in which phase, as counts from the head: 1 is the head alone."""

from __future__ import annotations


def gradual(groups: int, *, step: int = 1, depth: int | None = None) -> list[int]:
    """Gradual unfreezing (Howard & Ruder 2018, §3.3): the head first, then `step` more groups in each phase.

    >>> gradual(8, step=2)
    [1, 3, 5, 7, 8]
    """
    last = min(groups, depth or groups)
    return [*range(1, last, step), last]


def lp_ft(groups: int, *, depth: int | None = None) -> list[int]:
    """Linear probing, then fine-tuning (Kumar et al. 2022): the head first, then everything at once.

    A head that already fits keeps the first large gradients from distorting the pretrained features.

    >>> lp_ft(8)
    [1, 8]
    """
    last = min(groups, depth or groups)
    return [1, last] if last > 1 else [1]


def head_only(groups: int) -> list[int]:
    """Linear probing: the pretrained part is a fixed feature extractor."""
    return [1] if groups else []


def full(groups: int, *, depth: int | None = None) -> list[int]:
    """Plain fine-tuning of the topmost `depth` groups in one phase."""
    return [min(groups, depth or groups)]

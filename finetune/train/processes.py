"""Processes of one run beside one another: what one does alone while the others wait, and what all must decide alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator

from finetune.errors import FinetuneError, TrainingError

LONGEST_WAIT = timedelta(days=1)
"""Delivery may take longer than the minutes after which a collective operation of training counts as hung."""

T = TypeVar("T")


class Company:
    """The processes of a run, of which the main one sometimes works alone."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group

    def main_alone(self, work: Callable[[], T]) -> T | None:
        """What `work` gives, in the main process; None in the others, which wait for it.

        A FinetuneError of `work` is raised in every process, so that all end alike.
        """
        if self._group is None:
            return work()
        found: T | None = None
        outcome: list[FinetuneError | None] = [None]
        if dist.get_rank() == 0:
            try:
                found = work()
            except FinetuneError as error:
                outcome[0] = error
        try:
            dist.broadcast_object_list(outcome, src=0, group=self._group)
        except RuntimeError as error:
            raise TrainingError("the main process has ended without a word; what it printed says why") from error
        if outcome[0] is not None:
            raise outcome[0]
        return found


@contextmanager
def company() -> Iterator[Company]:
    """The company of this process. Every process of a run must enter this at the same point."""
    group = dist.new_group(backend="gloo", timeout=LONGEST_WAIT) if dist.is_initialized() else None
    if not isinstance(group, dist.ProcessGroup):
        yield Company(None)
        return
    try:
        yield Company(group)
    finally:
        dist.destroy_process_group(group)


def minimum_over_processes(number: int, accelerator: Accelerator) -> int:
    """The smallest of every process's numbers, so that all of them decide alike."""
    return int(accelerator.gather(torch.tensor([number], device=accelerator.device)).min())

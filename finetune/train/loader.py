"""Batches made ahead of the steps that want them, in processes of their own."""

from __future__ import annotations

import signal
import sys
import traceback
import warnings
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.utils.data import DataLoader, Dataset

from finetune.errors import FinetuneError, TrainingError

if TYPE_CHECKING:  # so that a process that only makes batches loads no transformers
    from finetune.train.job import Batch, Examples, Moment

Part: TypeAlias = "tuple[Sequence[int], Moment]"
"""Rows that are computed together, and when."""


def batches_ahead(examples: Examples, parts: Sequence[Part], workers: int) -> Generator[Batch]:
    """Each part's inputs and targets, in order and with the same bits whatever the number of `workers`.

    With 0 workers each batch is made here when it is asked for; otherwise that many processes make two batches each
    ahead. They end with the iterator: close it (contextlib.closing) where it may not be used up. A FinetuneError of a
    worker is raised here as it is; TrainingError when a worker dies.
    """
    if workers == 0 or not parts:
        yield from (examples.batch(rows, moment) for rows, moment in parts)
        return
    loading = _start(examples, parts, min(workers, len(parts)))
    try:
        for result in loading:
            if isinstance(result, FinetuneError):
                raise result
            inputs, targets = result
            yield {name: array.numpy() for name, array in inputs.items()}, targets.numpy()
    except BaseException as error:
        traceback.clear_frames(
            error.__traceback__
        )  # they hold the loader, whose processes would not end before they do
        if "DataLoader worker (pid" not in str(error):
            raise
        raise TrainingError(
            f"a process that reads images ended unexpectedly ({str(error).splitlines()[0]}); set train.workers to 0, or give the run more (shared) memory"
        ) from error
    finally:
        del loading  # ends the processes


class _Batches(Dataset[Any]):
    """One item is one whole part. An error that the user can mend is a value: a raised one would come back rewritten."""

    def __init__(self, examples: Examples, parts: Sequence[Part]) -> None:
        self.examples, self.parts = examples, parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> Batch | FinetuneError:
        rows, moment = self.parts[index]
        try:
            return self.examples.batch(rows, moment)
        except FinetuneError as error:
            return error


def _start(examples: Examples, parts: Sequence[Part], workers: int) -> Iterator[Any]:
    """Processes at work. Arrays arrive as tensors in shared memory, which is how torch's loader sends them."""
    with warnings.catch_warnings():
        # The recipe may ask for more processes than cores, as reading from a network disk wants it. And a fork is what
        # gives processes the images without a copy; they run one thread each and take no lock of this process.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        loader = DataLoader(
            _Batches(examples, parts),
            batch_size=None,
            num_workers=workers,
            multiprocessing_context="fork" if sys.platform == "linux" else None,
            worker_init_fn=_leave_ctrl_c_to_the_main_process,
            generator=torch.Generator(),  # it draws a seed, by default from the generator that dropout draws from
        )
        return iter(loader)


def _leave_ctrl_c_to_the_main_process(worker: int) -> None:
    """A terminal sends Ctrl-C to all processes; the main one ends the others when it has written its checkpoint."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from threads, which only wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def imported_modules_stay() -> Iterator[None]:
    """Keep the garbage collection at the end of each phase from looking through everything torch imported."""
    import train_samples  # noqa: F401

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()

"""Loading and saving without transformers' own talk: what the user should know, finetune says itself."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' log below errors, its warnings and its progress bars; afterwards all is as the user had it.

    The settings belong to the process, so other threads that use transformers meanwhile are quiet too.
    """
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging

    # Read from the logger itself: the library's getter gives the effective level, which a root logger may have decided.
    logger = logging.get_logger("transformers")
    level, bars, hub_bars = logger.level, logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"transformers(\.|$)")
        # The hub client warns when an environment variable outranks these calls; then nothing changes, which is right.
        warnings.filterwarnings("ignore", message="Cannot (en|dis)able progress bars")
        logger.setLevel(max(level, logging.ERROR))
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logger.setLevel(level)
            if bars:
                logging.enable_progress_bar()
            # transformers' switch moves the hub client's as well.
            (enable_progress_bars if hub_bars else disable_progress_bars)()

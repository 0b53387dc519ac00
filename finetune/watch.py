"""Keeps the time of a run's stages, tells callbacks what happens, and passes on a wish to stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from finetune.errors import Interrupted
from finetune.train.events import Callback, Event, Notice, StageEnded, StageStarted

logger = logging.getLogger(__name__)


@dataclass
class Watch:
    """Tells callbacks what happens, keeps the time of each stage, and passes on a wish to stop."""

    callbacks: Sequence[Callback]
    stop: Callable[[], bool]
    timings: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    def tell(self, event: Event) -> None:
        for callback in self.callbacks:
            callback(event)

    def step(self, text: str) -> None:
        """Tell of the next step of a stage; Interrupted if the wish to stop came before it."""
        if self.stop():
            raise Interrupted(f"stopped before: {text}")
        self.tell(Notice(text))

    @contextmanager
    def stage(self, name: str, detail: str = "") -> Iterator[Callable[[str], None]]:
        """Keep the time of a stage; Interrupted if the wish to stop came before it."""
        if self.stop():
            raise Interrupted(f"stopped before {name}")
        self.tell(StageStarted(name, detail))
        logger.info("%s: %s", name, detail)
        began, summary = time.perf_counter(), [""]
        yield lambda text: summary.__setitem__(0, text)
        seconds = time.perf_counter() - began
        self.timings[name] = self.timings.get(name, 0.0) + seconds
        self.tell(StageEnded(name, seconds, summary[0]))

    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.began

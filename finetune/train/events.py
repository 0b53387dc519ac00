"""What a run tells whoever watches it. A callback is any callable that takes one event."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StageStarted:
    """A stage of the pipeline begins; `stage` is stable, `detail` is for people."""

    stage: str
    detail: str = ""


@dataclass(frozen=True)
class StageEnded:
    """A stage is over; `summary` is one line for people."""

    stage: str
    seconds: float
    summary: str = ""


@dataclass(frozen=True)
class TrainingResumed:
    """Training goes on after `step` steps; `history` holds the records of the epochs done, of which a log may hold more
    or fewer if the run was killed between an epoch and its checkpoint."""

    step: int
    history: tuple[dict[str, object], ...]


@dataclass(frozen=True)
class PhaseStarted:
    """A phase of training begins; `image_size` is None where its images are of the run's own size."""

    phase: int
    phases: int
    name: str
    trainable: tuple[str, ...]
    epochs: int
    steps_per_epoch: int
    image_size: int | None = None


@dataclass(frozen=True)
class StepEnded:
    """An optimizer step is done; `loss` is the running mean of the epoch."""

    phase: int
    epoch: int
    step: int
    steps: int
    loss: float
    rows_per_second: float


@dataclass(frozen=True)
class EpochEnded:
    """An epoch was evaluated; `record` is its line of history.jsonl."""

    phase: int
    epoch: int
    record: dict[str, object]
    improved: bool


@dataclass(frozen=True)
class Notice:
    """Something that the user should know, in one sentence."""

    message: str
    values: dict[str, object] = field(default_factory=dict)


Event = StageStarted | StageEnded | TrainingResumed | PhaseStarted | StepEnded | EpochEnded | Notice
Callback = Callable[[Event], None]

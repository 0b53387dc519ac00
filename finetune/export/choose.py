"""The workbench on which int8 forms are built, measured as they would be served, and judged against fp32 ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from finetune.errors import BundleError, ExportError
from finetune.export.judge import Judge
from finetune.export.parity import (
    INVARIANCE_TOLERANCE,
    Batch,
    Logits,
    Predict,
    batch_invariant,
    measure_speed,
    predict_rows,
)
from finetune.preprocess import Encoder
from finetune.runtime import open_session, run_logits

BATCH = 32


class Ways(Protocol):
    """What measuring asks of a modality; `finetune.export.kinds.ExportKind` has it."""

    @property
    def spread_rows(self) -> Callable[[Any, Sequence[Any], int], list[Any]]:
        """(encoder, rows, count) -> rows that stand for all of them, always the same ones."""

    @property
    def row_by_row(self) -> Callable[[Predict], Predict]:
        """The same prediction with each row run alone."""


@dataclass(frozen=True)
class Yardstick:
    """The validation rows and the judge that every form of the model is measured with."""

    encoder: Encoder
    rows: Sequence[Any]
    labels: NDArray[Any]
    judge: Judge
    ways: Ways
    weights: NDArray[Any] | None = None
    """How much each row counts in the metric; None where all count alike."""

    def only(self, rows: NDArray[np.int64]) -> Yardstick:
        """The same with the rows of these numbers alone."""
        weights = None if self.weights is None else self.weights[rows]
        return replace(self, rows=[self.rows[row] for row in rows], labels=self.labels[rows], weights=weights)

    def score(self, logits: Logits) -> float:
        """The metric on all rows."""
        return float(self.judge.score(logits, self.labels, self.weights))

    def drop(self, reference: Logits, other: Logits) -> float:
        """How much worse `other` scores than `reference`, as a fraction; negative if better."""
        return float(self.judge.drop(self.score(reference), self.score(other), self.labels))

    def compare(self, reference: Logits, other: Logits) -> dict[str, float]:
        """Agreement and differences of two forms' logits on all rows."""
        return self.judge.compare(reference, other, self.labels)

    def sample(self, count: int) -> list[Any]:
        """`count` rows that stand for all."""
        return self.ways.spread_rows(self.encoder, self.rows, count)

    def speed(self, forms: Mapping[str, Predict], seconds: float = 1.0) -> dict[str, dict[str, dict[str, float]]]:
        """Latency and throughput of each form at batch 1 and 32 on arrays of rows spread over all lengths.

        Tokenising and decoding are done before the clock starts.
        """
        rows = self.sample(BATCH)
        return measure_speed(
            forms, [self.encoder.collate([row]) for row in rows], self.encoder.collate(rows), seconds=seconds
        )


@dataclass(frozen=True)
class Limits:
    """Gates of int8 against fp32 ONNX, on validation rows."""

    max_drop: float
    min_agreement: float


@dataclass(frozen=True)
class Form:
    """One ONNX file, how it is served, and what it answered on the validation rows."""

    name: str
    path: Path
    predict: Predict
    invariant: bool
    logits: Logits
    size_bytes: int
    """On disk, weights beside the file included."""


@dataclass(frozen=True)
class Trial:
    """A candidate that was tried: its file and figures, or why there are none."""

    name: str
    form: Form | None
    drop: float
    agreement: float
    reason: str
    """Empty if it passes the quality gates, else one sentence."""
    method: str | None = None
    """How the ranges of the activations were found; None for dynamic int8, which finds them at run time."""
    kernels: str = ""
    """Candidates with the same one run the same kernels on other constants, so one of them is timed for all."""


@dataclass
class Workbench:
    """Where candidates are built and judged, one after another. Files go to `folder`; `progress` is told each name."""

    fp32: Form
    folder: Path
    yardstick: Yardstick
    limits: Limits
    progress: Callable[[str], None]
    trials: list[Trial] = field(default_factory=list)

    def attempt(
        self, name: str, build: Callable[[Path], None], *, method: str | None = None, kernels: str | None = None
    ) -> Trial:
        """Build a candidate at the path that is given to `build`, run it on the validation rows and judge it.

        One that cannot be built or opened is a trial with the reason and without figures.
        """
        self.progress(f"int8: {name}")
        path = self.folder / f"{len(self.trials)}" / "model.int8.onnx"
        path.parent.mkdir(parents=True)
        try:
            build(path)
            form = open_form(name, path, self.yardstick)
        except (ExportError, BundleError) as error:
            return self.give_up(name, str(error))
        drop = self.yardstick.drop(self.fp32.logits, form.logits)
        agreement = self.yardstick.compare(self.fp32.logits, form.logits)["agreement"]
        reasons = []
        if drop > self.limits.max_drop:
            reasons.append(f"the metric {self.yardstick.judge.change(drop)}, more than {self.limits.max_drop:g}")
        if agreement < self.limits.min_agreement:
            reasons.append(
                f"it agrees with fp32 on {agreement:.4f} of the rows, less than {self.limits.min_agreement:g}"
            )
        trial = Trial(name, form, drop, agreement, " and ".join(reasons), method, kernels or name)
        self.trials.append(trial)
        return trial

    def give_up(self, name: str, reason: str) -> Trial:
        """Note a candidate that cannot be built."""
        self.trials.append(Trial(name, None, float("nan"), float("nan"), reason))
        return self.trials[-1]

    def none_passes(self) -> bool:
        """Whether something was built, and nothing that was built passes the quality gates."""
        return any(trial.form for trial in self.trials) and all(trial.reason for trial in self.trials)


def open_form(name: str, path: Path, yardstick: Yardstick) -> Form:
    """Open an ONNX file and run it on the validation rows exactly as the bundle will serve it.

    A form whose answers depend on the other rows of a batch is run row by row, here and when it is served.
    BundleError if it cannot be opened, ExportError if a logit is not finite.
    """
    session = open_session(path)

    def run(batch: Batch) -> Logits:
        return run_logits(session, batch)

    tolerance = INVARIANCE_TOLERANCE * yardstick.judge.unit
    invariant = batch_invariant(run, yardstick.encoder, yardstick.sample(8), tolerance)
    predict = run if invariant else yardstick.ways.row_by_row(run)
    logits = predict_rows(predict, yardstick.encoder, yardstick.rows, BATCH)
    if bad := int((~np.isfinite(logits)).any(axis=1).sum()):
        raise ExportError(
            f"{name} gives logits that are not finite on {bad} of {len(logits)} validation rows; it cannot be shipped"
        )
    size = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    return Form(name, path, predict, invariant, logits, size)

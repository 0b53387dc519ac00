"""Which int8 form to ship: build the candidates, measure them as they would be served, keep the best that passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.errors import BundleError, ExportError
from finetune.export.parity import (
    Batch,
    Logits,
    Predict,
    batch_invariant,
    compare_logits,
    measure_speed,
    predict_rows,
    row_by_row,
    spread_rows,
)
from finetune.export.quantize import (
    Candidate,
    candidates,
    head_layers,
    quantize_dynamic_int8,
    sparing,
    weight_layers,
)
from finetune.preprocess import Encoded, TextEncoder
from finetune.runtime import open_session, run_logits

BATCH = 32


@dataclass(frozen=True)
class Yardstick:
    """The validation rows and the metric that every form of the model is measured with."""

    encoder: TextEncoder
    rows: Sequence[Encoded]
    labels: NDArray[np.int64]
    score: Callable[[Logits, NDArray[np.int64]], float]
    higher_is_better: bool

    def drop(self, reference: Logits, other: Logits) -> float:
        """How much worse `other` scores than `reference`; negative if better."""
        change = self.score(reference, self.labels) - self.score(other, self.labels)
        return float(change if self.higher_is_better else -change)

    def speed(self, forms: Mapping[str, Predict], seconds: float = 1.0) -> dict[str, dict[str, dict[str, float]]]:
        """Latency and throughput of each form at batch 1 and 32 on rows spread over all lengths."""
        rows = spread_rows(self.rows, BATCH)
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


def open_form(name: str, path: Path, yardstick: Yardstick) -> Form:
    """Open an ONNX file and run it on the validation rows exactly as the bundle will serve it.

    A form whose answers depend on the other rows of a batch is run row by row, here and when it is served.
    BundleError if it cannot be opened, ExportError if a logit is not finite.
    """
    session = open_session(path)

    def run(batch: Batch) -> Logits:
        return run_logits(session, batch)

    invariant = batch_invariant(run, yardstick.encoder, spread_rows(yardstick.rows, 8))
    predict = run if invariant else row_by_row(run)
    logits = predict_rows(predict, yardstick.encoder, yardstick.rows, BATCH)
    if bad := int((~np.isfinite(logits)).any(axis=1).sum()):
        raise ExportError(
            f"{name} gives logits that are not finite on {bad} of {len(logits)} validation rows; it cannot be shipped"
        )
    size = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    return Form(name, path, predict, invariant, logits, size)


def try_candidates(
    fp32: Form, target: str, folder: Path, yardstick: Yardstick, limits: Limits, progress: Callable[[str], None]
) -> list[Trial]:
    """Build and judge the candidates for a processor kind; files go to `folder`.

    Where none passes the quality gates, two gentler ones follow: the head in fp32, and the most sensitive layer in fp32.
    """
    tried: list[Trial] = []

    def attempt(candidate: Candidate) -> None:
        progress(f"int8: {candidate.name}")
        tried.append(_try(candidate, fp32, folder / f"{len(tried)}" / "model.int8.onnx", yardstick, limits))

    plain = candidates(target)
    for candidate in plain:
        attempt(candidate)
    built = [candidate for candidate, trial in zip(plain, tried) if trial.form]
    if built and all(trial.reason for trial in tried):
        layers = weight_layers(fp32.path)
        attempt(sparing(built[0], head_layers(layers), "head"))
        if tried[-1].reason and len(layers) > 1:
            progress("int8: looking for the most sensitive layer")
            try:
                layer = most_sensitive_layer(fp32, built[0], folder, yardstick)
            except (ExportError, BundleError) as error:
                tried.append(Trial(f"{built[0].name}, one layer fp32", None, float("nan"), float("nan"), str(error)))
            else:
                attempt(sparing(built[0], (layer,), layer))
    return tried


def _try(candidate: Candidate, fp32: Form, path: Path, yardstick: Yardstick, limits: Limits) -> Trial:
    path.parent.mkdir(parents=True)
    try:
        quantize_dynamic_int8(fp32.path, path, candidate)
        form = open_form(candidate.name, path, yardstick)
    except (ExportError, BundleError) as error:
        return Trial(candidate.name, None, float("nan"), float("nan"), str(error))
    drop = yardstick.drop(fp32.logits, form.logits)
    agreement = compare_logits(fp32.logits, form.logits)["agreement"]
    reasons = []
    if drop > limits.max_drop:
        reasons.append(f"the metric falls by {drop:.4f}, more than {limits.max_drop:g}")
    if agreement < limits.min_agreement:
        reasons.append(f"it agrees with fp32 on {agreement:.4f} of the rows, less than {limits.min_agreement:g}")
    return Trial(candidate.name, form, drop, agreement, " and ".join(reasons))


def most_sensitive_layer(fp32: Form, candidate: Candidate, folder: Path, yardstick: Yardstick, rows: int = 16) -> str:
    """The layer whose quantisation alone moves the logits of a few rows most, on average.

    Embeddings stay fp32 here, so that each figure is the layer's own.
    """
    sample = spread_rows(yardstick.rows, rows)
    reference = predict_rows(fp32.predict, yardstick.encoder, sample, 1)
    layers = weight_layers(fp32.path)
    moved: dict[str, float] = {}
    for layer in layers:
        others = tuple(name for name in layers if name != layer)
        alone = Candidate(layer, candidate.weights, candidate.reduce_range, "fp32", others)
        path = folder / "sensitivity.onnx"
        quantize_dynamic_int8(fp32.path, path, alone)
        session = open_session(path)
        logits = predict_rows(lambda batch, session=session: run_logits(session, batch), yardstick.encoder, sample, 1)  # type: ignore[misc]
        moved[layer] = compare_logits(reference, logits)["mean_abs_diff"]
    return max(moved, key=lambda layer: moved[layer])

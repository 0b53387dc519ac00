"""torch → ONNX fp32 → ONNX int8: build each form, measure all on the same validation rows, decide which one is served.

Nothing is exported on faith: an fp32 file that differs from torch, or scores worse, is refused with a GateError; an int8
file that scores worse or is not faster is not served, and the report says why.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from finetune.bundle import INT8 as INT8_PATH
from finetune.bundle import ONNX as ONNX_PATH
from finetune.errors import ExportError
from finetune.export.bnb import head_modules, measure_bitsandbytes
from finetune.export.choose import BATCH, Form, Trial, Workbench, Yardstick, open_form
from finetune.export.kinds import ExportKind
from finetune.export.onnx import evaluating_on_cpu, export_onnx
from finetune.export.outcome import (
    drop_gate,
    export_section,
    keep_best,
    onnx_section,
    parity_gate,
    refuse,
    torch_section,
)
from finetune.export.parity import Batch, Logits, Predict, check_shapes, predict_rows
from finetune.export.request import ExportRequest, ExportResult
from finetune.export.support import check_bitsandbytes
from finetune.export.verdict import Row, candidate_row, int8_section
from finetune.hardware import cpu


@dataclass(frozen=True)
class Fp32:
    """fp32 ONNX beside torch: its parity figures, and the gates that they were held against."""

    form: Form
    parity: Mapping[str, float]
    gates: Sequence[Row]


def export_all(given: ExportRequest, kind: ExportKind) -> ExportResult:
    """Write `folder`/onnx/model.onnx and, where one passes, model.int8.onnx; measure and gate them.

    GateError if fp32 ONNX misses a gate, ExportError if a form cannot be built or gives logits that are not finite.
    """
    started = time.perf_counter()
    if given.plan.bitsandbytes:
        check_bitsandbytes("text")
    _check_rows(given)
    yardstick = Yardstick(kind.prepared(given.encoder), given.rows, given.labels, given.judge, kind, given.weights)
    with evaluating_on_cpu(given.module), tempfile.TemporaryDirectory(prefix=".int8-", dir=given.folder) as scratch:
        predict = torch_predict(given.module)
        fp32 = _build_fp32(given, kind, yardstick, predict)
        refuse(fp32.gates)
        bench = Workbench(fp32.form, Path(scratch), yardstick, given.plan.limits, given.progress)
        if given.plan.int8_mode == "auto":
            kind.try_int8(bench, given.plan.target, given.encoder, given.calibration)
        given.progress("measuring speed")
        speeds = _speeds(yardstick, {"torch": predict, "onnx": fp32.form.predict}, bench.trials)
        choice = keep_best(given, bench.trials, fp32.form, speeds)
    rows = len(given.calibration)
    forms = {
        "torch": torch_section(given, speeds),
        "onnx": onnx_section(fp32.form, speeds, fp32.parity),
        "int8": int8_section(choice, fp32.form, bench.trials, yardstick, speeds, INT8_PATH, rows),
        "candidates": [candidate_row(trial, yardstick, speeds, choice, rows) for trial in bench.trials],
        "bitsandbytes": _bitsandbytes(given, yardstick),
    }
    kept = {"int8": choice.form.logits} if choice.form else {}
    return ExportResult(export_section(given, forms, fp32.gates, choice, started), {"onnx": fp32.form.logits, **kept})


def _check_rows(given: ExportRequest) -> None:
    rows, labels, answers = len(given.rows), len(given.labels), len(given.answers)
    if rows != answers or rows != labels or not rows:
        raise ExportError(f"export got {rows} rows, {labels} labels and {answers} logits; they must match")
    given.require_finite()


def _build_fp32(given: ExportRequest, kind: ExportKind, yardstick: Yardstick, predict: Predict) -> Fp32:
    """Export the network, whose `predict` is torch's, and compare the file with it on validation rows and other shapes."""
    encoder, rows, path = given.encoder, given.rows, given.folder / ONNX_PATH
    given.progress("ONNX: exporting")
    export_onnx(given.module, kind.example(encoder, rows), path, axes=kind.axes(encoder))
    form = open_form("fp32 ONNX", path, yardstick)
    given.progress("ONNX: comparing with torch")
    shapes = check_shapes(predict, form.predict, kind.shape_examples(encoder, rows)) / given.judge.unit
    return _compare_fp32(given, form, yardstick, predict, shapes)


def _compare_fp32(given: ExportRequest, form: Form, yardstick: Yardstick, predict: Predict, worst_shape: float) -> Fp32:
    """Compare on the validation rows; `worst_shape`, in the judge's unit, was found over other shapes."""
    judge, compared = given.judge, yardstick.compare(given.answers, form.logits)
    if compared["max_abs_diff"] > given.plan.tolerance * judge.unit:
        # Training may evaluate in lower precision or on another device. Parity is a claim about fp32 on the CPU.
        compared = yardstick.compare(predict_rows(predict, yardstick.encoder, yardstick.rows, BATCH), form.logits)
    worst = max(compared["max_abs_diff"] / judge.unit, worst_shape)
    unit = "" if judge.unit == 1 else " of the labels' standard deviation"
    gates = (
        parity_gate(given, worst, unit, "validation rows and other shapes"),
        drop_gate(given, yardstick.drop(given.answers, form.logits)),
    )
    return Fp32(form, {**compared, "shapes_max_abs_diff": worst_shape * judge.unit}, gates)


def _speeds(
    yardstick: Yardstick, forms: Mapping[str, Predict], trials: Sequence[Trial]
) -> dict[str, dict[str, dict[str, float]]]:
    """Speed of every form by name; of trials with the same kernels one is timed, and its figures stand for all."""
    timed: dict[str, Trial] = {}
    for trial in trials:
        if trial.form:
            timed.setdefault(trial.kernels, trial)
    speeds = yardstick.speed({**forms, **{one.name: one.form.predict for one in timed.values() if one.form}})
    return speeds | {trial.name: speeds[timed[trial.kernels].name] for trial in trials if trial.form}


def torch_predict(model: nn.Module) -> Predict:
    """The torch model as a `Predict`; the caller has put it into evaluation mode on the CPU."""

    def predict(batch: Batch) -> Logits:
        with torch.inference_mode():
            logits: Logits = (
                model(**{name: torch.from_numpy(array) for name, array in batch.items()}).logits.float().numpy()
            )
        return logits

    return predict


def _bitsandbytes(given: ExportRequest, yardstick: Yardstick) -> Row | None:
    if not given.plan.bitsandbytes:
        return None
    given.progress("bitsandbytes: measuring (slow on CPUs)")
    skip = head_modules(given.module)
    return measure_bitsandbytes(given.torch_folder, yardstick, given.answers, skip=skip, cpu_name=cpu().model)

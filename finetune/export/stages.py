"""torch → ONNX fp32 → ONNX int8: build each form, measure all on the same validation rows, decide which one is served.

Nothing is exported on faith: an fp32 file that differs from torch, or scores worse, is refused with a GateError; an int8
file that scores worse or is not faster is not served, and the report says why.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from finetune.bundle import INT8 as INT8_PATH
from finetune.bundle import MODEL_FOLDER
from finetune.bundle import ONNX as ONNX_PATH
from finetune.errors import ExportError, GateError
from finetune.export.bnb import measure_bitsandbytes
from finetune.export.choose import BATCH, Form, Limits, Trial, Workbench, Yardstick, open_form
from finetune.export.judge import Judge
from finetune.export.kinds import ExportKind
from finetune.export.onnx import OPSET, evaluating, export_onnx
from finetune.export.parity import Batch, Logits, Predict, check_shapes, predict_rows
from finetune.export.support import check_bitsandbytes
from finetune.export.verdict import candidate_row, decide, gate, int8_section
from finetune.hardware import cpu, int8_target
from finetune.preprocess import Encoder


@dataclass(frozen=True)
class ExportPlan:
    """The recipe's `export` section as plain values."""

    tolerance: float = 1e-4
    """Largest difference allowed between logits of torch and of fp32 ONNX, in the judge's unit."""
    max_drop: float = 0.01
    """Most that fp32 ONNX may score below torch."""
    int8_mode: Literal["auto", "off"] = "auto"
    int8_cpu: str = "native"
    """A processor kind of `finetune.hardware.INT8_TARGETS`, or "native"."""
    int8_max_drop: float = 0.01
    int8_min_agreement: float = 0.97
    prompt_tokens: int = 64
    """Language models: length of the prompt with which speed is measured."""
    bitsandbytes: bool = False


@dataclass(frozen=True)
class ExportResult:
    """`report` is report.json's "export" section; `logits` holds the validation logits of "onnx" and, if kept, "int8".

    Of language models they are tallies float64 (N, 3).
    """

    report: dict[str, object]
    logits: dict[str, NDArray[Any]]


def export_all(
    model: nn.Module,
    folder: Path,
    rows: Sequence[Any],
    labels: NDArray[Any],
    encoder: Encoder,
    *,
    kind: ExportKind,
    plan: ExportPlan,
    judge: Judge,
    torch_logits: Logits,
    model_folder: Path | None = None,
    calibration_rows: Sequence[Any] = (),
    progress: Callable[[str], None],
) -> ExportResult:
    """Write `folder`/onnx/model.onnx and, where one passes, model.int8.onnx; measure and gate them.

    `rows` and `labels` are the validation split, encoded by `encoder`; `torch_logits` (N, C) are its logits in the same
    order. `calibration_rows` are training rows, encoded too, that static int8 is calibrated on. `model_folder` holds the
    model as transformers loads it; `folder`/model when None. `progress` is given one line per step.
    GateError if fp32 ONNX misses a gate, ExportError if a form cannot be built or gives logits that are not finite.
    """
    started = time.perf_counter()
    if plan.bitsandbytes:
        check_bitsandbytes("text")
    _check_rows(rows, labels, torch_logits)
    yardstick = Yardstick(kind.prepared(encoder), rows, labels, judge, kind)
    native = int8_target(cpu().flags)
    target = native if plan.int8_cpu == "native" else plan.int8_cpu
    model_folder = model_folder or folder / MODEL_FOLDER
    with evaluating(model), tempfile.TemporaryDirectory(prefix=".int8-", dir=folder) as scratch:
        predict = torch_predict(model)
        progress("ONNX: exporting")
        export_onnx(model, kind.example(encoder, rows), folder / ONNX_PATH, axes=kind.axes(encoder))
        fp32 = open_form("fp32 ONNX", folder / ONNX_PATH, yardstick)
        progress("ONNX: comparing with torch")
        shapes = check_shapes(predict, fp32.predict, kind.shape_examples(encoder, rows)) / judge.unit
        parity, gates = _compare_fp32(predict, fp32, yardstick, torch_logits, plan, shapes)
        if broken := [str(gate["sentence"]) for gate in gates if not gate["passed"]]:
            raise GateError(f"export refused: {' and '.join(broken)}")
        limits = Limits(plan.int8_max_drop, plan.int8_min_agreement)
        bench = Workbench(fp32, Path(scratch), yardstick, limits, progress)
        if plan.int8_mode == "auto":
            kind.try_int8(bench, target, encoder, calibration_rows)
        progress("measuring speed")
        speeds = _speeds(yardstick, {"torch": predict, "onnx": fp32.predict}, bench.trials)
        choice = decide(
            bench.trials, fp32, speeds, limits, judge, target=target, native=native, asked=plan.int8_mode != "off"
        )
        if choice.form:
            keep_form(choice.form.path, folder / INT8_PATH)
    bnb: dict[str, object] | None = None
    if plan.bitsandbytes:
        progress("bitsandbytes: measuring (slow on CPUs)")
        skip = head_modules(model)
        bnb = measure_bitsandbytes(model_folder, yardstick, torch_logits, skip=skip, cpu_name=cpu().model)
    report: dict[str, object] = {
        "tolerance": plan.tolerance,
        "max_drop": plan.max_drop,
        "int8_max_drop": plan.int8_max_drop,
        "int8_min_agreement": plan.int8_min_agreement,
        "cpu_target": target,
        "measured_on": cpu().model,
        "torch": {"size_bytes": weight_bytes(model, model_folder), **speeds["torch"]},
        "onnx": {
            "path": ONNX_PATH,
            "size_bytes": fp32.size_bytes,
            **speeds["onnx"],
            **parity,
            "opset": OPSET,
            "batch_invariant": fp32.invariant,
        },
        "int8": int8_section(choice, fp32, bench.trials, yardstick, speeds, INT8_PATH, len(calibration_rows)),
        "candidates": [
            candidate_row(trial, yardstick, speeds, choice, len(calibration_rows)) for trial in bench.trials
        ],
        "bitsandbytes": bnb,
        "gates": gates + list(choice.gates),
        "served": "int8" if choice.served else "onnx",
        "served_reason": choice.reason,
        "seconds": round(time.perf_counter() - started, 2),
    }
    return ExportResult(report, {"onnx": fp32.logits, **({"int8": choice.form.logits} if choice.form else {})})


def _check_rows(rows: Sequence[Any], labels: NDArray[Any], torch_logits: Logits) -> None:
    if len(rows) != len(torch_logits) or len(rows) != len(labels) or not len(rows):
        raise ExportError(
            f"export got {len(rows)} rows, {len(labels)} labels and {len(torch_logits)} logits; they must match"
        )
    if not np.isfinite(torch_logits).all():
        raise ExportError(
            "the trained model gives logits that are not finite; lower transfer.learning_rate and train again"
        )


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


def _compare_fp32(
    predict: Predict, fp32: Form, yardstick: Yardstick, torch_logits: Logits, plan: ExportPlan, worst_shape: float
) -> tuple[dict[str, float], list[dict[str, object]]]:
    """Parity figures of fp32 ONNX against torch, and its gates; `worst_shape` was found over other shapes."""
    judge, compared = yardstick.judge, yardstick.compare(torch_logits, fp32.logits)
    if compared["max_abs_diff"] > plan.tolerance * judge.unit:
        # Training may evaluate in lower precision or on another device. Parity is a claim about fp32 on the CPU.
        compared = yardstick.compare(predict_rows(predict, yardstick.encoder, yardstick.rows, BATCH), fp32.logits)
    worst = max(compared["max_abs_diff"] / judge.unit, worst_shape)
    drop = yardstick.drop(torch_logits, fp32.logits)
    unit = "" if judge.unit == 1 else " of the labels' standard deviation"
    gates = [
        gate(
            "onnx_parity",
            plan.tolerance,
            worst,
            worst <= plan.tolerance,
            f"fp32 ONNX differs from torch by at most {worst:.2g}{unit} (limit {plan.tolerance:g}) on validation rows and other shapes",
        ),
        gate(
            "onnx_metric_drop",
            plan.max_drop,
            drop,
            drop <= plan.max_drop,
            f"{judge.metric} {judge.change(drop)} from torch to fp32 ONNX (it may get worse by {plan.max_drop:g})",
        ),
    ]
    return {**compared, "shapes_max_abs_diff": worst_shape * judge.unit}, gates


def head_modules(model: nn.Module) -> list[str]:
    """Top-level modules that are not the encoder: pooler-free heads, classifiers."""
    encoder = getattr(model, "base_model_prefix", "")
    return [name for name, _ in model.named_children() if name != encoder]


def weight_bytes(model: nn.Module, model_folder: Path) -> int:
    """Size of the safetensors files, or of the parameters where there are none yet."""
    files = sum(path.stat().st_size for path in model_folder.glob("*.safetensors"))
    return files or sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def keep_form(source: Path, target: Path) -> None:
    """Copy the chosen file, and weights beside it if any; hard links are avoided, for ONNX Runtime follows them."""
    for path in source.parent.glob(f"{source.name}*"):
        shutil.copyfile(path, target.parent / path.name)

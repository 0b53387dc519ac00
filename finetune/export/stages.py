"""torch → ONNX fp32 → ONNX int8: build each form, measure all on the same validation rows, decide which one is served.

Nothing is exported on faith: an fp32 file that differs from torch, or scores worse, is refused with a GateError; an int8
file that scores worse or is not faster is not served, and the report says why.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from finetune.bundle import INT8 as INT8_PATH
from finetune.bundle import ONNX as ONNX_PATH
from finetune.errors import ExportError, GateError
from finetune.export.bnb import measure_bitsandbytes, require_bitsandbytes
from finetune.export.choose import BATCH, Form, Limits, Yardstick, open_form, try_candidates
from finetune.export.onnx import OPSET, evaluating, export_onnx
from finetune.export.parity import Batch, Logits, Predict, check_shapes, compare_logits, predict_rows, shape_examples
from finetune.export.verdict import candidate_row, change, decide, gate, int8_section
from finetune.hardware import cpu, int8_target
from finetune.preprocess import Encoded, TextEncoder


@dataclass(frozen=True)
class ExportResult:
    """`report` is report.json's "export" section; `logits` holds the validation logits of "onnx" and, if kept, "int8"."""

    report: dict[str, object]
    logits: dict[str, Logits]


def export_all(
    model: nn.Module,
    folder: Path,
    rows: Sequence[Encoded],
    labels: NDArray[np.int64],
    encoder: TextEncoder,
    *,
    torch_logits: Logits,
    metric: str,
    score: Callable[[Logits, NDArray[np.int64]], float],
    higher_is_better: bool,
    tolerance: float,
    max_drop: float,
    int8_mode: str,
    int8_cpu: str,
    int8_max_drop: float,
    int8_min_agreement: float,
    bitsandbytes: bool,
    model_folder: Path,
    progress: Callable[[str], None],
) -> ExportResult:
    """Write `folder`/onnx/model.onnx and, where one passes, model.int8.onnx; measure and gate them.

    `rows` and `labels` are the validation split, `torch_logits` (N, C) its logits in the same order. `score` is the
    metric named `metric`. `model_folder` holds the model as transformers loads it. `progress` is given one line per step.
    GateError if fp32 ONNX misses a gate, ExportError if a form cannot be built or gives logits that are not finite.
    """
    started = time.perf_counter()
    if bitsandbytes:
        require_bitsandbytes()
    if len(rows) != len(torch_logits) or len(rows) != len(labels) or not len(rows):
        raise ExportError(
            f"export got {len(rows)} rows, {len(labels)} labels and {len(torch_logits)} logits; they must match"
        )
    if not np.isfinite(torch_logits).all():
        raise ExportError(
            "the trained model gives logits that are not finite; lower transfer.learning_rate and train again"
        )
    yardstick = Yardstick(encoder, rows, labels, score, higher_is_better)
    native = int8_target(cpu().flags)
    target = native if int8_cpu == "native" else int8_cpu
    with evaluating(model), tempfile.TemporaryDirectory(prefix=".int8-", dir=folder) as scratch:
        predict = torch_predict(model)
        progress("ONNX: exporting")
        fp32 = _export_fp32(model, folder / ONNX_PATH, yardstick)
        progress("ONNX: comparing with torch")
        parity, gates = _compare_fp32(predict, fp32, yardstick, torch_logits, metric, tolerance, max_drop)
        if broken := [str(gate["sentence"]) for gate in gates if not gate["passed"]]:
            raise GateError(f"export refused: {' and '.join(broken)}")
        limits = Limits(int8_max_drop, int8_min_agreement)
        trials = try_candidates(fp32, target, Path(scratch), yardstick, limits, progress) if int8_mode == "auto" else []
        progress("measuring speed")
        tried = {trial.name: trial.form.predict for trial in trials if trial.form}
        speeds = yardstick.speed({"torch": predict, "onnx": fp32.predict, **tried})
        choice = decide(trials, fp32, speeds, limits, target=target, native=native, asked=int8_mode != "off")
        if choice.form:
            _keep(choice.form.path, folder / INT8_PATH)
    bnb: dict[str, object] | None = None
    if bitsandbytes:
        progress("bitsandbytes: measuring (slow on CPUs)")
        skip = _head_modules(model)
        bnb = measure_bitsandbytes(model_folder, yardstick, torch_logits, skip=skip, cpu_name=cpu().model)
    report: dict[str, object] = {
        "tolerance": tolerance,
        "max_drop": max_drop,
        "int8_max_drop": int8_max_drop,
        "int8_min_agreement": int8_min_agreement,
        "cpu_target": target,
        "measured_on": cpu().model,
        "torch": {"size_bytes": _weight_bytes(model, model_folder), **speeds["torch"]},
        "onnx": {
            "path": ONNX_PATH,
            "size_bytes": fp32.size_bytes,
            **speeds["onnx"],
            **parity,
            "opset": OPSET,
            "batch_invariant": fp32.invariant,
        },
        "int8": int8_section(choice, fp32, speeds, INT8_PATH),
        "candidates": [candidate_row(trial, yardstick, speeds, choice) for trial in trials],
        "bitsandbytes": bnb,
        "gates": gates + list(choice.gates),
        "served": "int8" if choice.served else "onnx",
        "served_reason": choice.reason,
        "seconds": round(time.perf_counter() - started, 2),
    }
    return ExportResult(report, {"onnx": fp32.logits, **({"int8": choice.form.logits} if choice.form else {})})


def torch_predict(model: nn.Module) -> Predict:
    """The torch model as a `Predict`; the caller has put it into evaluation mode on the CPU."""

    def predict(batch: Batch) -> Logits:
        with torch.inference_mode():
            logits: Logits = (
                model(**{name: torch.from_numpy(array) for name, array in batch.items()}).logits.float().numpy()
            )
        return logits

    return predict


def _export_fp32(model: nn.Module, path: Path, yardstick: Yardstick) -> Form:
    """Export on two rows of the validation split, cut or repeated to a length that is no special case."""
    longest = max(yardstick.rows, key=lambda row: len(row.ids))
    repeats = -(-8 // len(longest.ids))
    length = min(8, yardstick.encoder.settings.max_length)
    example = Encoded((longest.ids * repeats)[:length], (longest.type_ids * repeats)[:length], length)
    export_onnx(model, yardstick.encoder.collate([example] * 3), path, max_length=yardstick.encoder.settings.max_length)
    return open_form("fp32 ONNX", path, yardstick)


def _compare_fp32(
    predict: Predict,
    fp32: Form,
    yardstick: Yardstick,
    torch_logits: Logits,
    metric: str,
    tolerance: float,
    max_drop: float,
) -> tuple[dict[str, float], list[dict[str, object]]]:
    """Parity figures of fp32 ONNX against torch, and its gates."""
    encoder = yardstick.encoder
    compared = compare_logits(torch_logits, fp32.logits)
    if compared["max_abs_diff"] > tolerance:
        # Training may evaluate in lower precision or on another device. Parity is a claim about fp32 on the CPU.
        compared = compare_logits(predict_rows(predict, encoder, yardstick.rows, BATCH), fp32.logits)
    minimal = max(1, len(encoder.encode([""])[0].ids))  # a tokenizer may add no special tokens
    shapes = shape_examples(encoder, yardstick.rows, encoder.settings.max_length, minimal=minimal)
    worst_shape = check_shapes(predict, fp32.predict, shapes)
    worst = max(compared["max_abs_diff"], worst_shape)
    drop = yardstick.drop(torch_logits, fp32.logits)
    gates = [
        gate(
            "onnx_parity",
            tolerance,
            worst,
            worst <= tolerance,
            f"fp32 ONNX differs from torch by at most {worst:.2g} (limit {tolerance:g}) on validation rows and other shapes",
        ),
        gate(
            "onnx_metric_drop",
            max_drop,
            drop,
            drop <= max_drop,
            f"{metric} {change(drop)} from torch to fp32 ONNX (it may fall by {max_drop:g})",
        ),
    ]
    return {**compared, "shapes_max_abs_diff": worst_shape}, gates


def _head_modules(model: nn.Module) -> list[str]:
    """Top-level modules that are not the encoder: pooler-free heads, classifiers."""
    encoder = getattr(model, "base_model_prefix", "")
    return [name for name, _ in model.named_children() if name != encoder]


def _weight_bytes(model: nn.Module, model_folder: Path) -> int:
    """Size of the safetensors files, or of the parameters where there are none yet."""
    files = sum(path.stat().st_size for path in model_folder.glob("*.safetensors"))
    return files or sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def _keep(source: Path, target: Path) -> None:
    """Copy the chosen file, and weights beside it if any; hard links are avoided, for ONNX Runtime follows them."""
    for path in source.parent.glob(f"{source.name}*"):
        shutil.copyfile(path, target.parent / path.name)

"""What becomes of measured forms, whatever the network: fp32 ONNX is refused or not, int8 is kept or not, the report says so."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from finetune.bundle import INT8 as INT8_PATH
from finetune.bundle import ONNX as ONNX_PATH
from finetune.errors import GateError
from finetune.export.choose import Form, Trial
from finetune.export.onnx import OPSET
from finetune.export.request import ExportRequest, native_target
from finetune.export.verdict import ROWS, Choice, Row, Speeds, Terms, decide, gate
from finetune.hardware import cpu


def parity_gate(given: ExportRequest, worst: float, unit: str, places: str) -> Row:
    """Whether fp32 ONNX gives torch's logits; `worst` is the largest difference in units, `places` where it was looked for."""
    limit = given.plan.tolerance
    sentence = f"fp32 ONNX differs from torch by at most {worst:.2g}{unit} (limit {limit:g}) on {places}"
    return gate("onnx_parity", limit, worst, worst <= limit, sentence)


def drop_gate(given: ExportRequest, drop: float) -> Row:
    """Whether fp32 ONNX scores as torch does; `drop` as the judge tells it."""
    limit, judge = given.plan.max_drop, given.judge
    sentence = f"{judge.metric} {judge.change(drop)} from torch to fp32 ONNX (it may get worse by {limit:g})"
    return gate("onnx_metric_drop", limit, drop, drop <= limit, sentence)


def refuse(gates: Sequence[Row]) -> None:
    """GateError with the sentences of the gates that fp32 ONNX missed, if any."""
    if broken := [str(gate["sentence"]) for gate in gates if not gate["passed"]]:
        raise GateError(f"export refused: {' and '.join(broken)}")


def keep_best(given: ExportRequest, trials: Sequence[Trial], fp32: Form, speeds: Speeds, terms: Terms = ROWS) -> Choice:
    """Decide between the int8 trials, and copy the file that is kept into the bundle."""
    plan = given.plan
    choice = decide(
        trials, fp32, speeds, plan.limits, given.judge,
        target=plan.target, native=native_target(), asked=plan.int8_mode != "off", terms=terms,
    )  # fmt: skip
    if choice.form:
        _copy_form(choice.form.path, given.folder / INT8_PATH)
    return choice


def _copy_form(source: Path, target: Path) -> None:
    """The file, and weights beside it if any; hard links are avoided, for ONNX Runtime follows them."""
    for path in source.parent.glob(f"{source.name}*"):
        shutil.copyfile(path, target.parent / path.name)


def export_section(
    given: ExportRequest, forms: Mapping[str, object], gates: Sequence[Row], choice: Choice, started: float
) -> Row:
    """report["export"]: what was asked for, `forms` as they were measured, and what is served.

    `gates` are those of fp32 ONNX; `started` is time.perf_counter's when exporting began.
    """
    plan = given.plan
    return {
        "tolerance": plan.tolerance,
        "max_drop": plan.max_drop,
        "int8_max_drop": plan.int8_max_drop,
        "int8_min_agreement": plan.int8_min_agreement,
        "cpu_target": plan.target,
        "measured_on": cpu().model,
        **forms,
        "gates": [*gates, *choice.gates],
        "served": "int8" if choice.served else "onnx",
        "served_reason": choice.reason,
        "seconds": round(time.perf_counter() - started, 2),
    }


def torch_section(given: ExportRequest, speeds: Speeds) -> Row:
    """report["export"]["torch"]."""
    return {"size_bytes": _weight_bytes(given.module, given.torch_folder), **speeds["torch"]}


def onnx_section(fp32: Form, speeds: Speeds, parity: Mapping[str, float]) -> Row:
    """report["export"]["onnx"]; `parity` are its differences from torch."""
    return {
        "path": ONNX_PATH,
        "size_bytes": fp32.size_bytes,
        **speeds["onnx"],
        **parity,
        "opset": OPSET,
        "batch_invariant": fp32.invariant,
    }


def _weight_bytes(model: nn.Module, folder: Path) -> int:
    """Size of the safetensors files, or of the parameters where there are none yet."""
    files = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return files or sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())

"""The card's section on the exported forms: torch, ONNX and int8 side by side, and the gates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from finetune.release import _language
from finetune.release._facts import Report, metric_name, served_name
from finetune.release._kinds import kind_of, modality_of, target_of
from finetune.release._markdown import bullets, code, counted, interval, megabytes, number, share, table, text


def exported_forms(report: Report) -> str:
    """Torch, ONNX fp32 and int8 side by side on the same validation rows, and the gates."""
    export, validation, primary = report["export"], report["metrics"]["validation"], report["metrics"]["primary"]
    forms: list[tuple[str, str, Mapping[str, Any] | None]] = [
        ("PyTorch fp32 (`model/`)", "torch", export["torch"]),
        ("ONNX fp32 (`onnx/model.onnx`)", "onnx", export["onnx"]),
        ("ONNX int8 (`onnx/model.int8.onnx`)", "int8", export["int8"]),
        ("PyTorch with bitsandbytes int8 weights", "bitsandbytes", export.get("bitsandbytes")),
    ]
    columns = _SPEEDS.get(kind_of(report)[0], _LATENCIES)
    rows = [
        [
            *_form_row(name, form, _form_score(validation, key, form, primary)),
            *[write(form) for write in columns.values()],
        ]
        for name, key, form in forms
        if form is not None
    ]
    header = [
        "Form",
        f"{metric_name(report, primary)}, validation",
        target_of(report).agreement,
        "Largest logit difference",
        "Size",
        *columns,
    ]
    parts = [
        f"All forms were measured on the same validation {modality_of(report).row}s and on this processor: {text(export['measured_on'])}. Speeds differ elsewhere.",
        table([text(cell) for cell in header], rows),
        f"Served: **{served_name(report)}**. {text(export['served_reason'])}",
    ]
    if export["int8"]:
        parts.append(f"int8 was built for {code(export['cpu_target'])} processors with {text(export['int8']['name'])}.")
        ranges = export["int8"].get("calibration") or {}
        if ranges:
            parts.append(
                f"The ranges of its activations were found by {text(ranges['method'])} on {counted(ranges['rows'], 'training image')}; "
                "no validation or test image was used for that."
            )
    parts += _EXPORT_NOTES.get(kind_of(report)[0], _nothing)(report)
    if export.get("bitsandbytes"):
        note = (
            export["bitsandbytes"].get("note")
            or "Its weights take less memory; on processors without its kernels it is slower."
        )
        parts.append(f"bitsandbytes: {text(note)}")
    parts.append(bullets(f"{'✔' if gate['passed'] else '✘'} {text(gate['sentence'])}" for gate in export["gates"]))
    return "\n\n".join(part for part in parts if part)


def _form_score(validation: Mapping[str, Any], key: str, form: Mapping[str, Any], primary: str) -> Any:
    if key == "bitsandbytes":
        return form.get("metric")
    return (validation.get(key) or {}).get(primary)


def _form_row(name: str, form: Mapping[str, Any], score: Any) -> list[str]:
    return [
        name,
        interval(score),
        share(form.get("agreement")) if "agreement" in form else "–",
        f"{form['max_abs_diff']:.1e}" if isinstance(form.get("max_abs_diff"), int | float) else "–",
        megabytes(form["size_bytes"]),
    ]


_LATENCIES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "Latency, batch 1": lambda form: f"{number(form['latency_ms']['1'], 1)} ms",
    "Batch 32": lambda form: f"{number(form['latency_ms']['32'], 1)} ms",
    "Rows/s, batch 32": lambda form: number(form["throughput"]["32"], 1),
}
_SPEEDS = {"language": _language.SPEEDS}
"""How fast a form is, where it is not by the time for inputs."""


def _nothing(report: Report) -> list[str]:
    return []


_EXPORT_NOTES: dict[str, Callable[[Report], list[str]]] = {"language": _language.export_notes}

"""Which of a bundle's ONNX files answers, and what is known about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from finetune.bundle import INT8, ONNX, Bundle
from finetune.errors import BundleError

Which = Literal["served", "onnx", "int8"]


def onnx_file(bundle: Bundle, which: str) -> str:
    """Relative path of the file that the bundle serves, or of its fp32 or int8 form; BundleError if there is none."""
    files = {"served": bundle.served, "onnx": ONNX, "int8": INT8}
    if which not in files:
        raise BundleError(f"which is '{which}'; it must be one of {', '.join(files)}")
    if files[which] not in bundle.files:
        raise BundleError(f"{bundle.path}: the bundle has no {files[which]}; use which='served'")
    return files[which]


def batch_invariant(bundle: Bundle, file: str) -> bool:
    """Whether an input's numbers do not depend on those beside it; unless measured so, they are taken to depend."""
    if file == bundle.served:
        return bundle.manifest["batch_invariant"] is True
    export = bundle.report.get("export")
    measured = export.get("onnx" if file == ONNX else "int8") if isinstance(export, Mapping) else None
    return isinstance(measured, Mapping) and measured.get("batch_invariant") is True

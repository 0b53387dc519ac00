"""ONNX Runtime sessions on the CPU, opened one way everywhere. Needs onnxruntime and numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from finetune.errors import BundleError
from finetune.hardware import cpu

LOGITS = "logits"


def open_session(path: Path, threads: int | None = None) -> ort.InferenceSession:
    """A CPU session on an ONNX file; `threads` per run, the usable cores when None. BundleError if it cannot be opened.

    Idle threads do not spin (a spinning server burns its cores while it waits), and no memory plan is kept per input
    shape (every batch of texts has another). A session may be used by many threads at once.
    """
    if threads is not None and threads < 1:
        raise BundleError(f"threads is {threads}; it must be at least 1")
    if not path.is_file():
        raise BundleError(f"{path}: no such ONNX file; take a whole copy of the bundle")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or cpu().cores
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; warnings about graph optimisations mean nothing to a user
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no other base
        reason = str(error).splitlines()[0]
        raise BundleError(f"{path}: ONNX Runtime {ort.__version__} cannot open it ({reason})") from error


def run_logits(session: ort.InferenceSession, batch: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Logits float32 (B, C) of one batch: int64 (B, T) arrays of texts, or float32 (B, 3, H, W) pixels.

    Only the inputs that the session declares are fed. The output named "logits" is taken, or the first. BundleError if the
    batch lacks a declared input, or if one has a type or shape that the file does not take.
    """
    declared = [item.name for item in session.get_inputs()]
    if missing := [name for name in declared if name not in batch]:
        raise BundleError(
            f"the ONNX file wants the input '{missing[0]}', which the preprocessing does not make ({', '.join(batch)})"
        )
    outputs = [item.name for item in session.get_outputs()]
    wanted = LOGITS if LOGITS in outputs else outputs[0]
    try:
        (logits,) = session.run([wanted], {name: batch[name] for name in declared})
    except InvalidArgument as error:
        given = ", ".join(f"{name} {batch[name].dtype} {batch[name].shape}" for name in declared)
        reason = str(error).splitlines()[0][:200]
        raise BundleError(f"the ONNX file does not take what the preprocessing made ({given}): {reason}") from error
    return np.asarray(logits, dtype=np.float32)

"""What exporting a network takes and gives, for networks of every modality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from finetune.bundle import MODEL_FOLDER
from finetune.errors import ExportError
from finetune.export.choose import Limits
from finetune.export.judge import Judge
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

    @property
    def limits(self) -> Limits:
        """The gates of int8."""
        return Limits(self.int8_max_drop, self.int8_min_agreement)

    @property
    def target(self) -> str:
        """The processor kind that int8 is for."""
        return native_target() if self.int8_cpu == "native" else self.int8_cpu


def native_target() -> str:
    """This machine's processor kind."""
    return int8_target(cpu().flags)


@dataclass(frozen=True)
class ExportRequest:
    """A trained network, and what its forms are measured with.

    folder: the bundle in the making; rows: the validation rows, encoded by `encoder`, and labels: theirs (language models'
    rows hold their own targets); answers: torch's to them in the same order, logits (N, C), or tallies (N, 3) of a language
    model; calibration: encoded training rows for static int8; progress: is given one line per step.
    """

    module: nn.Module
    folder: Path
    rows: Sequence[Any]
    labels: NDArray[Any]
    encoder: Encoder
    plan: ExportPlan
    judge: Judge
    answers: NDArray[Any]
    progress: Callable[[str], None]
    calibration: Sequence[Any] = ()
    weights: NDArray[Any] | None = None
    """How much each validation row counts in the metric; None where all count alike."""
    model_folder: Path | None = None
    """Where the network is as transformers loads it; `folder`/model when None."""

    @property
    def torch_folder(self) -> Path:
        """The folder of the torch form."""
        return self.model_folder or self.folder / MODEL_FOLDER

    def require_finite(self) -> None:
        """ExportError if torch's answers are not numbers: no form could be compared with them."""
        if not np.isfinite(self.answers).all():
            raise ExportError(
                "the trained model gives logits that are not finite; lower transfer.learning_rate and train again"
            )


@dataclass(frozen=True)
class ExportResult:
    """`report` is report.json's "export" section; `logits` holds the validation logits of "onnx" and, if kept, "int8".

    Of language models they are tallies float64 (N, 3).
    """

    report: dict[str, object]
    logits: dict[str, NDArray[Any]]

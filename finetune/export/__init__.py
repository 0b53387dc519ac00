"""Torch to ONNX to int8, each stage measured on the same validation rows and gated.

Names are loaded when first used: `check_bitsandbytes` is asked before training and needs no torch, the rest does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.export.causal import export_causal
    from finetune.export.judge import Judge, judge_by
    from finetune.export.kinds import EXPORTS, ExportKind
    from finetune.export.request import ExportPlan, ExportRequest, ExportResult
    from finetune.export.stages import export_all
    from finetune.export.support import check_bitsandbytes

__all__ = [
    "EXPORTS",
    "ExportKind",
    "ExportPlan",
    "ExportRequest",
    "ExportResult",
    "Judge",
    "check_bitsandbytes",
    "export_all",
    "export_causal",
    "judge_by",
]

_HOMES = {
    "EXPORTS": "finetune.export.kinds",
    "ExportKind": "finetune.export.kinds",
    "ExportPlan": "finetune.export.request",
    "ExportRequest": "finetune.export.request",
    "ExportResult": "finetune.export.request",
    "Judge": "finetune.export.judge",
    "check_bitsandbytes": "finetune.export.support",
    "export_all": "finetune.export.stages",
    "export_causal": "finetune.export.causal",
    "judge_by": "finetune.export.judge",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'finetune.export' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)

"""The on-disk contract of `exports/<run>/`: whole or absent, every byte accounted for in `manifest.json`.

No torch. Writing goes `start` → files → `seal` → `publish`; reading goes `Bundle.open`, which re-hashes before anything
is used.
"""

from __future__ import annotations

from finetune.bundle.contents import (
    CARD,
    FORMAT,
    INT8,
    LABELS,
    LICENSE,
    MANIFEST,
    MODEL_FOLDER,
    NOTICE,
    ONNX,
    PREPROCESS,
    RECIPE,
    REPORT,
    REPORT_HTML,
    TOKENIZER,
)
from finetune.bundle.manifest import seal
from finetune.bundle.opened import Bundle
from finetune.bundle.preprocessing import write_preprocessing
from finetune.bundle.publishing import publish, start
from finetune.disk import free_bytes, require_space, write_json

__all__ = [
    "CARD", "FORMAT", "INT8", "LABELS", "LICENSE", "MANIFEST", "MODEL_FOLDER", "NOTICE", "ONNX", "PREPROCESS",
    "RECIPE", "REPORT", "REPORT_HTML", "TOKENIZER",
    "Bundle", "free_bytes", "publish", "require_space", "seal", "start", "write_json", "write_preprocessing",
]  # fmt: skip

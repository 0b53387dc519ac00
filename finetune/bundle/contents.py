"""Names of the files in a bundle, relative to its folder, and the version of their format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from finetune.errors import BundleError

FORMAT = 1
MANIFEST, PREPROCESS, TOKENIZER, LABELS = "manifest.json", "preprocess.json", "tokenizer.json", "labels.json"
MODEL_FOLDER, ONNX, INT8 = "model", "onnx/model.onnx", "onnx/model.int8.onnx"
RECIPE, CARD, LICENSE, NOTICE = "recipe.yaml", "README.md", "LICENSE", "NOTICE"
REPORT, REPORT_HTML = "report.json", "report.html"


def check_format(path: Path, document: object) -> Mapping[str, object]:
    """The document, if it is of a format that this version reads."""
    version = document.get("format") if isinstance(document, Mapping) else None
    if not isinstance(document, Mapping) or type(version) is not int or version < 1:
        raise BundleError(f"{path}: not a finetune file, it states no format; take a whole copy of the bundle")
    if version > FORMAT:
        raise BundleError(
            f"{path}: format {version} is newer than this version of finetune reads ({FORMAT}); update finetune"
        )
    return document

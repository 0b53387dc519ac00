"""What an export asks of the installation and of the task, known before training. Imports no torch."""

from __future__ import annotations

import importlib.util

from finetune.errors import ExportError

BITSANDBYTES_MODALITIES = ("text", "language")
"""LLM.int8 replaces linear layers; nearly all of a convnet's weights are in convolutions, which it leaves alone."""


def check_bitsandbytes(modality: str) -> None:
    """ExportError if `export.bitsandbytes` makes no sense for the modality or its package is missing. Imports nothing."""
    if modality not in BITSANDBYTES_MODALITIES:
        raise ExportError(
            f"export.bitsandbytes is on, but bitsandbytes has int8 for linear layers only, and an {modality} network has "
            "few of them; set export.bitsandbytes to false"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ExportError(
            "export.bitsandbytes is on, but bitsandbytes is not installed; "
            "pip install 'finetune-recipes[bitsandbytes]' or set export.bitsandbytes to false"
        )

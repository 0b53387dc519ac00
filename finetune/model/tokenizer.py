"""A backbone's tokenizer, saved as the one file that training and serving both read."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from finetune.errors import SourceError
from finetune.preprocess import TextPreprocess


def load_tokenizer(folder: Path) -> Any:
    """The backbone's fast tokenizer; one without a padding token pads with its end token.

    SourceError when there is none, or none that the tokenizers library can run.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False, use_fast=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise SourceError(
            f"backbone '{folder}': its tokenizer cannot be loaded ({str(error).splitlines()[0][:200]})"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise SourceError(f"backbone '{folder}' has no fast tokenizer (tokenizer.json), which serving needs")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise SourceError(f"backbone '{folder}': its tokenizer has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def text_preprocess(tokenizer: Any, model_class: type, max_length: int) -> TextPreprocess:
    """The preprocessing that this tokenizer and model ask for."""
    accepted = inspect.signature(model_class.forward).parameters  # type: ignore[attr-defined]
    inputs = [
        n
        for n in ("input_ids", "attention_mask", "token_type_ids")
        if n in tokenizer.model_input_names and n in accepted
    ]
    if "attention_mask" not in inputs:
        inputs.insert(1, "attention_mask")
    return TextPreprocess(
        max_length=max_length,
        inputs=tuple(inputs),
        pad_token_id=int(tokenizer.pad_token_id),
        pad_type_id=int(tokenizer.pad_token_type_id),
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
    )

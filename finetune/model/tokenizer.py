"""A backbone's tokenizer, saved as the one file that training and serving both read."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from finetune.errors import SourceError
from finetune.model.quiet import quiet_transformers
from finetune.model_files import first_line
from finetune.preprocess import MODEL_INPUTS, TextPreprocess


def load_tokenizer(folder: Path) -> Any:
    """The backbone's fast tokenizer; one without a padding token pads with its end token.

    SourceError when there is none, or none that the tokenizers library can run.
    """
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_fast=True
            )
    except Exception as error:  # tokenizers raises bare Exception for a malformed file
        raise SourceError(f"backbone '{folder}': its tokenizer cannot be loaded ({first_line(error)})") from error
    # Without its files transformers makes a tokenizer all the same, which turns every word into the unknown one.
    files = sorted({"tokenizer.json", *getattr(tokenizer, "vocab_files_names", {}).values()})
    if not any((folder / name).is_file() for name in files):
        raise SourceError(
            f"backbone '{folder}' has no tokenizer; one of these files should be there: {', '.join(files)}"
        )
    if not getattr(tokenizer, "is_fast", False):
        raise SourceError(f"backbone '{folder}' has no fast tokenizer (tokenizer.json), which serving needs")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise SourceError(f"backbone '{folder}': its tokenizer has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise SourceError(
            f"backbone '{folder}': its tokenizer's padding token '{tokenizer.pad_token}' is not in its vocabulary"
        )
    return tokenizer


def text_preprocess(tokenizer: Any, model_class: type, max_length: int) -> TextPreprocess:
    """The preprocessing that this tokenizer and model ask for."""
    accepted = inspect.signature(model_class.forward).parameters  # type: ignore[attr-defined]
    # A model that takes a mask needs it even if its tokenizer does not offer one: batches are padded.
    offered = {"attention_mask", *tokenizer.model_input_names}
    return TextPreprocess(
        max_length=max_length,
        inputs=tuple(name for name in MODEL_INPUTS if name in offered and name in accepted),
        pad_token_id=int(tokenizer.pad_token_id),
        pad_type_id=int(tokenizer.pad_token_type_id),
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
    )

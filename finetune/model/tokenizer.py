"""A backbone's tokenizer, saved as the one file that training and serving both read."""

from __future__ import annotations

import inspect
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from finetune.errors import SourceError
from finetune.model.limits import layer_shape
from finetune.model.quiet import quiet_transformers
from finetune.model_files import first_line, read_json_object
from finetune.preprocess import MODEL_INPUTS, LanguagePreprocess, TextPreprocess

# What a language model brings beside its weights and configuration, and what a bundle must hold unchanged.
GENERATION = "generation_config.json"
LANGUAGE_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template*",
    "vocab.*", "merges.txt", "*.model", GENERATION,
)  # fmt: skip


def load_tokenizer(folder: Path, *, language: bool = False) -> Any:
    """The backbone's fast tokenizer; one without a padding token pads with its end token.

    language: for a language model, whose special tokens stay as they are: `language_preprocess` says what it pads with.
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
    if tokenizer.pad_token is None and not language:
        if tokenizer.eos_token is None:
            raise SourceError(f"backbone '{folder}': its tokenizer has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is not None and tokenizer.pad_token_id is None:
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


def language_preprocess(tokenizer: Any, folder: Path, max_length: int) -> LanguagePreprocess:
    """How texts become blocks of `max_length` tokens for the language model in `folder`.

    A tokenizer without a padding token pads with its end token, which the mask hides. Whatever ends an answer is taken from
    generation_config.json too, because chat models end with another token than documents do.
    SourceError when texts do not end with any token, begin with something other than the bos token, or have tokens that the
    network does not know.
    """
    ends = [tokenizer.eos_token_id, *_generation_ends(folder)]
    ends = [end for end in dict.fromkeys(ends) if end is not None]
    if not ends:
        raise SourceError(f"backbone '{folder}': its tokenizer has no end token, so a text would have no end")
    _refuse_unknown_tokens(tokenizer, folder)
    template = tokenizer.chat_template
    return LanguagePreprocess(
        max_length=max_length,
        pad_token_id=int(ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_ids=tuple(int(end) for end in ends),
        add_bos=_adds_bos(tokenizer, folder),
        # Some models bring several templates by name: for tools, say.
        chat_template=template.get("default") if isinstance(template, dict) else template,
        special={name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)},
    )


def save_language_files(tokenizer: Any, backbone: Path, into: Path) -> None:
    """Put the tokenizer, chat template and generation settings of `backbone` into the model folder `into`, byte for byte.

    What transformers writes for a tokenizer without a tokenizer.json is kept where the backbone has no such file.
    """
    with quiet_transformers():
        tokenizer.save_pretrained(into)
    for path in sorted(backbone.iterdir()):
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in LANGUAGE_FILES):
            shutil.copyfile(path, into / path.name)


def _generation_ends(folder: Path) -> list[int]:
    file = folder / GENERATION
    ends = read_json_object(file).get("eos_token_id") if file.is_file() else None
    return [end for end in (ends if isinstance(ends, list) else [ends]) if type(end) is int]


def _adds_bos(tokenizer: Any, folder: Path) -> bool:
    """Whether the tokenizer begins a text with its bos token; SourceError when it begins one with anything else."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    at = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    if whole[:at] not in ([], [tokenizer.bos_token_id]):
        begun = " ".join(tokenizer.convert_ids_to_tokens(whole[:at]))
        raise SourceError(
            f"backbone '{folder}': its tokenizer begins texts with {begun}, not with a bos token alone; choose another backbone"
        )
    return bool(at)


def _refuse_unknown_tokens(tokenizer: Any, folder: Path) -> None:
    rows = layer_shape(read_json_object(folder / "config.json")).vocabulary
    token, highest = max(tokenizer.get_vocab().items(), key=lambda item: int(item[1]))
    if highest >= rows:
        raise SourceError(
            f"backbone '{folder}': its tokenizer's '{token}' is token {highest}, but the model knows only {rows} tokens"
        )

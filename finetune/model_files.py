"""What a model folder must hold, and what it must not ask for, before anything of it is loaded.

File names and JSON only: nothing here imports torch or transformers, opens a pickle, or runs code of a model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from finetune.errors import SourceError

# The files of a model that are wanted: configuration, weights, tokenizer, card and licence.
LEGAL_FILES = ("README.md", "LICENSE*", "NOTICE*")
MODEL_FILES = ("*.json", "model*.safetensors", "*.txt", "*.model", *LEGAL_FILES)
PICKLE_FILES = ("pytorch_model.bin", "pytorch_model-*.bin")
# A file of bare weights: tensors by name, without a word of the network that they belong to.
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")


def check_model_files(name: str, files: Iterable[str], *, allow_pickle: bool) -> None:
    """Refuse a model folder that cannot be loaded safely, by its file names alone."""
    names = set(files)
    if "config.json" not in names:
        raise SourceError(f"backbone '{name}' has no config.json, so it is not a transformers model folder")
    code = sorted(n for n in names if n.endswith(".py") and PurePosixPath(n).name != "__init__.py")
    if code:
        raise SourceError(
            f"backbone '{name}' brings code of its own ({code[0]}); finetune never runs it, choose another backbone"
        )
    if has_safetensors(names):
        return
    if not has_pickle(names):
        raise SourceError(f"backbone '{name}' holds no weights (model.safetensors)")
    if not allow_pickle:
        raise _only_a_pickle(name, "a revision with safetensors")


def check_gguf(name: str, *, architecture: str | None, rename: str | Mapping[str, str] | None, language: bool) -> None:
    """Refuse a GGUF file where no language model is asked for, or where the recipe says what the file itself says."""
    if not language:
        raise SourceError(
            f"backbone '{name}' is a GGUF file, which holds a language model; only the task causal_lm takes one, give a model folder"
        )
    if architecture is not None or rename is not None:
        key = "architecture" if architecture is not None else "rename"
        raise SourceError(
            f"backbone.{key}: the GGUF file '{name}' says itself which network it holds and by which names; remove the key"
        )


def check_weight_file(
    name: str, file: str, *, architecture: str | None, rename: str | Mapping[str, str] | None, allow_pickle: bool
) -> None:
    """Refuse a file of bare weights that cannot be loaded as the recipe says; `file` is its name, `name` the backbone's."""
    if architecture is None:
        raise SourceError(
            f"backbone '{name}' is a file of bare weights; say as backbone.architecture which timm network they belong to, or give a model folder"
        )
    pickled = not file.endswith(".safetensors")
    if pickled and not allow_pickle:
        raise _only_a_pickle(name, "a file with safetensors")
    if rename == "in_order" and not pickled:
        raise SourceError(
            f"backbone '{name}': safetensors sorts its tensors, so in_order cannot pair them; give a mapping as backbone.rename"
        )
    for pattern in rename if isinstance(rename, Mapping) else ():
        try:
            re.compile(pattern)
        except re.error as error:
            raise SourceError(f"backbone.rename: '{pattern}' is not a regular expression ({error})") from error


def _only_a_pickle(name: str, instead: str) -> SourceError:
    return SourceError(
        f"backbone '{name}' has its weights only as a pickle, which can run code when it is opened; "
        f"choose {instead}, or set backbone.allow_pickle to convert it in a process of its own"
    )


def is_timm_config(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is in timm's format."""
    return "pretrained_cfg" in config


def has_safetensors(files: Iterable[str]) -> bool:
    """Whether weights that transformers loads without a pickle are among these file names."""
    return any(_WEIGHTS.fullmatch(name) for name in files)


def has_pickle(files: Iterable[str]) -> bool:
    """Whether pickled weights are among these file names."""
    return any(fnmatch(name, pattern) for name in files for pattern in PICKLE_FILES)


def refuse_unsafe_config(name: str, folder: Path) -> None:
    """Refuse what config.json says cannot be loaded: code of its own, or weights that cannot be trained."""
    for file in ("config.json", "tokenizer_config.json"):
        settings = read_json_object(folder / file) if (folder / file).is_file() else {}
        if settings.get("auto_map"):
            raise wants_code(name, file)
        if quantization := settings.get("quantization_config"):
            method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
            raise SourceError(
                f"backbone '{name}' holds quantised weights ({method or 'method unknown'}), which cannot be fine-tuned; choose the original"
            )


def wants_code(name: str, file: str) -> SourceError:
    """The refusal of a model whose `file` asks for code of its own."""
    return SourceError(
        f"backbone '{name}' wants to run code of its own (auto_map in {file}); finetune never runs it, choose another backbone"
    )


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file that came with a model; SourceError if it cannot be read or is something else."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(
            f"{path}: not readable as JSON ({first_line(error)}); take a whole copy of the model"
        ) from error
    if not isinstance(content, dict):
        raise SourceError(f"{path}: holds no JSON object; take a whole copy of the model")
    return content


def first_line(error: BaseException) -> str:
    """What an error says, on one line of at most 300 characters; its class when it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # "Validation error for field 'x':" is no answer without the line below.
    return " ".join(line.strip() for line in lines[: 1 + lines[0].endswith(":")])[:300]

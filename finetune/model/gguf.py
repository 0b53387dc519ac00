"""A GGUF file as a model folder: the format of llama.cpp holds configuration, weights and tokenizer in one file.

transformers reads it and dequantises the weights to fp32; what they lost when they were quantised stays lost. Three things are
done here because transformers leaves them undone: texts are split as the file's tokenizer says, the generation settings are
those of the file, and the result is an ordinary folder that needs no GGUF reader any more.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stderr
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from finetune.disk import read_json, sha256, write_json
from finetune.errors import SourceError
from finetune.gguf_metadata import GgufHeader, is_gguf, read_gguf
from finetune.model.quiet import quiet_transformers
from finetune.model_files import LEGAL_FILES, first_line

__all__ = ["MARKER", "checkpoint_from_gguf", "is_gguf"]

# Written last, so that a folder which has it is whole.
MARKER = "converted_from.json"
_FILE = "model.gguf"

# How a byte-level vocabulary splits texts, by llama.cpp's name (llama-vocab.cpp, `tokenizer_pre`). What is in neither list must
# be known to transformers itself: another split gives other tokens than the model was taught on, without any error.
_AS_GPT2 = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "roberta-bpe"}
_DIGITS_ALONE = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}

# Names of generation settings in GGUF metadata and in transformers.
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


def checkpoint_from_gguf(file: Path, into: Path) -> Path:
    """Turn a GGUF file into a folder that transformers loads as fp32; returns `into`.

    The folder has config.json, model.safetensors, the tokenizer with its chat template, generation_config.json as the file's
    metadata say, and the card and licence that lie beside the file. A folder that was made of the same bytes before is kept. SourceError when the file is damaged, or
    holds a network or a tokenizer that transformers does not read.
    """
    import transformers

    made_from = {"gguf_sha256": sha256(file), "transformers": transformers.__version__}
    if (into / MARKER).is_file() and read_json(into / MARKER) == made_from:
        return into
    header = read_gguf(file)
    into.mkdir(parents=True, exist_ok=True)
    (into / MARKER).unlink(missing_ok=True)
    with quiet_transformers(), tempfile.TemporaryDirectory(dir=into) as alone:
        # A link in a folder of its own, because transformers would also read what lies beside the file.
        (Path(alone) / _FILE).symlink_to(file.resolve())
        try:
            tokenizer = _tokenizer(Path(alone), header, str(file))
            module = _module(Path(alone), header, str(file))
        except SourceError:
            raise
        except Exception as error:  # transformers and gguf pass on whatever a reader or an architecture raises
            raise SourceError(f"backbone '{file}' cannot be read as GGUF ({first_line(error)})") from error
        rows = module.get_input_embeddings().num_embeddings
        if len(tokenizer) > rows:
            raise SourceError(
                f"backbone '{file}': its tokenizer has {len(tokenizer)} tokens, but its network knows only {rows}; choose another file"
            )
        _save(module, into)
        tokenizer.save_pretrained(into)
    _forget_how_it_was_loaded(into / "tokenizer_config.json")
    generation = {**_generation(header), "transformers_version": transformers.__version__}
    write_json(into / "generation_config.json", generation)
    for path in file.parent.iterdir():
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in LEGAL_FILES):
            shutil.copyfile(path, into / path.name)
    write_json(into / MARKER, made_from)
    return into


def _tokenizer(folder: Path, header: GgufHeader, name: str) -> Any:
    """The file's tokenizer, splitting texts as the file says."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=_FILE, local_files_only=True, trust_remote_code=False)
    kind, split = (header.metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if kind != "gpt2" or split is None or split in _AS_GPT2:
        return tokenizer
    if split in _DIGITS_ALONE:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    elif '"Split"' not in json.dumps(json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"]):
        raise SourceError(
            f"backbone '{name}': its tokenizer splits texts in a way that this version does not know ('{split}'); take the original model folder"
        )
    return tokenizer


def _module(folder: Path, header: GgufHeader, name: str) -> Any:
    """The network with fp32 weights, and the ids of special tokens as the file has them."""
    from transformers import AutoModelForCausalLM

    # The reader draws a progress bar that no setting of transformers removes.
    with redirect_stderr(io.StringIO()):
        module, info = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=_FILE, dtype=torch.float32, local_files_only=True, trust_remote_code=False,
            ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    if lacking := sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}):
        raise SourceError(
            f"backbone '{name}' lacks the weights of {len(lacking)} parameters, such as '{lacking[0]}', or has them in another shape; take a whole copy"
        )
    generation = _generation(header)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(module.config, key, generation.get(key))
    return module


def _save(module: Any, folder: Path) -> None:
    """Weights and configuration; a tied weight once, under its first name.

    Not save_pretrained, which refuses whatever was read from quantised weights, though nothing here is quantised any more.
    """
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            tensors[name] = tensor.detach().to(torch.float32).contiguous()
        seen.add(id(tensor))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = module.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures = [type(module).__name__]
    config.save_pretrained(folder)


def _generation(header: GgufHeader) -> dict[str, Any]:
    """generation_config.json in transformers' words: special tokens, every token that ends an answer, and how to sample."""
    metadata = header.metadata

    def token(name: str) -> int | None:
        found = metadata.get(f"tokenizer.ggml.{name}_token_id")
        return found if isinstance(found, int) else None

    ends = [end for name in ("eos", "eot", "eom") if (end := token(name)) is not None]
    ends = list(dict.fromkeys(ends))
    settings: dict[str, Any] = {
        "bos_token_id": token("bos"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": token("padding"),
    }
    sampling = {ours: metadata.get(f"general.sampling.{theirs}") for theirs, ours in _SAMPLING.items()}
    settings |= {key: value for key, value in sampling.items() if value is not None}
    if any(value is not None for value in sampling.values()):
        settings["do_sample"] = True
    return {key: value for key, value in settings.items() if value is not None}


def _forget_how_it_was_loaded(file: Path) -> None:
    """Remove what transformers notes in a tokenizer's settings about this machine's call."""
    settings: Mapping[str, Any] = json.loads(file.read_text("utf-8"))
    write_json(file, {key: value for key, value in settings.items() if key not in ("is_local", "local_files_only")})

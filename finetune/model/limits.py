"""What a backbone's configuration says about its size and limits, read from JSON or GGUF without importing transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from finetune.errors import SourceError
from finetune.gguf_metadata import read_gguf
from finetune.model_files import read_json_object

# RoBERTa and its kin count positions from the padding index + 1, so that many rows of their table are never reached.
_COUNT_FROM_PADDING = {
    "camembert",
    "data2vec-text",
    "esm",
    "ibert",
    "longformer",
    "luke",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}


class LayerShape(NamedTuple):
    """The dimensions of a language model that its memory depends on; hidden is the width of what goes between its layers."""

    layers: int
    hidden: int
    heads: int
    vocabulary: int


# Under which names configurations keep these dimensions; the first is the one that transformers' objects answer to.
_NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model", "dim", "emb_dim"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "vocabulary": ("vocab_size",),
}
_MEANINGS = {
    "layers": "how many layers its network has",
    "hidden": "how wide its layers are",
    "heads": "how many attention heads a layer has",
    "vocabulary": "how many tokens it knows",
}
_GGUF_NAMES = {
    "layers": "block_count",
    "hidden": "embedding_length",
    "heads": "attention.head_count",
    "vocabulary": "vocab_size",
}


def layer_shape(config: object) -> LayerShape:
    """The dimensions that a configuration of transformers, or the object in a config.json, says; no weights are loaded.

    SourceError names the dimension that is not there.
    """
    found = {key: _first_count(config, names) for key, names in _NAMES.items()}
    return _shape(found, f"the configuration of '{_field(config, 'model_type')}'")


def backbone_shape(path: Path) -> LayerShape:
    """`layer_shape` of a model folder or of a GGUF file; SourceError as there, or if it is not readable."""
    if path.is_dir():
        return layer_shape(read_json_object(path / "config.json"))
    header = read_gguf(path)
    found = {key: header.dimension(name) for key, name in _GGUF_NAMES.items()}
    if found["vocabulary"] is None:
        found["vocabulary"] = _count(header.metadata.get("tokenizer.ggml.tokens"))
    return _shape(found, str(path))


def _shape(found: Mapping[str, int | None], place: str) -> LayerShape:
    counts = {key: value for key, value in found.items() if value is not None}
    if missing := [key for key in found if key not in counts]:
        raise SourceError(f"{place} does not say {_MEANINGS[missing[0]]}; choose another backbone")
    return LayerShape(**counts)


def _first_count(config: object, names: tuple[str, ...]) -> int | None:
    # A model of several modalities keeps its language model's dimensions in a part of its own.
    for holder in (_field(config, "text_config"), config):
        counts = (_count(_field(holder, name)) for name in names)
        if (first := next((count for count in counts if count is not None), None)) is not None:
            return first
    return None


def _field(config: object, name: str) -> object:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def longest_input(path: Path) -> int | None:
    """Most tokens that the positions of a model folder or GGUF file allow; None when nothing says.

    SourceError if its JSON, or the file, is broken.
    """
    if path.is_file():
        return read_gguf(path).dimension("context_length")
    folder = path
    config = read_json_object(folder / "config.json")
    file = folder / "tokenizer_config.json"
    declared = read_json_object(file).get("model_max_length") if file.is_file() else None
    limits = []
    for key in ("max_position_embeddings", "n_positions"):
        if (positions := _count(config.get(key))) is not None:
            unused = 0
            if config.get("model_type") in _COUNT_FROM_PADDING:
                padding = config.get("pad_token_id")
                # Where config.json leaves the padding index out, it is what these architectures agree on.
                unused = (padding if isinstance(padding, int) else 1) + 1
            limits.append(positions - unused)
    # Tokenizers without a limit declare 10^30.
    if (length := _count(declared)) is not None and length < 10**6:
        limits.append(length)
    return min(limits, default=None)


def _count(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None

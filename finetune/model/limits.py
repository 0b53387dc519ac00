"""What a backbone's configuration says about its limits, read from JSON without importing transformers."""

from __future__ import annotations

from pathlib import Path

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


def longest_input(folder: Path) -> int | None:
    """Most tokens that the backbone's positions allow; None when nothing says. SourceError if its JSON is broken."""
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

"""What a backbone's configuration says about its limits, read from JSON without importing transformers."""

from __future__ import annotations

import json
from pathlib import Path


def longest_input(folder: Path) -> int | None:
    """Most tokens that the backbone's positions allow; None when nothing says. Reads JSON only."""
    limits = []
    config = json.loads((folder / "config.json").read_text("utf-8"))
    for key in ("max_position_embeddings", "n_positions"):
        if isinstance(config.get(key), int) and config[key] > 0:
            # RoBERTa and its kin start counting positions after the padding index.
            offset = (
                config.get("pad_token_id", 0) + 1
                if config.get("model_type") in {"roberta", "xlm-roberta", "camembert"}
                else 0
            )
            limits.append(config[key] - offset)
    file = folder / "tokenizer_config.json"
    if file.is_file():
        declared = json.loads(file.read_text("utf-8")).get("model_max_length")
        if isinstance(declared, int) and declared < 10**6:
            limits.append(declared)
    return min(limits) if limits else None

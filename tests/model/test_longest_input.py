"""How long an input may be: checked against what the networks really accept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tiny_models import POSITIONS, SHAPE, load, save_body

from finetune.errors import SourceError
from finetune.model.limits import longest_input


def write(folder: Path, config: Any, tokenizer: Any = None) -> Path:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if tokenizer is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


def text_of(length: int) -> dict[str, torch.Tensor]:
    ids = torch.full((1, length), 6)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize(
    ("name", "unused"),
    [
        ("bert", 0), ("distilbert", 0), ("albert", 0), ("electra", 0), ("gpt2", 0),
        ("roberta", 2), ("xlm-roberta", 2), ("camembert", 2), ("mpnet", 2),
    ],
)  # fmt: skip
def test_a_text_of_the_longest_length_fits_and_one_token_more_does_not(tmp_path: Path, name: str, unused: int) -> None:
    folder = save_body(tmp_path, name)
    limit = longest_input(folder)
    assert limit == POSITIONS - unused
    module = load(folder, name=name).module
    with torch.no_grad():
        assert module(**text_of(limit)).logits.isfinite().all()
        with pytest.raises((IndexError, RuntimeError)):
            module(**text_of(limit + 1))


@pytest.mark.parametrize("config", ["Data2VecText", "IBert", "Longformer", "RobertaPreLayerNorm", "XLMRobertaXL", "Xmod", "Esm", "Luke"])  # fmt: skip
def test_every_architecture_that_counts_from_its_padding_is_known(tmp_path: Path, config: str) -> None:
    extra: dict[str, Any] = {"Esm": {"mask_token_id": 5}, "Luke": {"entity_vocab_size": 4, "entity_emb_size": 8}}.get(config, {})  # fmt: skip
    made = getattr(hf, f"{config}Config")(**SHAPE, pad_token_id=1, **extra)
    assert longest_input(write(tmp_path, made.to_dict())) == POSITIONS - 2


@pytest.mark.parametrize(
    ("config", "tokenizer", "limit"),
    [
        ({"max_position_embeddings": 512}, None, 512),
        ({"max_position_embeddings": 512}, {"model_max_length": 256}, 256),
        ({"max_position_embeddings": 128}, {"model_max_length": 256}, 128),
        ({"n_positions": 1024}, {"model_max_length": 10**30 + 19884624838656}, 1024),
        ({"max_position_embeddings": 512}, {"model_max_length": 1e30}, 512),
        ({"max_position_embeddings": 512}, {"model_max_length": None}, 512),
        ({"max_position_embeddings": 514, "model_type": "roberta", "pad_token_id": 1}, {"model_max_length": 512}, 512),
        ({"max_position_embeddings": 514, "model_type": "roberta", "pad_token_id": None}, None, 512),
        ({"max_position_embeddings": 514, "model_type": "roberta"}, None, 512),
        ({"max_position_embeddings": 512, "model_type": "bert", "pad_token_id": 3}, None, 512),
        ({"max_position_embeddings": -1}, None, None),
        ({"max_position_embeddings": True}, None, None),
        ({}, {}, None),
        ({}, None, None),
    ],
)
def test_the_smaller_of_positions_and_declared_length(
    tmp_path: Path, config: dict[str, Any], tokenizer: dict[str, Any] | None, limit: int | None
) -> None:
    assert longest_input(write(tmp_path, config, tokenizer)) == limit


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["{nope", "[]", "", "[" * 100_000])
def test_broken_json_is_one_sentence_with_its_place(tmp_path: Path, file: str, content: str) -> None:
    write(tmp_path, {})
    (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(SourceError, match=file) as caught:
        longest_input(tmp_path)
    assert "\n" not in str(caught.value)

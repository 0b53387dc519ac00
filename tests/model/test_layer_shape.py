"""The dimensions that memory depends on, from a configuration alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers as hf
from tiny_networks import BLOCKS, LANGUAGE_MODELS, SHAPE, VOCABULARY, WIDTH

from finetune.errors import SourceError
from finetune.model.limits import backbone_shape, layer_shape

EXPECTED = (BLOCKS, WIDTH, 4, VOCABULARY)


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_every_family_tells_by_object_and_by_file(name: str, tmp_path: Path) -> None:
    config = LANGUAGE_MODELS[name].config()
    config.save_pretrained(tmp_path)
    assert layer_shape(config) == EXPECTED
    assert layer_shape(json.loads((tmp_path / "config.json").read_text("utf-8"))) == EXPECTED
    assert backbone_shape(tmp_path) == EXPECTED


def test_names_of_older_families() -> None:
    assert layer_shape(hf.CTRLConfig(vocab_size=7, n_embd=6, n_layer=2, n_head=3)) == (2, 6, 3, 7)
    assert layer_shape({"d_model": 6, "num_layers": 2, "num_heads": 3, "vocab_size": 7}) == (2, 6, 3, 7)


def test_a_model_of_several_modalities_has_its_language_model_inside() -> None:
    assert layer_shape({"text_config": SHAPE, "vision_config": {"hidden_size": 9}, "model_type": "x"}) == EXPECTED
    assert layer_shape(SimpleNamespace(text_config=SimpleNamespace(**SHAPE), hidden_size=9)) == EXPECTED


@pytest.mark.parametrize(
    ("drop", "words"),
    [
        ("num_hidden_layers", "how many layers its network has"),
        ("hidden_size", "how wide its layers are"),
        ("num_attention_heads", "how many attention heads a layer has"),
        ("vocab_size", "how many tokens it knows"),
    ],
)
def test_what_is_not_told_is_named(drop: str, words: str) -> None:
    config = {"model_type": "odd", **{key: value for key, value in SHAPE.items() if key != drop}}
    with pytest.raises(SourceError) as caught:
        layer_shape(config)
    assert str(caught.value) == f"the configuration of 'odd' does not say {words}; choose another backbone"

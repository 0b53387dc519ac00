"""Pickled checkpoints become safetensors in another process, or are refused without having run."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from tiny_models import SHAPE, load, save

from finetune.errors import SourceError
from finetune.model.backbone import convert_pickle


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """A masked language model, as a safetensors checkpoint."""
    return save(tmp_path / "pretrained", hf.AutoModelForMaskedLM, hf.BertConfig(**SHAPE))


def as_pickle(folder: Path, into: Path) -> Path:
    """The same checkpoint as pickles in two parts, in which tied weights are one storage under two names."""
    into.mkdir()
    (into / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors["bert.embeddings.word_embeddings.tied"] = tensors["bert.embeddings.word_embeddings.weight"]
    # A slice of a larger storage, and one that is not contiguous: safetensors takes neither as it is.
    tensors["bert.pooler.dense.bias"] = torch.arange(64.0)[:16]
    tensors["bert.pooler.dense.weight"] = torch.arange(256.0).reshape(16, 16).T
    names = sorted(tensors)
    parts = {"pytorch_model-00001-of-00002.bin": names[:20], "pytorch_model-00002-of-00002.bin": names[20:]}
    for name, held in parts.items():
        torch.save({n: tensors[n] for n in held}, into / name)
    index = {"weight_map": {n: name for name, held in parts.items() for n in held}}
    (into / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    return into


def test_a_real_pickle_becomes_a_checkpoint_with_the_same_weights(tmp_path: Path, pretrained: Path) -> None:
    folder = as_pickle(pretrained, tmp_path / "pickled")
    (folder / "LICENSE").write_text("the licence", encoding="utf-8")
    (folder / "training_args.bin").write_bytes(b"nobody reads this")
    into = tmp_path / "converted"
    assert convert_pickle(folder, into) == into
    assert sorted(p.name for p in into.iterdir()) == ["LICENSE", "config.json", "model.safetensors"]
    converted, original = load_file(into / "model.safetensors"), load_file(pretrained / "model.safetensors")
    assert torch.equal(*(converted[f"bert.embeddings.word_embeddings.{name}"] for name in ("tied", "weight")))
    assert torch.equal(converted["bert.pooler.dense.weight"], torch.arange(256.0).reshape(16, 16).T)
    model = load(into)
    assert model.fresh == {"classifier.weight", "classifier.bias"}
    state = dict(model.module.named_parameters())
    for name in ("bert.embeddings.word_embeddings.weight", "bert.encoder.layer.2.output.dense.weight"):
        assert torch.equal(state[name], original[name])


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


def replace_pickle(archive: Path, data: bytes) -> None:
    """Put another pickle inside a file that is otherwise what torch.save wrote."""
    with zipfile.ZipFile(archive) as old:
        members = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as new:
        for name, content in members.items():
            new.writestr(name, data if name.endswith("/data.pkl") else content)


@pytest.mark.parametrize("inside_archive", [True, False])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path: Path, inside_archive: bool) -> None:
    folder, mark = tmp_path / "bad", tmp_path / "it ran"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    weights = folder / "pytorch_model.bin"
    payload = pickle.dumps({"bert.embeddings.word_embeddings.weight": Bomb(mark)}, protocol=2)
    if inside_archive:
        torch.save({"a": torch.zeros(2)}, weights)
        replace_pickle(weights, payload)
    else:
        weights.write_bytes(payload)
    with pytest.raises(SourceError, match=r"does not load safely \(.*system.*\); choose a checkpoint") as caught:
        convert_pickle(folder, tmp_path / "out")
    assert not mark.exists()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    message = str(caught.value)
    assert "\n" not in message
    assert "weights_only=False" not in message
    assert "add_safe_globals" not in message


def test_a_pickle_of_something_else_than_named_tensors_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    torch.save([torch.zeros(2)], folder / "pytorch_model.bin")
    with pytest.raises(SourceError, match=r"pytorch_model\.bin holds a list, not named tensors"):
        convert_pickle(folder, tmp_path / "out")

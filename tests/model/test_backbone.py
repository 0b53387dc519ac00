"""Loading a backbone: the new head, what is refused, and what it leaves untouched."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tiny_models import LABELS, SHAPE, VOCABULARY, a_batch, load, save, save_body
from transformers.utils import logging as hf_logging

from finetune.errors import RecipeError, SourceError
from finetune.model.backbone import TransferModel
from finetune.model.quiet import quiet_transformers

CLASSIFIER = hf.AutoModelForSequenceClassification


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_body(tmp_path_factory.mktemp("bert"), "bert")


def values(model: TransferModel, names: Any = None) -> dict[str, torch.Tensor]:
    state = dict(model.module.named_parameters())
    return {name: state[name].detach() for name in (names or state)}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), encoding="utf-8")


# The head


def test_the_body_is_the_checkpoint_and_the_head_is_new(body: Path) -> None:
    model = load(body)
    saved = load_file(body / "model.safetensors")
    for name, value in values(model).items():
        if name.startswith("bert."):
            assert torch.equal(value, saved[name.removeprefix("bert.")]), name
    assert model.fresh == {"classifier.weight", "classifier.bias"}
    assert model.architecture == "BertForSequenceClassification"
    assert model.module.classifier.weight.shape == (len(LABELS), SHAPE["hidden_size"])
    assert float(model.module.classifier.weight.detach().std()) == pytest.approx(0.02, rel=0.5)
    assert not model.module.classifier.bias.any()


def test_the_head_depends_on_the_seed_alone(body: Path) -> None:
    torch.manual_seed(1)
    first = values(load(body, seed=5))
    torch.manual_seed(2)
    again = values(load(body, seed=5))
    other = values(load(body, seed=6))
    assert same(first, again)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])
    assert same(*({n: v for n, v in loaded.items() if n.startswith("bert.")} for loaded in (first, other)))


@pytest.mark.parametrize("labels", [3, 7])
def test_a_checkpoint_with_a_classifier_gets_the_same_new_head(body: Path, tmp_path: Path, labels: int) -> None:
    folder = save(tmp_path, CLASSIFIER, hf.BertConfig(**SHAPE, num_labels=labels))
    trained = load_file(folder / "model.safetensors")["classifier.weight"]
    model = load(folder)
    assert model.fresh == {"classifier.weight", "classifier.bias"}
    assert model.module.config.num_labels == 3
    assert labels != 3 or not torch.equal(model.module.classifier.weight, trained)
    head = [name for name in model.fresh if name.startswith("classifier.")]
    assert same(values(model, head), values(load(body), head))


def test_a_missing_pooler_is_new_and_does_not_change_the_classifier(body: Path, tmp_path: Path) -> None:
    folder = save_body(tmp_path, "bert")
    edit_weights(folder, lambda t: [t.pop(n) for n in list(t) if n.startswith("pooler.")])
    model = load(folder)
    pooler = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert model.fresh == {"classifier.weight", "classifier.bias"} | pooler
    assert torch.equal(model.module.classifier.weight, load(body).module.classifier.weight)
    assert same(values(model, pooler), values(load(folder), pooler))
    assert not torch.equal(model.module.bert.pooler.dense.weight, load(folder, seed=1).module.bert.pooler.dense.weight)


def test_a_head_of_several_layers_is_renewed_whole(tmp_path: Path) -> None:
    folder = save(tmp_path, CLASSIFIER, hf.RobertaConfig(**SHAPE, num_labels=2))
    trained = load_file(folder / "model.safetensors")
    model = load(folder, name="roberta")
    assert model.fresh == {f"classifier.{part}.{kind}" for part in ("dense", "out_proj") for kind in ("weight", "bias")}
    assert not torch.equal(model.module.classifier.dense.weight, trained["classifier.dense.weight"])


def test_parts_that_a_classifier_shares_with_pretraining_are_kept(tmp_path: Path) -> None:
    config = hf.ModernBertConfig(
        **SHAPE, pad_token_id=0, bos_token_id=1, cls_token_id=1, eos_token_id=2, sep_token_id=2
    )
    folder = save(tmp_path, hf.AutoModelForMaskedLM, config)
    pretrained = load_file(folder / "model.safetensors")["head.dense.weight"]
    model = load(folder, name="modernbert")
    assert model.fresh == {"classifier.weight", "classifier.bias"}
    assert torch.equal(model.module.head.dense.weight, pretrained)


def test_labels_are_in_the_configuration_and_survive_saving(body: Path, tmp_path: Path) -> None:
    model = load(body)
    batch = a_batch("bert")
    with quiet_transformers(), torch.no_grad():
        model.module.save_pretrained(tmp_path)
        again = CLASSIFIER.from_pretrained(tmp_path)
        assert torch.equal(again(**batch).logits, model.module(**batch).logits)
    assert again.config.id2label == dict(enumerate(LABELS))
    assert again.config.label2id == {label: i for i, label in enumerate(LABELS)}


# Dropout


@pytest.mark.parametrize(
    ("name", "place", "field"),
    [
        ("bert", "dropout", "classifier_dropout"),
        ("distilbert", "dropout", "seq_classif_dropout"),
        ("roberta", "classifier.dropout", "classifier_dropout"),
        ("albert", "dropout", "classifier_dropout_prob"),
        ("deberta-v2", "dropout", None),
        ("modernbert", "drop", "classifier_dropout"),
        ("mpnet", "classifier.dropout", None),
        ("xlnet", "sequence_summary.last_dropout", "summary_last_dropout"),
    ],
)
def test_head_dropout_is_the_one_before_the_classifier_and_no_other(
    tmp_path: Path, name: str, place: str, field: str | None
) -> None:
    folder = save_body(tmp_path, name)

    def rates(dropout: float | None) -> dict[str, float]:
        module = load(folder, name=name, dropout=dropout).module
        assert field is None or dropout is None or getattr(module.config, field) == dropout
        return {n: m.p for n, m in module.named_modules() if isinstance(m, torch.nn.Dropout)}

    usual, changed = rates(None), rates(0.375)
    assert changed == {**usual, place: 0.375}
    assert usual[place] != 0.375
    # XLNet builds no dropout for a rate of zero.
    assert rates(0.0).get(place, 0.0) == 0.0


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_head_without_dropout_refuses_to_set_it(tmp_path: Path, name: str) -> None:
    folder = save_body(tmp_path, name)
    with pytest.raises(RecipeError, match=r"^head\.dropout: .* has no dropout before its classifier; remove the key$"):
        load(folder, name=name, dropout=0.5)
    load(folder, name=name, dropout=0.0)


# Padding


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_model_that_reads_the_last_token_does_not_read_padding(tmp_path: Path, name: str, side: str) -> None:
    folder = save_body(tmp_path, name)
    edit_config(folder, pad_token_id=None if name == "gpt2" else 0)
    padding = 59 if name == "gpt2" else 2
    module: Any = load(folder, name=name, pad_token_id=padding).module
    alone = torch.tensor([[7, 8, 9]])
    empty = torch.full((1, 2), padding)
    ids = torch.cat([alone, empty] if side == "right" else [empty, alone], dim=1)
    mask = (ids != padding).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        padded = module(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        torch.testing.assert_close(padded, module(input_ids=alone, attention_mask=torch.ones_like(alone)).logits)


def test_a_padding_token_outside_the_embeddings_is_refused(body: Path) -> None:
    with pytest.raises(SourceError, match=f"pads with token {VOCABULARY}, but the model knows only {VOCABULARY}"):
        load(body, pad_token_id=VOCABULARY)


# What is refused


def test_a_checkpoint_that_lacks_body_weights_is_refused_by_name(tmp_path: Path) -> None:
    folder = save_body(tmp_path, "bert")
    edit_weights(folder, lambda t: t.pop("encoder.layer.1.output.dense.weight"))
    with pytest.raises(SourceError, match=r"1 parameters below the head, such as 'bert\.encoder\.layer\.1\.output"):
        load(folder)


def test_a_checkpoint_with_body_weights_of_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    folder = save_body(tmp_path, "bert")
    edit_config(folder, vocab_size=VOCABULARY + 1)
    with pytest.raises(SourceError, match=r"bert\.embeddings\.word_embeddings\.weight.* in another shape"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "no_such_thing"}, "config.json is not one that transformers knows"),
        ({"hidden_size": "sixteen"}, "config.json is not one .*'hidden_size': .*expected int"),
        ({"hidden_act": "no_such_thing"}, "cannot be loaded as AutoModelForSequenceClassification"),
        ({"num_attention_heads": 3}, "not a multiple of the number of attention heads"),
        ({"model_type": "vit"}, "cannot be loaded as AutoModelForSequenceClassification"),
        ({"attn_implementation": "flash_attention_2"}, "FlashAttention2"),
    ],
)
def test_a_configuration_that_cannot_be_loaded_is_one_sentence(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = save_body(tmp_path, "bert")
    edit_config(folder, **change)
    with pytest.raises(SourceError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [lambda data: data[:1000], lambda data: b"garbage", lambda data: b""])
def test_damaged_weights_are_one_sentence(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = save_body(tmp_path, "bert") / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SourceError, match="cannot be loaded as AutoModelForSequenceClassification") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_head_whose_beginning_nobody_defines_is_refused(body: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf.BertForSequenceClassification, "_init_weights", lambda self, module: None)
    with pytest.raises(SourceError, match=r"does not say how 'classifier\.bias' begins"):
        load(body)


# What is left as it was


def test_no_generator_moves(body: Path) -> None:
    torch.manual_seed(11)
    np.random.seed(11)
    random.seed(11)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    load(body)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]


class Listener(logging.Handler):
    """Collects what transformers' own handlers would print."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def test_loading_prints_and_logs_nothing(
    body: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    listener = Listener()
    hf_logging.add_handler(listener)
    try:
        capfd.readouterr()
        CLASSIFIER.from_pretrained(body)
        loud = capfd.readouterr()
        assert listener.records, "the control must be loud, or this test proves nothing"
        assert "Loading weights" in loud.err
        listener.records.clear()
        load(body)
        quiet = capfd.readouterr()
    finally:
        hf_logging.remove_handler(listener)
    assert (quiet.out, quiet.err) == ("", "")
    assert listener.records == []
    assert not recwarn.list

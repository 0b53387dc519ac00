"""A backbone's tokenizer becomes the one preprocessing of training and serving, token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from finetune.errors import SourceError
from finetune.model.quiet import quiet_transformers
from finetune.model.tokenizer import load_tokenizer, text_preprocess
from finetune.preprocess import TextEncoder

LETTERS = list("abcdefghijklmnopqrstuvwxyz0123456789.,é")
WORDS = ["ship", "tide", "butter", "pear", "old", "near"]
TEXTS = [
    "ship",
    "",
    "old butter near the tide, and a pear " * 3,
    "  é\n\t ship",
    "<sep> [SEP] <|end|>",
    "🛳 ship",
    "tide",
]


def word_piece(special: list[str]) -> tuple[Tokenizer, dict[str, int]]:
    ids = {word: i for i, word in enumerate([*special, *WORDS, *LETTERS, *("##" + c for c in LETTERS)])}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=special[1]))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer, ids


def bert_like(**sides: str) -> hf.PreTrainedTokenizerFast:
    tokenizer, ids = word_piece(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"], **sides,
    )  # fmt: skip


def xlnet_like() -> hf.XLNetTokenizer:
    """Sentence pieces, padding on the left, special tokens at the end."""
    pieces = ["<unk>", "<pad>", "<cls>", "<sep>", "▁", *("▁" + word for word in WORDS), *LETTERS]
    return hf.XLNetTokenizer(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)])


def with_types_at_the_end() -> hf.PreTrainedTokenizerFast:
    """Padding on the left, and a last token of a type of its own."""
    tokenizer, ids = word_piece(["<pad>", "<unk>", "<cls>", "<sep>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A:0 <sep>:0 <cls>:2", special_tokens=[("<sep>", ids["<sep>"]), ("<cls>", ids["<cls>"])]
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", cls_token="<cls>", sep_token="<sep>",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"], padding_side="left",
    )  # fmt: skip


def gpt2_like(**special: str) -> hf.PreTrainedTokenizerFast:
    """Byte-level, without special tokens around a text and without a padding token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE({c: i for i, c in enumerate([*letters, "<|end|>", "sh", "ip"])}, [("s", "h"), ("i", "p")])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], **special
    )


KINDS: dict[str, tuple[Any, type]] = {
    "bert": (bert_like, hf.BertForSequenceClassification),
    "left padding": (lambda: bert_like(padding_side="left"), hf.BertForSequenceClassification),
    "left truncation": (lambda: bert_like(truncation_side="left"), hf.BertForSequenceClassification),
    "left both": (lambda: bert_like(padding_side="left", truncation_side="left"), hf.BertForSequenceClassification),
    "xlnet": (xlnet_like, hf.XLNetForSequenceClassification),
    "types at the end": (with_types_at_the_end, hf.XLNetForSequenceClassification),
    "no padding token": (lambda: gpt2_like(eos_token="<|end|>"), hf.GPT2ForSequenceClassification),
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The backbone's tokenizer as AutoTokenizer loads it, and our encoder made from it as the pipeline does."""
    make, model_class = KINDS[request.param]
    folder, saved = tmp_path_factory.mktemp("backbone"), tmp_path_factory.mktemp("saved")
    with quiet_transformers():
        make().save_pretrained(folder)
        theirs = hf.AutoTokenizer.from_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    encoder_settings = text_preprocess(tokenizer, model_class, 12)
    tokenizer.save_pretrained(saved)
    if theirs.pad_token is None:
        theirs.pad_token = theirs.eos_token
    return request.param, theirs, TextEncoder(saved / "tokenizer.json", encoder_settings)


def assert_same_tokens(theirs: Any, encoder: TextEncoder, texts: list[str]) -> None:
    expected = theirs(texts, truncation=True, max_length=12, padding=True, return_tensors="np")
    found = encoder(texts)
    assert set(found) == set(expected) & set(encoder.settings.inputs)
    if not expected["input_ids"].size:  # a batch without a single token cannot be run: ours is one token wide
        return
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_tokens_equal_autotokenizers(pair: Any) -> None:
    _, theirs, encoder = pair
    assert_same_tokens(theirs, encoder, TEXTS)


@settings(deadline=None, max_examples=40)
@given(texts=st.lists(st.text(alphabet="abe .,é<>[]SEP|\n", max_size=60), min_size=1, max_size=4))
def test_tokens_equal_autotokenizers_for_any_text(pair: Any, texts: list[str]) -> None:
    _, theirs, encoder = pair
    assert_same_tokens(theirs, encoder, texts)


def test_sides_types_and_padding_are_the_tokenizers(pair: Any) -> None:
    name, theirs, encoder = pair
    found = encoder.settings
    left = {"left padding", "left both", "xlnet", "types at the end"}
    assert (found.padding_side, found.truncation_side) == (theirs.padding_side, theirs.truncation_side)
    assert found.padding_side == ("left" if name in left else "right")
    assert found.pad_token_id == theirs.convert_tokens_to_ids(theirs.pad_token)
    assert found.pad_type_id == theirs.pad_token_type_id


def test_padding_has_the_tokenizers_own_type(tmp_path: Path) -> None:
    tokenizer = bert_like()
    tokenizer._pad_token_type_id = 3
    tokenizer.save_pretrained(tmp_path)
    encoder = TextEncoder(tmp_path / "tokenizer.json", text_preprocess(tokenizer, hf.BertForSequenceClassification, 12))
    assert encoder.settings.pad_type_id == 3
    assert_same_tokens(tokenizer, encoder, TEXTS)


@pytest.mark.parametrize(
    ("model_class", "inputs"),
    [
        (hf.BertForSequenceClassification, ("input_ids", "attention_mask", "token_type_ids")),
        (hf.DistilBertForSequenceClassification, ("input_ids", "attention_mask")),
        (hf.FNetForSequenceClassification, ("input_ids", "token_type_ids")),
    ],
)
def test_a_model_gets_what_it_accepts(tmp_path: Path, model_class: type, inputs: tuple[str, ...]) -> None:
    bert_like().save_pretrained(tmp_path)
    assert text_preprocess(load_tokenizer(tmp_path), model_class, 12).inputs == inputs


def test_a_mask_is_used_even_if_the_tokenizer_does_not_offer_one(tmp_path: Path) -> None:
    tokenizer = bert_like()
    tokenizer.model_input_names = ["input_ids"]
    found = text_preprocess(tokenizer, hf.BertForSequenceClassification, 12)
    assert found.inputs == ("input_ids", "attention_mask")


def test_neither_padding_nor_end_token_is_refused(tmp_path: Path) -> None:
    gpt2_like().save_pretrained(tmp_path)
    with pytest.raises(SourceError, match="neither a padding nor an end token"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["{nope", "{}", "", None])
def test_a_broken_or_missing_tokenizer_is_one_sentence(tmp_path: Path, content: str | None) -> None:
    bert_like().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    if content is None:
        for path in tmp_path.glob("*token*"):
            path.unlink()
    else:
        (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(SourceError, match="tokenizer") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)

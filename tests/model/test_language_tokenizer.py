"""A language model's tokenizer becomes the preprocessing of its blocks, and its files travel byte for byte."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from finetune.errors import SourceError
from finetune.model.tokenizer import LANGUAGE_FILES, language_preprocess, load_tokenizer, save_language_files
from finetune.preprocess import LanguageEncoder

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = ["<s>", "</s>", "<|end|>", "<pad>", "[CLS]"]
TOKENS = [*SPECIAL, *LETTERS, "sh", "ip"]
TEXTS = ["ship", "", "a ship  at sea\n", "é 🛳", "</s> <|end|>"]
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"


def a_tokenizer(*, begin: str = "", end: str = "", **special: Any) -> hf.PreTrainedTokenizerFast:
    """Byte-level; `begin` and `end` are the tokens that it puts around a text."""
    ids = {token: i for i, token in enumerate(TOKENS)}
    tokenizer = Tokenizer(models.BPE(ids, [("s", "h"), ("i", "p")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if begin or end:
        around = [(token, ids[token]) for token in (*begin.split(), *end.split())]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A {end}".split(), special_tokens=around
        )
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def save(folder: Path, tokenizer: Any, *, generation: Any = None, rows: int = len(TOKENS)) -> Path:
    tokenizer.save_pretrained(folder)
    config = {"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": rows}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation), "utf-8")
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(SourceError) as caught:
        language_preprocess(load_tokenizer(folder, language=True), folder, 16)
    assert "\n" not in str(caught.value)
    return str(caught.value)


KINDS: dict[str, dict[str, Any]] = {
    "gpt-2": {"bos_token": "<|end|>", "eos_token": "<|end|>"},
    "llama": {"begin": "<s>", "bos_token": "<s>", "eos_token": "</s>"},
    "with padding": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
    "without bos": {"eos_token": "</s>"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_the_tokenizer(kind: str, tmp_path: Path) -> None:
    save(tmp_path, a_tokenizer(**KINDS[kind]))
    tokenizer = load_tokenizer(tmp_path, language=True)
    settings = language_preprocess(tokenizer, tmp_path, 16)
    encoder = LanguageEncoder(tmp_path / "tokenizer.json", settings)
    for text in TEXTS:
        assert encoder.prompt_ids(text) == tokenizer(text)["input_ids"]
    end = tokenizer.convert_tokens_to_ids(KINDS[kind]["eos_token"])
    assert settings.eos_token_ids == (end,)
    assert settings.pad_token_id == (TOKENS.index("<pad>") if kind == "with padding" else end)
    assert settings.add_bos == (kind == "llama")
    assert settings.max_length == 16


def test_the_tokenizer_keeps_its_special_tokens(tmp_path: Path) -> None:
    save(tmp_path, a_tokenizer(eos_token="</s>"))
    assert load_tokenizer(tmp_path, language=True).pad_token is None
    assert load_tokenizer(tmp_path).pad_token == "</s>"


def test_whatever_ends_an_answer_ends_it(tmp_path: Path) -> None:
    tokenizer = a_tokenizer(eos_token="</s>", begin="<s>", end="</s>", bos_token="<s>")
    save(tmp_path, tokenizer, generation={"eos_token_id": [2, 1], "bos_token_id": 0})
    assert language_preprocess(load_tokenizer(tmp_path, language=True), tmp_path, 16).eos_token_ids == (1, 2)
    save(tmp_path, a_tokenizer(bos_token="<s>"), generation={"eos_token_id": 2})
    assert language_preprocess(load_tokenizer(tmp_path, language=True), tmp_path, 16).eos_token_ids == (2,)


@pytest.mark.parametrize("several", [False, True])
def test_the_chat_template_comes_along(tmp_path: Path, several: bool) -> None:
    tokenizer = a_tokenizer(bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = {"default": TEMPLATE, "tool_use": "tools"} if several else TEMPLATE
    save(tmp_path, tokenizer)
    loaded = load_tokenizer(tmp_path, language=True)
    encoder = LanguageEncoder(tmp_path / "tokenizer.json", language_preprocess(loaded, tmp_path, 16))
    messages = [("user", "ship?"), ("assistant", "ship.")]
    plain = [{"role": role, "content": content} for role, content in messages]
    expected = loaded.apply_chat_template(plain, tokenize=False)
    assert (
        encoder.render_chat(messages, add_generation_prompt=False)
        == expected
        == "<s>user: ship?</s>assistant: ship.</s>"
    )


def test_no_end_token_is_refused(tmp_path: Path) -> None:
    assert "has no end token" in refused(save(tmp_path, a_tokenizer(bos_token="<s>", pad_token="<pad>")))


def test_texts_that_begin_with_something_else_are_refused(tmp_path: Path) -> None:
    save(tmp_path, a_tokenizer(begin="[CLS] <s>", bos_token="<s>", eos_token="</s>"))
    assert "begins texts with [CLS] <s>, not with a bos token alone" in refused(tmp_path)


def test_tokens_that_the_network_does_not_know_are_refused(tmp_path: Path) -> None:
    save(tmp_path, a_tokenizer(eos_token="</s>"), rows=len(TOKENS) - 1)
    assert f"its tokenizer's 'ip' is token {len(TOKENS) - 1}, but the model knows only {len(TOKENS) - 1}" in refused(
        tmp_path
    )
    save(tmp_path, a_tokenizer(eos_token="</s>"), rows=len(TOKENS) + 40)  # rows to spare are usual
    language_preprocess(load_tokenizer(tmp_path, language=True), tmp_path, 16)


def test_files_travel_byte_for_byte(tmp_path: Path) -> None:
    backbone, into = tmp_path / "backbone", tmp_path / "into"
    tokenizer = a_tokenizer(eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    save(backbone, tokenizer, generation={"eos_token_id": 2, "top_k": 7})
    # As older versions wrote them, and with a space that a parser would lose.
    (backbone / "special_tokens_map.json").write_text('{"eos_token":  "</s>"}', "utf-8")
    settings = json.loads((backbone / "tokenizer_config.json").read_text("utf-8"))
    (backbone / "tokenizer_config.json").write_text(json.dumps({**settings, "note": "kept"}), "utf-8")
    into.mkdir()
    (into / "generation_config.json").write_text("{}", "utf-8")  # what save_pretrained wrote
    save_language_files(load_tokenizer(backbone, language=True), backbone, into)
    names = [path.name for pattern in LANGUAGE_FILES for path in backbone.glob(pattern)]
    assert len(names) == 5

    def prints(folder: Path) -> list[str]:
        return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]

    assert prints(into) == prints(backbone)
    assert not (into / "config.json").exists()


def test_a_backbone_without_a_tokenizer_json_gets_one(tmp_path: Path) -> None:
    backbone, into = tmp_path / "backbone", tmp_path / "into"
    backbone.mkdir()
    vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", *LETTERS, "sh"])}
    (backbone / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    (backbone / "merges.txt").write_text("#version: 0.2\ns h\n", "utf-8")
    (backbone / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 1, "vocab_size": 300}), "utf-8")
    into.mkdir()
    save_language_files(load_tokenizer(backbone, language=True), backbone, into)
    assert (into / "vocab.json").read_bytes() == (backbone / "vocab.json").read_bytes()
    found = Tokenizer.from_file(str(into / "tokenizer.json")).encode("ship").tokens
    assert found == ["sh", "i", "p"]

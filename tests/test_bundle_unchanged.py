"""What fine-tuning must leave as the backbone had it: generation config, special tokens, chat template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune.bundle.unchanged import CHAT_TEMPLATE, GENERATION, SPECIAL_TOKENS, unchanged_files
from finetune.disk import sha256
from finetune.errors import BundleError

TEMPLATE = "{{ messages }}\r\n é"
GENERATION_CONFIG = '{"do_sample": true, "eos_token_id": [0, 2], "transformers_version": "4.1.0"}'
TOKENS = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "extra_special_tokens": ["<a>", "<b>"]}


def write(folder: Path, *, generation=GENERATION_CONFIG, template=TEMPLATE, in_config=False, **tokens) -> Path:
    folder.mkdir()
    if generation:
        (folder / "generation_config.json").write_text(generation)
    config = {"model_max_length": 64, **tokens}
    if template and in_config:
        config["chat_template"] = template
    elif template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8", newline="")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_what_travelled_is_named_with_its_hash(tmp_path):
    base, model = (write(tmp_path / name, **TOKENS) for name in ("base", "model"))
    found = unchanged_files(base, model)
    assert set(found) == {GENERATION, CHAT_TEMPLATE, SPECIAL_TOKENS}
    assert found[GENERATION] == sha256(base / "generation_config.json")
    assert all(len(digest) == 64 for digest in found.values())


def test_a_template_or_token_may_stand_in_another_file(tmp_path):
    base = write(tmp_path / "base", in_config=True)
    (base / "special_tokens_map.json").write_text(json.dumps(TOKENS))
    plain = {"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": ["<a>", {"content": "<b>"}]}
    assert set(unchanged_files(base, write(tmp_path / "model", **plain))) == {GENERATION, CHAT_TEMPLATE, SPECIAL_TOKENS}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"generation": GENERATION_CONFIG + "\n"}, r"generation_config\.json differs"),
        ({"generation": None}, r"generation_config\.json is missing"),
        ({"template": TEMPLATE + " "}, "chat_template differs"),
        ({"template": None}, "chat_template is missing"),
        ({"bos_token": "<x>"}, "special_tokens_map differs"),
        ({"pad_token": "</s>"}, "special_tokens_map differs"),
        ({"extra_special_tokens": ["<b>", "<a>"]}, "special_tokens_map differs"),
    ],
)
def test_any_change_is_named(tmp_path, changes, words):
    base = write(tmp_path / "base", **TOKENS)
    model = write(tmp_path / "model", **TOKENS | changes)
    with pytest.raises(BundleError, match=words) as caught:
        unchanged_files(base, model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("added", [{"template": TEMPLATE}, {"template": None, "pad_token": "<p>"}])
def test_what_the_backbone_did_not_have_may_not_appear(tmp_path, added):
    with pytest.raises(BundleError, match=r"but the backbone in .* has none"):
        unchanged_files(write(tmp_path / "base", template=None), write(tmp_path / "model", **added))


def test_several_templates_are_compared_by_name(tmp_path):
    several = [{"name": "default", "template": "a"}, {"name": "tools", "template": "b"}]
    base = write(tmp_path / "base", template=several, in_config=True)
    model = write(tmp_path / "model", template="a")
    with pytest.raises(BundleError, match="chat_template differs"):
        unchanged_files(base, model)
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates/tools.jinja").write_text("b")
    assert CHAT_TEMPLATE in unchanged_files(base, model)


def test_a_language_model_is_saved_so_that_nothing_of_this_changes(tmp_path):
    import transformers
    from tiny_language import write_language_backbone

    from finetune.model.quiet import quiet_transformers
    from finetune.model.tokenizer import save_language_files

    base = write_language_backbone(tmp_path / "base")
    said = json.loads((base / "generation_config.json").read_text()) | {"transformers_version": "4.0.0"}
    (base / "generation_config.json").write_text(json.dumps(said))
    tokenizer = transformers.AutoTokenizer.from_pretrained(base, local_files_only=True)
    tokenizer.add_special_tokens({"pad_token": "<|im_end|>"})
    with quiet_transformers():
        model = transformers.GPT2LMHeadModel.from_pretrained(base, local_files_only=True)
        model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(BundleError, match=r"generation_config\.json differs"):
        unchanged_files(base, tmp_path / "model")
    save_language_files(tokenizer, base, tmp_path / "model")
    assert unchanged_files(base, tmp_path / "model") == unchanged_files(base, base)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "model", local_files_only=True)
    assert (again.pad_token, again.chat_template) == ("<|endoftext|>", tokenizer.chat_template)

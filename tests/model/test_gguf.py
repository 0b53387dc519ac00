"""A GGUF file becomes an ordinary model folder: the same numbers, the same tokens, the settings that the file says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tiny_gguf import BLOCKS, HEADS, TEMPLATE, TOKENS, WIDTH, a_network, write_gguf

from finetune.errors import SourceError
from finetune.model.causal import load_causal_lm
from finetune.model.gguf import MARKER, checkpoint_from_gguf
from finetune.model.limits import backbone_shape, longest_input
from finetune.model.quiet import quiet_transformers
from finetune.model.tokenizer import language_preprocess, load_tokenizer

IDS = torch.tensor([[5, 9, 30, 41, 200, 7]])


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n", "utf-8")
    (folder / "config.json").write_text("{", "utf-8")  # what lies beside the file is not read
    return checkpoint_from_gguf(write_gguf(folder / "tiny.gguf"), folder / "out")


def logits(module: Any) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(IDS).logits


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(SourceError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_network_says_what_it_said(converted: Path) -> None:
    model = load_causal_lm(converted, seed=0)
    torch.testing.assert_close(logits(model.module), logits(a_network()))
    assert model.architecture == "LlamaForCausalLM"
    assert model.groups.names == ("embeddings", *(f"block {i}" for i in range(BLOCKS)), "head")


def test_weights_of_eight_bits_become_fp32(tmp_path: Path) -> None:
    network = a_network(tied=False)
    file = write_gguf(tmp_path / "tiny.gguf", network, quantised=True)
    model = load_causal_lm(checkpoint_from_gguf(file, tmp_path / "out"), seed=0)
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.float32}
    assert model.parameters == network.num_parameters()
    difference = (logits(model.module) - logits(network)).abs().max()
    assert 0 < difference < 0.02 * logits(network).abs().max()


def test_texts_become_the_tokens_that_the_file_means(converted: Path) -> None:
    tokenizer = load_tokenizer(converted, language=True)
    # Digits stand alone and take no space along, whatever the merges would allow.
    assert tokenizer("har  12<|im_end|>").tokens() == ["har", "ĠĠ", "1", "2", "<|im_end|>"]
    assert tokenizer.decode(tokenizer("har  12 é").input_ids) == "har  12 é"
    assert len(tokenizer) == len(TOKENS)


def test_a_plain_gpt2_split_is_left_as_it_is(tmp_path: Path) -> None:
    folder = checkpoint_from_gguf(write_gguf(tmp_path / "tiny.gguf", pre="gpt-2"), tmp_path / "out")
    assert load_tokenizer(folder, language=True)("har  12").tokens() == ["har", "Ġ", "Ġ1", "2"]


def test_settings_are_those_of_the_file(converted: Path) -> None:
    generation = json.loads((converted / "generation_config.json").read_text("utf-8"))
    assert generation == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "transformers_version": hf.__version__,
    }
    tokenizer = load_tokenizer(converted, language=True)
    assert tokenizer.chat_template == TEMPLATE
    settings = language_preprocess(tokenizer, converted, 16)
    assert (settings.pad_token_id, settings.bos_token_id, settings.eos_token_ids, settings.add_bos) == (
        2,
        1,
        (2,),
        False,
    )
    assert settings.chat_template == TEMPLATE
    with quiet_transformers():
        own = hf.GenerationConfig.from_pretrained(converted)
    assert own.eos_token_id == 2
    text = (converted / "tokenizer_config.json").read_text("utf-8") + (converted / "config.json").read_text("utf-8")
    assert "local" not in text
    assert str(converted.parent) not in text


def test_sampling_and_further_end_tokens_are_kept(tmp_path: Path) -> None:
    file = write_gguf(
        tmp_path / "tiny.gguf", tokenizer__ggml__eot_token_id=0, general__sampling__temp=0.5,
        general__sampling__top_k=7,
    )  # fmt: skip
    folder = checkpoint_from_gguf(file, tmp_path / "out")
    generation = json.loads((folder / "generation_config.json").read_text("utf-8"))
    assert generation["eos_token_id"] == [2, 0]
    assert (generation["temperature"], generation["top_k"], generation["do_sample"]) == (0.5, 7, True)
    assert language_preprocess(load_tokenizer(folder, language=True), folder, 16).eos_token_ids == (2, 0)


def test_the_card_beside_the_file_comes_along(converted: Path) -> None:
    assert (converted / "README.md").read_text("utf-8").startswith("---\nlicense: mit")


def test_the_same_bytes_are_converted_once(tmp_path: Path) -> None:
    file, out = write_gguf(tmp_path / "tiny.gguf"), tmp_path / "out"
    checkpoint_from_gguf(file, out)
    first = (out / "model.safetensors").stat().st_mtime_ns
    assert checkpoint_from_gguf(file, out) == out
    assert (out / "model.safetensors").stat().st_mtime_ns == first
    (out / MARKER).unlink()  # as after a run that was killed
    checkpoint_from_gguf(file, out)
    second = (out / "model.safetensors").stat().st_mtime_ns
    assert second > first
    file.unlink()
    checkpoint_from_gguf(write_gguf(file, general__description="another"), out)
    assert (out / "model.safetensors").stat().st_mtime_ns > second


def test_conversion_draws_nothing_on_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoint_from_gguf(write_gguf(tmp_path / "tiny.gguf"), tmp_path / "out")
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pre": "of-tomorrow"}, "splits texts in a way that this version does not know ('of-tomorrow')"),
        (
            {"leave_out": "blk.1.ffn_up.weight"},
            "lacks the weights of 1 parameters, such as 'model.layers.1.mlp.up_proj",
        ),
        ({"tokens": [*TOKENS, "more"]}, "such as 'model.embed_tokens.weight', or has them in another shape"),
        (
            {"tokens": [*TOKENS, "more"], "llama__vocab_size": len(TOKENS)},
            f"its tokenizer has {len(TOKENS) + 1} tokens, but its network knows only {len(TOKENS)}",
        ),
    ],
)
def test_files_that_would_be_read_wrongly_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", **changes)
    assert words in refused(lambda: checkpoint_from_gguf(file, tmp_path / "out"))
    assert not (tmp_path / "out" / MARKER).exists()


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x09\0\0\0" + bytes(16), b"PK\x03\x04 a zip"])
def test_what_is_no_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(content)
    assert "is not readable as GGUF" in refused(lambda: checkpoint_from_gguf(file, tmp_path / "out"))


def test_a_file_cut_short_inside_its_weights_is_refused(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    file.write_bytes(file.read_bytes()[:-4096])
    assert "cannot be read as GGUF" in refused(lambda: checkpoint_from_gguf(file, tmp_path / "out"))


def test_dimensions_are_known_without_loading(tmp_path: Path, converted: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    assert backbone_shape(file) == backbone_shape(converted) == (BLOCKS, WIDTH, HEADS, len(TOKENS))
    assert longest_input(file) == longest_input(converted) == 96

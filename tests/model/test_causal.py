"""Language models: loaded whole, divided into layer groups, and refused when they cannot be what they should be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tiny_models import save
from tiny_networks import BLOCKS, LANGUAGE_MODELS, SHAPE, gpt2, opt, save_language_model, some_ids

from finetune.errors import SourceError
from finetune.model.causal import keeps_documents_apart, load_causal_lm


@pytest.fixture(scope="module", params=LANGUAGE_MODELS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, save_language_model(tmp_path_factory.mktemp("language"), request.param)


def refused(folder: Path) -> str:
    with pytest.raises(SourceError) as caught:
        load_causal_lm(folder, seed=0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_layer_groups_run_from_the_embeddings_to_the_head(saved: tuple[str, Path]) -> None:
    name, folder = saved
    tiny, model = LANGUAGE_MODELS[name], load_causal_lm(folder, seed=0)
    blocks = [f"block {i}" for i in range(BLOCKS)]
    assert model.groups.names == ("embeddings", *blocks, "head")
    assert set(model.groups.groups[0].parameters) == tiny.first
    assert set(model.groups.head.parameters) == tiny.head
    for i, group in enumerate(model.groups.groups[1:-1]):
        assert group.parameters
        assert all(f".{i}." in parameter for parameter in group.parameters)
    placed = [parameter for group in model.groups.groups for parameter in group.parameters]
    assert sorted(placed) == sorted(parameter for parameter, _ in model.module.named_parameters())


def test_a_language_model_has_nothing_new(saved: tuple[str, Path]) -> None:
    _, folder = saved
    model = load_causal_lm(folder, seed=0)
    assert model.fresh == frozenset()
    reference = hf.AutoModelForCausalLM.from_pretrained(folder)
    assert model.architecture == type(reference).__name__
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    ids = some_ids()
    with torch.no_grad():
        assert torch.equal(model.module.eval()(ids).logits, reference.eval()(ids).logits)


def test_a_tied_weight_is_one_parameter_that_counts_once(tmp_path: Path) -> None:
    tied, untied = (
        load_causal_lm(save_language_model(tmp_path / str(i), name), seed=0)
        for i, name in enumerate(("llama tied", "llama"))
    )
    assert tied.module.lm_head.weight is tied.module.model.embed_tokens.weight
    assert "lm_head.weight" not in tied.groups.depth_of()
    assert untied.groups.depth_of()["lm_head.weight"] == len(untied.groups) - 1
    assert untied.parameters - tied.parameters == tied.module.lm_head.weight.numel()


def test_every_family_keeps_packed_documents_apart(saved: tuple[str, Path]) -> None:
    assert keeps_documents_apart(load_causal_lm(saved[1], seed=0).module)


def test_a_network_that_does_not_heed_the_mask_is_told(tmp_path: Path) -> None:
    config = hf.BloomConfig(vocab_size=100, hidden_size=32, n_layer=2, n_head=4)
    model = load_causal_lm(save(tmp_path, hf.AutoModelForCausalLM, config), seed=0)
    assert not keeps_documents_apart(model.module)


def test_without_weights_after_the_last_block_it_is_the_head(tmp_path: Path) -> None:
    config = opt(do_layer_norm_before=False)
    model = load_causal_lm(save(tmp_path, hf.AutoModelForCausalLM, config), seed=0)
    assert model.groups.names == ("embeddings", *(f"block {i}" for i in range(BLOCKS)))


def test_a_body_without_its_output_is_whole_when_the_output_is_tied(tmp_path: Path) -> None:
    save(tmp_path, hf.AutoModel, gpt2())
    assert load_causal_lm(tmp_path, seed=0).fresh == frozenset()


def test_a_body_without_its_output_is_refused_when_it_is_not(tmp_path: Path) -> None:
    save(tmp_path, hf.AutoModel, gpt2(tie_word_embeddings=False))
    assert "lacks the weights of 1 parameters, such as 'lm_head.weight'" in refused(tmp_path)


@pytest.mark.parametrize("change", ["drop", "resize"])
def test_missing_or_misshapen_weights_are_refused(tmp_path: Path, change: str) -> None:
    file = save_language_model(tmp_path, "llama tied") / "model.safetensors"
    tensors = load_file(file)
    taken = tensors.pop("model.layers.1.mlp.up_proj.weight")
    if change == "resize":
        tensors["model.layers.1.mlp.up_proj.weight"] = taken[:-1].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    assert "'model.layers.1.mlp.up_proj.weight'" in refused(tmp_path)


def test_a_network_that_sees_the_answer_is_refused(tmp_path: Path) -> None:
    shape = {key: SHAPE[key] for key in SHAPE if not key.endswith("token_id")}
    save(tmp_path, hf.AutoModelForCausalLM, hf.BertConfig(**shape))
    assert "sees the tokens that it should predict" in refused(tmp_path)


def test_what_is_no_language_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "of_tomorrow"}), "utf-8")
    assert "cannot be loaded as a language model" in refused(tmp_path)


def test_a_damaged_config_is_one_sentence(tmp_path: Path) -> None:
    save_language_model(tmp_path, "gpt2")
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_layer": "three"}), "utf-8")
    assert "cannot be loaded as a language model" in refused(tmp_path)


def test_loading_leaves_torchs_generator_alone(tmp_path: Path) -> None:
    save_language_model(tmp_path, "gpt2")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    load_causal_lm(tmp_path, seed=0)
    assert torch.equal(before, torch.get_rng_state())

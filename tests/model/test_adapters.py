"""Adapters: which parameters they add and to which depth, what training them changes, merging, and peft's own format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import PeftModel
from safetensors.torch import load_file
from tiny_networks import BLOCKS, LANGUAGE_MODELS, save_language_model, some_ids

from finetune.errors import RecipeError, TrainingError
from finetune.model.adapters import Adapter, describe_adapter, has_adapter, merge, save_adapter
from finetune.model.backbone import TransferModel
from finetune.model.causal import load_causal_lm
from finetune.model.quiet import quiet_transformers
from finetune.train.phase import check_phase, fingerprint, set_modes, set_trainable
from finetune.transfer.plan import Phase

# LoRA everywhere; DoRA on GPT-2's transposed layers and on ordinary ones.
CASES = [*((name, "lora") for name in LANGUAGE_MODELS), ("gpt2", "dora"), ("llama tied", "dora")]
Case = tuple[str, str, Path]


@pytest.fixture(scope="module", params=CASES, ids=" ".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """An architecture, the kind of adapter, and a checkpoint."""
    name, kind = request.param
    return name, kind, save_language_model(tmp_path_factory.mktemp("language"), name)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_language_model(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_language_model(tmp_path_factory.mktemp("gpt2"), "gpt2")


def load(folder: Path, **settings: Any) -> TransferModel:
    return load_causal_lm(folder, seed=0, adapter=Adapter(**{"rank": 4, **settings}))


def train(model: TransferModel, groups: list[int], *, steps: int = 3) -> None:
    """A few steps of the groups of these indices, as a phase sets them."""
    set_trainable(model.module, model.groups, groups)
    set_modes(model.module, model.groups, groups)
    chosen = [p for p in model.module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(chosen, lr=0.02)
    ids = some_ids()
    for _ in range(steps):
        optimizer.zero_grad()
        model.module(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    model.module.eval()


@torch.no_grad()
def logits(module: Any) -> torch.Tensor:
    return module.eval()(input_ids=some_ids(seed=1)).logits


def test_adapters_of_each_block_are_a_layer_group(case: Case) -> None:
    name, kind, folder = case
    model = load(folder, kind=kind)
    assert model.groups.names == tuple(f"block {i}" for i in range(BLOCKS))
    parameters = dict(model.module.named_parameters())
    for i, group in enumerate(model.groups.groups):
        assert all(f".{i}." in parameter and "lora_" in parameter for parameter in group.parameters)
        adapted = {parameter.split(".lora_")[0].rpartition(".")[2] for parameter in group.parameters}
        assert adapted == LANGUAGE_MODELS[name].linear
    inside = {parameter for group in model.groups.groups for parameter in group.parameters}
    assert inside == {parameter for parameter in parameters if "lora_" in parameter}
    assert model.fresh == {parameter for parameter in inside if "magnitude" not in parameter}


def test_the_network_begins_as_it_was_pretrained(case: Case) -> None:
    _, kind, folder = case
    reference = hf.AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(load(folder, kind=kind).module), logits(reference))


def test_a_merged_network_is_plain_and_says_the_same(case: Case, tmp_path: Path) -> None:
    _, kind, folder = case
    model = load(folder, kind=kind)
    pretrained = logits(model.module)
    train(model, [0, 1, 2])
    adapted = logits(model.module)
    assert (adapted - pretrained).abs().max() > 1e-2
    merged = merge(model.module)
    torch.testing.assert_close(logits(merged), adapted, atol=1e-5, rtol=1e-4)
    reference = hf.AutoModelForCausalLM.from_pretrained(folder)
    assert [n for n, _ in merged.named_parameters()] == [n for n, _ in reference.named_parameters()]
    with quiet_transformers():
        merged.save_pretrained(tmp_path)  # type: ignore[operator]
        loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded), adapted, atol=1e-5, rtol=1e-4)


def test_peft_loads_what_was_saved(case: Case, tmp_path: Path) -> None:
    name, kind, folder = case
    model = load(folder, kind=kind)
    train(model, [0, 1, 2])
    save_adapter(model.module, tmp_path, base_model="owner/name")
    base = hf.AutoModelForCausalLM.from_pretrained(folder)
    with quiet_transformers():  # peft asks for an attribute that transformers is about to rename
        loaded = PeftModel.from_pretrained(base, str(tmp_path))
    torch.testing.assert_close(logits(loaded), logits(model.module))
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((tmp_path / "adapter_config.json").read_text("utf-8"))
    assert config["base_model_name_or_path"] == "owner/name"
    assert config["target_modules"] == sorted(LANGUAGE_MODELS[name].linear)
    assert str(folder) not in (tmp_path / "adapter_config.json").read_text("utf-8")


def test_only_the_groups_of_a_phase_move(gpt2: Path) -> None:
    model = load(gpt2)
    before = fingerprint(model.module)
    train(model, [2])
    phase = Phase("top", (2,), 1, (0.0, 0.0, 0.02), "constant", 0.0, None)
    check = check_phase(phase, model.groups, before, fingerprint(model.module))
    assert (check.moved, check.frozen) == (("block 2",), ("block 0", "block 1"))


def test_dropout_inside_trained_blocks_only(gpt2: Path) -> None:
    model = load(gpt2, dropout=0.5)
    set_modes(model.module, model.groups, [2])
    training = {name for name, child in model.module.named_modules() if child.training}
    assert "transformer.h.2.attn.c_attn.lora_dropout.default" in training
    assert all(name.startswith("transformer.h.2") for name in training)


def test_values_depend_on_the_seed_alone(gpt2: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same = load(gpt2), load(gpt2)
    assert torch.equal(before, torch.get_rng_state())
    other = load_causal_lm(gpt2, seed=1, adapter=Adapter(rank=4))
    states = [dict(m.module.named_parameters()) for m in (one, same, other)]
    name = "transformer.h.0.attn.c_attn.lora_A.default.weight"
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


def test_an_adapter_is_small_and_described(llama: Path) -> None:
    model = load(llama, kind="dora", rank=2, alpha=6.0, targets=("q_proj", "mlp.up_proj"))
    # Each of the two layers has A, B and a magnitude for each of its outputs (32 × 32 and 32 × 48).
    parameters = BLOCKS * (2 * (32 + 32) + 32 + 2 * (32 + 48) + 48)
    assert describe_adapter(model.module) == {
        "kind": "dora", "rank": 2, "alpha": 6.0, "dropout": 0.0, "targets": ["q_proj", "up_proj"], "base": "fp32",
        "parameters": parameters,
    }  # fmt: skip
    assert describe_adapter(load_causal_lm(llama, seed=0).module) is None
    assert describe_adapter(merge(model.module)) is None


def test_targets_outside_the_blocks_keep_the_head(llama: Path) -> None:
    assert load(llama, targets=("o_proj", "lm_head")).groups.names == (*(f"block {i}" for i in range(BLOCKS)), "head")
    model = load(llama, targets=("lm_head",))
    assert model.groups.names == ("head",)
    assert set(model.groups.head.parameters) == {"lm_head.lora_A.default.weight", "lm_head.lora_B.default.weight"}


def test_targets_of_some_blocks_leave_the_others_out(llama: Path) -> None:
    model = load(llama, targets=("layers.1.mlp.up_proj",))
    assert model.groups.names == ("block 1",)
    assert len(model.groups.head.parameters) == 2


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (("q_prj",), "has no linear layer 'q_prj'; did you mean 'q_proj'?"),
        (("mlp",), "has no linear layer 'mlp'"),
        (("embed_tokens",), "has no linear layer 'embed_tokens'"),
        (("q_proj", ""), "has no linear layer ''"),
    ],
)
def test_targets_that_are_no_linear_layers_are_refused(llama: Path, targets: tuple[str, ...], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(llama, targets=targets)
    assert words in str(caught.value)


def test_a_tied_output_cannot_have_an_adapter(gpt2: Path) -> None:
    with pytest.raises(RecipeError, match="the weight of 'lm_head' is the input embeddings' too"):
        load(gpt2, targets=("lm_head",))


def test_no_adapter_is_no_adapter(gpt2: Path) -> None:
    model = load(gpt2, kind="none", base="nf4")
    assert not has_adapter(model.module)
    assert merge(model.module) is model.module
    with pytest.raises(TrainingError, match="no adapter to save"):
        save_adapter(model.module, gpt2 / "none", base_model=None)


def test_an_adapter_that_diverged_is_not_merged(gpt2: Path) -> None:
    model = load(gpt2)
    with torch.no_grad():
        dict(model.module.named_parameters())["transformer.h.1.mlp.c_fc.lora_B.default.weight"].fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"the adapter of 'transformer\.h\.1\.mlp\.c_fc' does not merge"):
        merge(model.module)


def test_saved_tensors_are_the_adapters_alone(gpt2: Path, tmp_path: Path) -> None:
    save_adapter(load(gpt2).module, tmp_path, base_model=None)
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert len(names) == BLOCKS * 4 * 2
    assert all(name.startswith("base_model.model.transformer.h.") for name in names)

"""Frozen weights in 8 and 4 bits: refused without a GPU; with bitsandbytes' kernels for the CPU, what a merge gives back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tiny_networks import save_language_model, some_ids

from finetune.errors import RecipeError
from finetune.model import causal, quantised
from finetune.model.adapters import Adapter, describe_adapter, merge
from finetune.model.causal import load_causal_lm


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_language_model(tmp_path_factory.mktemp("llama"), "llama tied")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The path of a GPU on this machine's CPU: bitsandbytes has slow kernels for it, which finetune does not use otherwise."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(causal, "require_gpu", lambda base: None)
    monkeypatch.setattr(causal, "quantisation", lambda base: quantised.quantisation(base, compute=torch.float32))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    original = causal._load
    monkeypatch.setattr(causal, "_load", lambda folder, settings, device: original(folder, settings, "cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bitsandbytes warns of each cast to fp16
        yield


@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_quantised_weights_are_refused_without_a_gpu(llama: Path, no_gpu: None, base: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        load_causal_lm(llama, seed=0, adapter=Adapter(base=base))
    assert str(caught.value) == (
        f"transfer.adapter.base: {base} weights need a GPU, and none is here; set it to fp32, or run on a machine with a GPU"
    )


def test_quantised_weights_are_refused_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="need the package bitsandbytes; run pip install"):
        quantised.require_gpu("nf4")


def test_nf4_is_multiplied_in_bf16_where_the_gpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    for has, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has: has)
        settings = quantised.quantisation("nf4")
        assert (settings.bnb_4bit_compute_dtype, settings.bnb_4bit_quant_type) == (dtype, "nf4")


@torch.no_grad()
def logits(module: Any) -> torch.Tensor:
    return module.eval()(input_ids=some_ids(seed=1)).logits.float()


# Not DoRA on int8: for it peft replaces a weight that is on a CPU, which loses its scales there.
@pytest.mark.parametrize(("base", "kind"), [("int8", "lora"), ("nf4", "lora"), ("nf4", "dora")])
def test_a_quantised_network_trains_merges_and_is_plain_again(
    llama: Path, on_a_cpu: None, base: Any, kind: Any
) -> None:
    model = load_causal_lm(llama, seed=0, adapter=Adapter(kind=kind, rank=4, base=base))
    reference = hf.AutoModelForCausalLM.from_pretrained(llama)
    facts = describe_adapter(model.module)
    assert facts is not None
    assert facts["base"] == base
    assert model.parameters - facts["parameters"] == reference.num_parameters()
    chosen = {name for group in model.groups.groups for name in group.parameters}
    for name, parameter in model.module.named_parameters():
        parameter.requires_grad_(name in chosen)
    optimizer = torch.optim.AdamW([p for n, p in model.module.named_parameters() if n in chosen], lr=0.02)
    ids = some_ids()
    for _ in range(3):
        optimizer.zero_grad()
        model.module(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    adapted = logits(model.module)
    merged = merge(model.module)
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    assert [n for n, _ in merged.named_parameters()] == [n for n, _ in reference.named_parameters()]
    moved = (adapted - logits(reference)).abs().max()
    assert (logits(merged) - adapted).abs().max() < 0.05 * moved

"""The estimate of memory against what torch allocates, and what is said when it does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from language_samples import CONTEXT, document, improving, language_job, language_model
from torch.profiler import ProfilerActivity, profile
from train_samples import train
from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, OPTConfig

from finetune.errors import TrainingError
from finetune.train import memory
from finetune.train.job import Job
from finetune.train.memory import MemoryEstimate, available_memory, estimate, estimate_run, require_memory, shape_of

RNG = np.random.default_rng(0)
LONG = [document(RNG, CONTEXT, row) for row in range(8)]
SMALL: dict[str, Any] = {
    "parameters": 1000, "trainable": 400, "layers": 3, "hidden": 8, "heads": 2, "vocabulary": 50, "batch_rows": 4,
    "length": 16, "checkpointing": False,
}  # fmt: skip


def allocated_at_most(job: Job, folder: Path) -> int:
    """Bytes of the network, and the most that torch's allocator had given out beside it at any moment of a run."""
    weights = sum(p.numel() * p.element_size() for p in job.model.module.parameters())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        train(job, folder)
    assert watched.profiler is not None
    events = [e for e in watched.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert len(events) > 100
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return weights + int(np.cumsum(sizes).max())


CASES: dict[str, dict[str, Any]] = {
    "gpt2": {"kind": "gpt2"},
    "gpt2 without dropout": {"kind": "gpt2", "dropout": 0.0},
    "llama": {"kind": "llama", "dropout": 0.0},
    "sgd in parts": {"kind": "llama", "dropout": 0.0, "optimizer": "sgd", "accumulation": 4},
    "top block": {"kind": "gpt2", "transfer": {"unfreeze": "full", "depth": 2, "epochs": 1}},
    "lora": {"kind": "llama", "adapter": "lora", "dropout": 0.0},
    "dora": {"kind": "gpt2", "adapter": "dora"},
    "computed again": {"kind": "gpt2", "layers": 8, "gradient_checkpointing": True},
    "large vocabulary": {"kind": "llama", "vocabulary": 3000, "layers": 1, "dropout": 0.0},
}


@pytest.mark.parametrize("case", CASES)
def test_the_estimate_is_within_a_factor_of_two_of_what_a_run_allocates(tmp_path: Path, case: str) -> None:
    settings = {"layers": 4, "width": 64, "vocabulary": 40, "adapter": "none", "dropout": 0.1, **CASES[case]}
    sizes = {name: settings.pop(name) for name in ("kind", "layers", "width", "vocabulary", "adapter", "dropout")}
    transfer = settings.pop("transfer", {"unfreeze": "full", "depth": "all", "epochs": 1})
    model = language_model(**sizes)
    job = improving(language_job(model=model, rows=LONG, batch_size=8, transfer=transfer, **settings))
    needed = estimate_run(model, job.plan, job.settings, length=CONTEXT, precision="no")
    assert needed is not None
    found = allocated_at_most(job, tmp_path)
    assert found / 2 < needed.total < found * 2, (needed, found)


def test_parts_are_what_they_say() -> None:
    found = estimate(**SMALL, evaluation_rows=100, anchored=0)
    assert (found.weights, found.copies, found.gradients, found.optimizer) == (4000, 1600, 1600, 3200)
    assert found.logits == 100 * 16 * 50 * 4
    assert found.total == sum(value for name, value in found.to_json().items() if name != "total")
    assert list(found.to_json()) == ["weights", "copies", "gradients", "optimizer", "activations", "logits", "total"]
    quantised = estimate(**{**SMALL, "bytes_per_weight": 0.5})
    assert quantised.weights == 600 * 0.5 + 400 * 4
    assert quantised.copies == 2 * 1600


@given(st.sampled_from(["batch_rows", "length", "layers", "hidden", "vocabulary", "trainable"]))
def test_more_of_anything_never_needs_less(name: str) -> None:
    for again in (False, True):
        one = estimate(**{**SMALL, "checkpointing": again})
        assert estimate(**{**SMALL, "checkpointing": again, name: SMALL[name] * 2}).total > one.total
    assert estimate(**{**SMALL, "checkpointing": True}).total < estimate(**SMALL).total


def test_half_precision_needs_less_for_activations_but_a_copy_of_the_weights() -> None:
    half, whole = (estimate(**SMALL, bytes_per_activation=size) for size in (2.0, 4.0))
    assert half.activations == whole.activations / 2 + 1000 * 2


def test_what_fits_passes_and_what_does_not_is_refused_in_one_sentence() -> None:
    needed = MemoryEstimate(2_000_000_000, 1_000_000_000, 500_000_000, 1_500_000_000, 700_000_000, 300_000_000)
    assert require_memory(needed, 6_000_000_000) is None
    with pytest.raises(TrainingError) as refused:
        require_memory(needed, 5_999_999_999)
    said = str(refused.value)
    assert said.startswith(
        "training needs about 6 GB of memory (weights 2 GB, copies 1 GB, gradients 500 MB, optimizer 1.5 GB, activations 700 MB, "
        "logits 300 MB), and 6 GB are free; lower train.batch_size"
    )
    assert said.endswith("or set train.memory: warn to start all the same")
    warned = require_memory(needed, 5_000_000_000, "warn")
    assert warned == f"{needed.sentence(5_000_000_000)}, so it may end for want of memory"


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (GPT2Config(n_layer=3, n_embd=24, n_head=2, vocab_size=60000), (3, 24, 2, 60000, True)),
        (GPT2Config(attn_pdrop=0.0), (12, 768, 12, 50257, False)),
        (LlamaConfig(), (32, 4096, 32, 32000, False)),
        (OPTConfig(attention_dropout=0.0), (12, 768, 12, 50272, False)),
        (GPTNeoXConfig(), (44, 6144, 64, 50432, False)),
    ],
)
def test_the_sizes_of_every_family_are_found_under_its_own_names(config: Any, sizes: tuple[int, ...]) -> None:
    found = shape_of(config.to_dict())
    assert found is not None
    assert (found.layers, found.hidden, found.heads, found.vocabulary, found.keeps_scores) == sizes
    assert shape_of({"text_config": config.to_dict(), "model_type": "both"}) == found
    on_gpu = shape_of(config.to_dict(), on_cpu=False)
    assert on_gpu is not None
    assert not on_gpu.keeps_scores
    eager = shape_of({**config.to_dict(), "_attn_implementation": "eager"}, on_cpu=False)
    assert eager is not None
    assert eager.keeps_scores


def test_a_config_that_tells_too_little_gives_no_shape() -> None:
    assert shape_of({"model_type": "mamba", "hidden_size": 64, "vocab_size": 100, "num_hidden_layers": 2}) is None


def test_what_is_free_is_shared_by_processes_and_a_loaded_network_counts_as_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory.hardware, "available_memory", lambda: 1000)
    assert available_memory("cpu") == available_memory(torch.device("cpu")) == 1000
    assert available_memory("cpu", processes=4) == 250
    assert available_memory("cpu", processes=4, loaded=torch.nn.Linear(3, 5)) == 250 + 4 * 20

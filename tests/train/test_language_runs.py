"""Language models through the loop: their loss is torch's own, parts do not matter, adapters move and nothing beside them."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from language_samples import documents, encoder, improving, language_job, language_model, packed, perplexity
from train_samples import largest_difference, timeless, train

from finetune.data.batches import epoch_steps
from finetune.errors import DataError, RecipeError
from finetune.model.adapters import merge
from finetune.preprocess import IGNORED
from finetune.preprocess.language import Sequence as Tokens
from finetune.recipe import L2SPSettings
from finetune.train.blocks import BlockExamples
from finetune.train.events import Event, PhaseStarted, StepEnded
from finetune.train.job import Job, Moment
from finetune.train.phase import fingerprint
from finetune.train.predict import in_order, predict_answers
from finetune.transfer.surgical import relative_gradient_norms

# Without dropout, and without Adam's division by tiny gradients, results differ by rounding alone.
SMOOTH: dict[str, Any] = {"dropout": 0.0, "optimizer": "sgd", "schedule": "constant", "warmup": 0.0}
ONE_EPOCH = {"unfreeze": "full", "depth": 4, "learning_rate": 0.3, "epochs": 1}
SHORT = {"head_epochs": 1, "epochs": 1}
CPU = torch.device("cpu")


def plain_loop(job: Job) -> None:
    """The job's first phase in the most ordinary words: whole batches, and the mean loss of transformers' own model."""
    assert isinstance(job.train, BlockExamples)
    module, phase = job.model.module, job.plan.phases[0]
    named = dict(module.named_parameters())
    parts = [
        {"params": [named[n]], "lr": rate, "weight_decay": 0.01 if named[n].ndim > 1 else 0.0}
        for group, rate in zip(job.model.groups.groups, phase.learning_rates)
        for n in group.parameters
    ]
    optimizer = torch.optim.SGD(parts, momentum=0.9)
    for rows in epoch_steps(job.train.lengths, job.settings.batch_size, seed=job.seed, phase=0, epoch=0, bucket=True):
        sequences = [job.train.sequences[row] for row in rows]
        labels = np.roll(encoder().targets(sequences), 1, axis=1)  # the model shifts them back itself
        inputs = {name: torch.from_numpy(array) for name, array in encoder().collate(sequences).items()}
        optimizer.zero_grad()
        module(**inputs, labels=torch.from_numpy(labels)).loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), job.settings.clip_norm)
        optimizer.step()


@pytest.mark.parametrize(("kind", "accumulation", "packing"), [("gpt2", 1, False), ("gpt2", 3, True), ("llama", 2, True)])  # fmt: skip
def test_a_run_comes_to_what_an_ordinary_loop_with_the_models_own_loss_comes_to(
    tmp_path: Path, kind: str, accumulation: int, packing: bool
) -> None:
    rows = packed(documents(44), 2) if packing else documents(22)
    same: dict[str, Any] = {**SMOOTH, "transfer": ONE_EPOCH, "rows": rows}
    ours, plain = improving(language_job(kind, accumulation=accumulation, **same)), language_job(kind, **same)
    train(ours, tmp_path)
    plain_loop(plain)
    assert largest_difference(ours.model.module, plain.model.module) < 1e-5
    assert largest_difference(ours.model.module, language_model(kind, dropout=0.0).module) > 1e-2


@pytest.mark.parametrize(("batch_size", "accumulation"), [(4, 4), (5, 3)])
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_the_number_of_parts_does_not_change_the_result(
    tmp_path: Path, adapter: Any, batch_size: int, accumulation: int
) -> None:
    """Documents differ in length, some have no target at all, and a short last batch leaves some parts empty."""
    whole, parts = (
        language_job(adapter=adapter, batch_size=batch_size, accumulation=n, transfer=SHORT, **SMOOTH)
        for n in (1, accumulation)
    )
    one, other = train(whole, tmp_path / "whole"), train(parts, tmp_path / "parts")
    assert largest_difference(whole.model.module, parts.model.module) < 1e-5
    for record, same in zip(one.history, other.history, strict=True):
        assert record["train_loss"] == pytest.approx(same["train_loss"], abs=1e-5)
        assert record["validation_metric"] == pytest.approx(same["validation_metric"], rel=1e-5)


def test_the_loss_of_an_epoch_is_a_mean_over_tokens_and_not_over_rows_or_parts(tmp_path: Path) -> None:
    rows = documents(22)
    job = language_job(rows=rows, batch_size=22, accumulation=3, **SMOOTH, transfer=ONE_EPOCH)
    before = in_order(answers_of(job.model.module, rows))
    found = train(job, tmp_path).history[0]["train_loss"]
    assert found == pytest.approx(before[:, 0].sum() / before[:, 1].sum(), rel=1e-5)
    learned = before[before[:, 1] > 0]
    assert found != pytest.approx((learned[:, 0] / learned[:, 1]).mean(), rel=1e-4)


def answers_of(module: torch.nn.Module, rows: list[Tokens], **options: Any) -> dict[int, np.ndarray]:
    lengths, targets = [len(row.ids) for row in rows], encoder().targets(rows)
    kept = language_job().task.target.answers
    settings: dict[str, Any] = {"answers": kept, "batch_size": 4, "device": CPU, **options}
    return predict_answers(module, rows, lengths, targets, encoder().collate, **settings)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_tallies_are_each_documents_own_loss_alone_in_batches_and_packed(kind: str) -> None:
    module, rows = language_model(kind).module, documents(9)
    found = in_order(answers_of(module, rows))
    assert found.dtype == np.float64
    for row, (loss, count, _) in zip(rows, found.tolist(), strict=True):
        labels = [IGNORED, *row.targets[:-1]]
        assert count == sum(target != IGNORED for target in row.targets)
        if count:
            own = module(input_ids=torch.tensor([row.ids]), labels=torch.tensor([labels])).loss
            assert loss == pytest.approx(own.item() * count, rel=1e-4)
    together = in_order(answers_of(module, packed(rows, 3)))
    np.testing.assert_allclose(together, found.reshape(3, 3, 3).sum(axis=1), rtol=1e-4)


def test_processes_that_share_the_rows_find_what_one_finds() -> None:
    module, rows = language_model().module, documents(11)
    shares = [answers_of(module, rows, rank=rank, world=2) for rank in (0, 1)]
    assert not set(shares[0]) & set(shares[1])
    assert np.array_equal(in_order(shares[0] | shares[1]), in_order(answers_of(module, rows)))


def test_no_keys_and_values_are_kept_and_the_configuration_is_put_back(tmp_path: Path) -> None:
    job, caches = language_job(rows=documents(6), transfer=SHORT), []
    job.model.module.register_forward_hook(lambda _module, _inputs, out: caches.append(out.past_key_values))
    train(job, tmp_path)
    assert caches
    assert all(cache is None for cache in caches)
    assert job.model.module.config.use_cache


def test_a_batch_is_as_wide_as_its_longest_sequence() -> None:
    examples, moment = BlockExamples(documents(22), encoder()), Moment(0, 0, 0, 0, ())
    assert examples.labels.shape == (22, max(examples.lengths))
    for rows in ([0, 3], [7], [5, 1, 2]):
        inputs, targets = examples.batch(rows, moment)
        width = max(examples.lengths[row] for row in rows)
        assert inputs["input_ids"].shape == targets.shape == (len(rows), width)
        assert np.array_equal(targets, examples.labels[rows, :width])
        assert (examples.labels[rows, width:] == IGNORED).all()


def test_sequences_without_any_target_are_refused_together_but_not_alone(tmp_path: Path) -> None:
    """In steps of one row, some have nothing to learn, among them the first; the rest learn as if they were alone."""
    empty = Tokens([5, 6], [IGNORED, IGNORED], [0, 0], (0,))
    with pytest.raises(DataError, match=r"^the training rows hold no token to learn: .*raise data\.max_length"):
        BlockExamples([empty, empty], encoder())
    events: list[Event] = []
    job = language_job(rows=[empty, empty, *documents(2)], batch_size=1, transfer=SHORT, gradient_checkpointing=True)
    result = train(job, tmp_path, events=events)
    assert all(np.isfinite(record["train_loss"]) and record["train_loss"] > 0 for record in result.history)
    assert all(np.isfinite(event.loss) for event in events if isinstance(event, StepEnded))
    assert min(event.loss for event in events if isinstance(event, StepEnded)) == 0.0


@pytest.mark.parametrize("adapter", ["lora", "dora"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_gradual_unfreezing_over_adapters_moves_each_depth_in_its_turn(tmp_path: Path, kind: str, adapter: Any) -> None:
    job = improving(language_job(kind, adapter=adapter, layers=3, transfer={"depth": 3, "decay": 0.5, **SHORT}))
    job.model.module.eval()
    start, groups = fingerprint(job.model.module), job.model.groups
    assert groups.names == ("block 0", "block 1", "block 2")
    seen: list[dict[str, str]] = []
    emit = lambda event: seen.append(fingerprint(job.model.module)) if isinstance(event, PhaseStarted) else None  # noqa: E731
    result = train(job, tmp_path, emit=emit)
    seen.append(fingerprint(job.model.module))
    depth, moved = groups.depth_of(), []
    for before, after in pairwise(seen):
        changed = {name for name in start if before[name] != after[name]}
        assert changed <= set(depth), "the pretrained weights keep every bit"
        moved.append({depth[name] for name in changed})
    assert moved == [{2}, {1, 2}, {0, 1, 2}]
    assert [phase["trainable"] for phase in result.phases] == [["block 2"], ["block 1", "block 2"], list(groups.names)]
    assert [list(record["learning_rates"].values()) for record in result.history] == [
        pytest.approx([rate * factor for rate in rates])
        for rates, factor in zip(([1e-2], [5e-3, 1e-2], [2.5e-3, 5e-3, 1e-2]), last_factors(result.history))
    ]


def last_factors(history: list[dict[str, Any]]) -> list[float]:
    return [record["learning_rates"]["block 2"] / 1e-2 for record in history]


def test_merged_adapters_change_the_blocks_that_trained_and_answer_alike(tmp_path: Path) -> None:
    job = improving(language_job(adapter="lora", layers=3, transfer={"depth": 2, **SHORT}))
    before = {name: p.clone() for name, p in language_model(layers=3).module.named_parameters()}
    train(job, tmp_path)
    learned = in_order(answers_of(job.model.module, documents(5)))
    module = merge(job.model.module)
    changed = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    matrices = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert changed == {f"transformer.h.{block}.{matrix}.weight" for block in (1, 2) for matrix in matrices}
    np.testing.assert_allclose(in_order(answers_of(module, documents(5))), learned, rtol=1e-4)


@pytest.mark.parametrize("coupling", ["loss", "decoupled"])
def test_l2sp_pulls_adapters_back_to_the_pretrained_network(tmp_path: Path, coupling: Any) -> None:
    updates = {}
    for beta in (0.0, 60.0):
        pull = L2SPSettings(coupling=coupling, alpha=1.0, beta=beta)
        job = improving(language_job(adapter="lora", l2sp=pull, transfer={"unfreeze": "full", "depth": 2, "epochs": 3}))
        train(job, tmp_path / str(beta))
        named = dict(job.model.module.named_parameters())
        pairs = [(named[n], named[n.replace("lora_A", "lora_B")]) for n in named if "lora_A" in n]
        updates[beta] = sum(float((b @ a).detach().norm()) for a, b in pairs)
    assert 0 < updates[60.0] < updates[0.0] / 2


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_auto_chooses_among_the_layer_groups_of_either(tmp_path: Path, adapter: Any) -> None:
    transfer = {"unfreeze": "auto", "depth": "all", "auto_groups": 1, **SHORT}
    job = language_job(adapter=adapter, layers=3, transfer=transfer, batch_size=1, rows=documents(6))
    result = train(job, tmp_path)
    assert result.choice is not None
    assert len(result.choice["ranking"]) == len(job.model.groups) - 1
    assert all(entry["relative_gradient_norm"] > 0 for entry in result.choice["ranking"])
    assert result.phases[1]["trainable"] == [*result.choice["chosen"], job.model.groups.names[-1]]


def test_measuring_gradients_asks_for_none_beside_adapters() -> None:
    model = language_model(adapter="lora")
    sequences = documents(3)
    inputs = {name: torch.from_numpy(array) for name, array in encoder().collate(sequences).items()}
    relative_gradient_norms(model.module, model.groups, [[model.module(**inputs).logits.square().mean()]])
    asked = {name for name, parameter in model.module.named_parameters() if parameter.requires_grad}
    assert asked == set(model.groups.depth_of())


@pytest.mark.parametrize(
    ("kind", "adapter"), [("gpt2", "none"), ("gpt2", "lora"), ("llama", "none"), ("llama", "dora")]
)
def test_gradient_checkpointing_comes_to_the_same_weights_with_dropout(tmp_path: Path, kind: str, adapter: Any) -> None:
    same: dict[str, Any] = {"adapter": adapter, "rows": documents(11), "transfer": SHORT, "accumulation": 2}
    jobs = [improving(language_job(kind, gradient_checkpointing=on, **same)) for on in (False, True)]
    results = [train(job, tmp_path / str(number)) for number, job in enumerate(jobs)]
    assert largest_difference(jobs[0].model.module, jobs[1].model.module) < 1e-6
    for one, other in zip(*(timeless(result.history) for result in results), strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=1e-6)


def test_gradient_checkpointing_computes_blocks_that_train_again_and_no_others(tmp_path: Path) -> None:
    calls: Counter[tuple[int, int]] = Counter()
    transfer = {"unfreeze": "full", "depth": 2, "epochs": 1}
    job = language_job(layers=3, rows=documents(8), transfer=transfer, gradient_checkpointing=True)
    for number, block in enumerate(job.model.module.transformer.h):
        block.mlp.register_forward_pre_hook(lambda m, *_, number=number: calls.update([(number, m.training)]))
    train(job, tmp_path)
    steps, evaluations = 2, 2
    assert calls == {(0, False): steps + evaluations, (1, False): steps + evaluations, (2, True): 2 * steps, (2, False): evaluations}  # fmt: skip
    assert not any(getattr(part, "gradient_checkpointing", False) for part in job.model.module.modules())
    assert not job.model.module.transformer.wte._forward_hooks, "nothing makes frozen embeddings ask for gradients"


def test_an_architecture_that_cannot_compute_again_is_refused(tmp_path: Path) -> None:
    job = language_job(gradient_checkpointing=True)
    type(job.model.module).supports_gradient_checkpointing, before = False, True
    try:
        with pytest.raises(RecipeError, match=r"^train\.gradient_checkpointing: GPT2LMHeadModel cannot compute"):
            train(job, tmp_path)
    finally:
        type(job.model.module).supports_gradient_checkpointing = before


def test_a_language_model_learns(tmp_path: Path) -> None:
    job = language_job("llama", dropout=0.0, batch_size=8, rows=documents(80), transfer={"unfreeze": "full", "depth": "all", "epochs": 6})  # fmt: skip
    untrained = perplexity(in_order(answers_of(job.model.module, documents(11, seed=1))), np.zeros(0))
    result = train(job, tmp_path)
    assert result.history[-1]["validation_metric"] < untrained / 4

"""What a phase may move: set before it, proven after it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from train_samples import small_model, small_plan

from finetune.errors import TrainingError
from finetune.model.groups import LayerGroup, LayerGroups
from finetune.recipe import TrainSettings
from finetune.train.phase import (
    check_phase,
    check_replicas,
    digest,
    fingerprint,
    put_back,
    set_modes,
    set_trainable,
    tensors_of,
)

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
PHASE = small_plan(TrainSettings(), 4).phases[1]


def test_exactly_the_groups_of_these_indices_are_trainable() -> None:
    model = small_model()
    for indices in ((3,), (1, 2, 3), (2, 3), (0, 3), (0, 1, 2, 3), (1, 3)):
        set_trainable(model.module, model.groups, indices)
        free = {name for group in model.groups.pick(indices) for name in group.parameters}
        assert {name for name, p in model.module.named_parameters() if p.requires_grad} == free
        assert free


def test_gradients_of_the_phase_before_are_dropped() -> None:
    model = small_model()
    set_trainable(model.module, model.groups, (0, 1, 2, 3))
    model.module(input_ids=IDS).logits.sum().backward()
    set_trainable(model.module, model.groups, (3,))
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_frozen_groups_run_without_dropout_and_trainable_ones_with_it() -> None:
    model = small_model(dropout=0.5)
    seen: dict[str, list[torch.Tensor]] = {"embeddings": [], "block 0": [], "block 1": []}
    bert = model.module.bert
    for name, part in (
        ("embeddings", bert.embeddings),
        ("block 0", bert.encoder.layer[0]),
        ("block 1", bert.encoder.layer[1]),
    ):
        part.register_forward_hook(lambda _module, _inputs, out, name=name: seen[name].append(out[0] if isinstance(out, tuple) else out))  # fmt: skip
    set_modes(model.module, model.groups, (2, 3))
    for _ in range(2):
        model.module(input_ids=IDS)
    assert torch.equal(*seen["embeddings"])
    assert torch.equal(*seen["block 0"])
    assert not torch.equal(*seen["block 1"])


def test_modes_are_set_anew_whatever_they_were() -> None:
    model = small_model()
    for before in (True, False):
        model.module.train(before)
        set_modes(model.module, model.groups, (3,))
        head = set(model.groups.head.modules)
        assert {name for name, child in model.module.named_modules() if child.training} == head


def test_a_fingerprint_sees_one_changed_bit_and_names_it() -> None:
    module = small_model().module
    before = fingerprint(module)
    with torch.no_grad():
        module.bert.embeddings.word_embeddings.weight.view(torch.int32)[3, 3] ^= 1
    after = fingerprint(module)
    assert [name for name in before if before[name] != after[name]] == ["bert.embeddings.word_embeddings.weight"]
    assert digest(before) != digest(after)


def test_a_fingerprint_covers_every_dtype_and_shape() -> None:
    module = nn.Module()
    module.short = nn.Parameter(torch.ones(2, 3, dtype=torch.bfloat16))
    module.register_buffer("scalar", torch.tensor(3))
    module.register_buffer("turned", torch.arange(6.0).view(2, 3).T)
    module.register_buffer("flag", torch.tensor([True]))
    assert len(fingerprint(module)) == 4


def move(module: nn.Module, *names: str) -> None:
    with torch.no_grad():
        for name in names:
            module.get_parameter(name).view(-1)[0] += 1


def test_a_frozen_weight_that_changed_is_an_error_that_names_it() -> None:
    model = small_model()
    before = fingerprint(model.module)
    move(model.module, "classifier.weight", "bert.encoder.layer.1.output.dense.weight", "bert.encoder.layer.0.output.dense.bias")  # fmt: skip
    with pytest.raises(TrainingError, match=r"^phase 'top 2': .*'bert\.encoder\.layer\.0\.output\.dense\.bias'"):
        check_phase(PHASE, model.groups, before, fingerprint(model.module))


def test_a_frozen_buffer_that_changed_is_an_error() -> None:
    model = small_model()
    before = fingerprint(model.module)
    move(model.module, "classifier.weight", "bert.encoder.layer.1.output.dense.weight")
    model.module.bert.embeddings.position_ids[0, 0] = 1
    with pytest.raises(TrainingError, match=r"'bert\.embeddings\.position_ids'"):
        check_phase(PHASE, model.groups, before, fingerprint(model.module))


def test_a_group_that_stood_still_is_an_error_that_names_it() -> None:
    model = small_model()
    before = fingerprint(model.module)
    move(model.module, "classifier.weight")
    with pytest.raises(
        TrainingError, match=r"^phase 'top 2': layer group 'block 1' should have trained.*learning rate$"
    ):
        check_phase(PHASE, model.groups, before, fingerprint(model.module))


def test_a_bias_alone_does_not_prove_that_a_group_trains() -> None:
    model = small_model()
    before = fingerprint(model.module)
    move(model.module, "classifier.bias", "bert.encoder.layer.1.output.dense.weight")
    with pytest.raises(TrainingError, match="layer group 'head' should have trained"):
        check_phase(PHASE, model.groups, before, fingerprint(model.module))


def test_single_weights_that_stood_still_are_listed() -> None:
    model = small_model()
    before = fingerprint(model.module)
    head, block = model.groups.head.parameters, model.groups.groups[-2].parameters
    still = (head[0], block[3])
    move(model.module, *(name for name in (*head, *block) if name not in still))
    check = check_phase(PHASE, model.groups, before, fingerprint(model.module))
    assert check.moved == ("block 1", "head")
    assert check.frozen == ("embeddings", "block 0")
    assert check.unmoved == tuple(sorted(still))


def test_a_group_that_is_left_empty_counts_as_frozen() -> None:
    """As one that is nothing but BatchNorm is, when that keeps still."""
    groups = LayerGroups((LayerGroup("norm", (), ()), LayerGroup("head", ("h.weight",), ("h",))))
    phase = replace(PHASE, trainable=(0, 1))
    same = {"norm.weight": "1", "h.weight": "2"}
    check = check_phase(phase, groups, same, {**same, "h.weight": "3"})
    assert (check.moved, check.frozen) == (("head",), ("norm",))
    with pytest.raises(TrainingError, match=r"'norm\.weight'"):
        check_phase(phase, groups, same, {"norm.weight": "9", "h.weight": "3"})


def test_replicas_that_differ_are_an_error_that_names_process_and_weight() -> None:
    same = {"a": "1", "b": "2"}
    check_replicas(PHASE, [same, dict(same), dict(same)])
    with pytest.raises(TrainingError, match=r"process 2 holds other weights than process 0, such as 'b'"):
        check_replicas(PHASE, [same, dict(same), {"a": "1", "b": "3"}])


class Tied(nn.Module):
    """Input and output share a weight; the body has a buffer that is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)
        self.body = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.table.weight


TIED = LayerGroups(
    (
        LayerGroup("embeddings", ("table.weight",), ("", "table")),
        LayerGroup("block 0", ("body.weight", "body.bias"), ("body",)),
        LayerGroup("head", (), ("head",)),
    )
)


def test_a_shared_weight_is_listed_once_and_with_its_own_group() -> None:
    module = Tied()
    assert list(tensors_of(module, TIED.groups)) == ["table.weight", *(f"body.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"))]  # fmt: skip
    assert list(tensors_of(module, TIED.pick([2]))) == []


def test_tensors_are_the_networks_own_and_can_be_put_back() -> None:
    module = Tied()
    kept = {name: tensor.clone() for name, tensor in tensors_of(module, TIED.groups).items()}
    module.body(torch.ones(4, 3))
    move(module, "table.weight")
    changed = fingerprint(module)
    put_back(kept, into=tensors_of(module, TIED.groups))
    assert fingerprint(module) != changed
    assert all(torch.equal(tensor, kept[name]) for name, tensor in tensors_of(module, TIED.groups).items())
    assert module.head.weight is module.table.weight

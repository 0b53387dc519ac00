"""Which BatchNorm layers a policy holds still, and that recalibrated statistics are the mean over batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from finetune.model.groups import LayerGroup, LayerGroups
from finetune.transfer.batchnorm import batchnorms, recalibrate, statistics, that_may_learn


class Net(nn.Module):
    """Two normalised layers and a head; `only` is a layer group that is nothing but BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.only = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.only(self.body(x)).mean((2, 3))))


GROUPS = LayerGroups(
    (
        LayerGroup("body", ("body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"), ("body", "body.0", "body.1", "body.2")),
        LayerGroup("only", ("only.weight", "only.bias"), ("only",)),
        LayerGroup("head", ("head.weight", "head.bias"), ("", "head", "drop")),
    )
)  # fmt: skip


def net(seed: int = 0) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net()


def pictures(count: int, seed: int) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(count, 3, 2, 2, generator=torch.Generator().manual_seed(seed)) * 3 + 7}


def test_batchnorms_are_found_by_the_modules_of_their_groups() -> None:
    module = net()
    assert list(batchnorms(module, GROUPS.groups)) == ["body.1", "only"]
    assert list(batchnorms(module, GROUPS.pick([1, 2]))) == ["only"]
    assert list(batchnorms(module, GROUPS.pick([2]))) == []


@pytest.mark.parametrize("policy", ["train", "recalibrate"])
def test_only_freeze_takes_anything_out_of_the_groups(policy: Any) -> None:
    assert that_may_learn(net(), GROUPS, policy) is GROUPS


def test_freeze_takes_out_batchnorm_and_nothing_else() -> None:
    left = that_may_learn(net(), GROUPS, "freeze")
    assert left.names == GROUPS.names
    assert left.groups[0] == LayerGroup("body", ("body.0.weight", "body.0.bias"), ("body", "body.0", "body.2"))
    assert left.groups[1] == LayerGroup("only", (), ())
    assert left.groups[2] == GROUPS.groups[2]


def test_a_network_without_batchnorm_may_learn_everything_under_freeze() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    groups = LayerGroups((LayerGroup("all", ("0.weight", "0.bias", "1.weight", "1.bias"), ("", "0", "1")),))
    assert that_may_learn(module, groups, "freeze") == groups


def test_statistics_are_the_buffers_of_the_groups() -> None:
    assert list(statistics(net(), GROUPS.pick([1, 2]))) == [f"only.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")]  # fmt: skip


def test_recalibrated_statistics_are_the_mean_over_the_batches() -> None:
    module = net()
    batches = [pictures(4, seed) for seed in range(5)]
    for batch in batches:
        module.train()(**batch)  # whatever was there before
    assert recalibrate(module, [module.body[1]], batches) == 5
    inside = [module.body[0](batch["x"]).transpose(0, 1).flatten(1) for batch in batches]
    torch.testing.assert_close(module.body[1].running_mean, torch.stack([x.mean(1) for x in inside]).mean(0))
    torch.testing.assert_close(module.body[1].running_var, torch.stack([x.var(1) for x in inside]).mean(0))
    assert module.body[1].num_batches_tracked == 5


def test_recalibration_changes_nothing_but_the_layers_it_is_given() -> None:
    module = net()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.get_rng_state()
    recalibrate(module, [module.only], [pictures(4, 0)])
    assert torch.equal(state, torch.get_rng_state()), "dropout draws nothing"
    changed = {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"only.running_mean", "only.running_var", "only.num_batches_tracked"}
    assert module.only.momentum == 0.1
    assert not any(child.training for child in module.modules())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_without_batches_the_old_statistics_stay() -> None:
    module = net()
    module.train()(**pictures(4, 0))
    before = module.only.running_mean.clone()
    assert recalibrate(module, [module.only], []) == 0
    assert torch.equal(module.only.running_mean, before)


def test_a_layer_that_keeps_no_statistics_is_passed_over() -> None:
    module = net()
    module.only = nn.BatchNorm2d(4, track_running_stats=False)
    assert recalibrate(module, list(batchnorms(module, GROUPS.groups).values()), [pictures(4, 0)]) == 1
    assert module.only.running_mean is None


def test_momentum_and_modes_come_back_even_if_a_batch_fails() -> None:
    module = net()
    with pytest.raises(RuntimeError, match="channels"):
        recalibrate(module, [module.only], [{"x": torch.ones(2, 5, 2, 2)}])
    assert module.only.momentum == 0.1
    assert not module.only.training

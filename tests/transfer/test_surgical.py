"""Relative gradient norms are what their formula says, and the choice takes the largest and says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from finetune.errors import TrainingError
from finetune.model.groups import LayerGroup, LayerGroups
from finetune.transfer.surgical import choose, relative_gradient_norms

GROUPS = LayerGroups(
    (
        LayerGroup("stem", ("0.weight", "0.bias", "1.weight", "1.bias"), ("0", "1")),
        LayerGroup("block", ("2.weight", "2.bias", "3.weight", "3.bias"), ("2", "3")),
        LayerGroup("norm", ("4.weight", "4.bias"), ("4",)),
        LayerGroup("head", ("5.weight", "5.bias"), ("", "5")),
    )
)


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)
        )


def rows(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def by_hand(module: nn.Module, batches: list[Tensor], names: list[str]) -> float:
    found = []
    weights = [module.get_parameter(name) for name in names]
    size = torch.cat([weight.detach().flatten() for weight in weights]).norm()
    for batch in batches:
        gradients = torch.autograd.grad(module(batch).square().mean(), weights)
        found.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm() / size))
    return sum(found) / len(found)


def test_it_is_the_gradients_norm_over_the_weights_norm_averaged_over_batches() -> None:
    module = net().eval()
    batches = [rows(4, seed) for seed in range(3)]
    norms = relative_gradient_norms(module, GROUPS, ([module(batch).square().mean()] for batch in batches))
    assert list(norms) == ["stem", "block", "norm"]
    assert norms["stem"] == pytest.approx(by_hand(module, batches, ["0.weight"]), rel=1e-5)
    assert norms["block"] == pytest.approx(by_hand(module, batches, ["2.weight", "3.weight"]), rel=1e-5)
    assert norms["norm"] == 0.0, "vectors do not count"


def test_what_is_in_no_group_gets_no_gradient_even_where_it_could_have_none() -> None:
    """As weights beside adapters, which may be held in 8 bits."""
    module, batch = net(), rows(4, 0)
    module.register_parameter("whole", nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False))
    beside = LayerGroups((LayerGroup("block", ("2.weight",), ("2",)), LayerGroup("head", ("5.weight", "5.bias"), ("5",))))  # fmt: skip
    found = relative_gradient_norms(module.eval(), beside, ([module(batch).square().mean()] for _ in range(1)))
    assert found == {"block": pytest.approx(by_hand(net().eval(), [batch], ["2.weight"]), rel=1e-5)}
    asked = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert asked == {"2.weight", "5.weight", "5.bias"}


def test_the_parts_of_a_batch_add_up() -> None:
    module, batch = net().eval(), rows(6, 0)

    def parts() -> Iterator[Tensor]:
        for part in batch.split(2):
            yield module(part).square().mean() / 3

    whole = relative_gradient_norms(module, GROUPS, [[module(batch).square().mean()]])
    assert relative_gradient_norms(module, GROUPS, [parts()]) == pytest.approx(whole, rel=1e-5)


def test_it_looks_at_the_network_as_it_is_served_and_leaves_no_gradient() -> None:
    module = net().train().requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    def losses() -> Iterator[list[Tensor]]:
        yield [module(rows(4, 0)).square().mean()]

    assert relative_gradient_norms(module, GROUPS, losses())["stem"] > 0, "frozen weights are measured too"
    assert not any(child.training for child in module.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())


def test_gradients_that_are_no_numbers_are_an_error_that_names_the_group() -> None:
    module = net()
    with pytest.raises(TrainingError, match=r"^transfer\.unfreeze: .*layer group 'stem' are not finite"):
        relative_gradient_norms(module, GROUPS, ([module(rows(2, 0)).sum() * float("nan")] for _ in "x"))


def test_the_largest_are_chosen_and_the_sentence_tells_why() -> None:
    norms = {"stem": 0.022, "block 0": 0.0010, "block 1": 0.004, "block 2": 0.017, "block 5": 0.0312}
    choice = choose(norms, 3)
    assert choice.chosen == ("block 5", "stem", "block 2")
    assert choice.reason == (
        "unfreezing block 5, stem and block 2: the largest relative gradients 0.031, 0.022, 0.017; "
        "the smallest was block 0 with 0.001"
    )
    assert choice.to_json() == {
        "ranking": [
            {"group": name, "relative_gradient_norm": norms[name]}
            for name in ("block 5", "stem", "block 2", "block 1", "block 0")
        ],
        "chosen": ["block 5", "stem", "block 2"],
        "reason": choice.reason,
    }


def test_one_or_all_may_be_chosen() -> None:
    norms = {"stem": 0.1, "block 0": 0.2}
    assert (
        choose(norms, 1).reason
        == "unfreezing block 0: the largest relative gradient 0.2; the smallest was stem with 0.1"
    )
    assert choose(norms, 2).reason == "unfreezing block 0 and stem: the largest relative gradients 0.2, 0.1; there are no others"  # fmt: skip


@given(values=st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3]), min_size=1, max_size=8), data=st.data())
def test_no_group_left_out_has_a_larger_one_and_of_equal_ones_the_nearest_to_the_head_goes_first(
    values: list[float], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(values)))
    choice = choose({str(i): value for i, value in enumerate(values)}, count)
    depths = [int(name) for name, _ in choice.ranking]
    assert sorted(depths) == list(range(len(values)))
    assert len(choice.chosen) == count
    keys = [(values[depth], depth) for depth in depths]
    assert keys == sorted(keys, reverse=True)
    assert [int(name) for name in choice.chosen] == depths[:count]

"""Layer groups of real architectures and of small networks built to be awkward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES, a_batch, load, save_body
from torch import nn

from finetune.errors import SourceError
from finetune.model.backbone import TransferModel
from finetune.model.groups import LayerGroups, find_layer_groups


@pytest.fixture(scope="module", params=ARCHITECTURES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(name, what is expected, the loaded model) of each architecture, loaded once."""
    folder = save_body(tmp_path_factory.mktemp("body"), request.param)
    return request.param, ARCHITECTURES[request.param], load(folder, name=request.param)


def test_groups_run_from_embeddings_through_every_block_to_the_head(tiny: Any) -> None:
    _, expected, model = tiny
    blocks = [f"block {i}" for i in range(expected.blocks)]
    assert list(model.groups.names) == ["embeddings", *blocks, "head"]
    for part in expected.first:
        assert any(name.endswith(part) for name in model.groups.groups[0].parameters), part
    for part in expected.head:
        assert any(name.endswith(part) for name in model.groups.head.parameters), part
    new_outside_body = {n for n, _ in model.module.named_parameters() if _outside_body(model, n)}
    assert new_outside_body <= set(model.groups.head.parameters)


def test_every_parameter_is_in_exactly_one_group(tiny: Any) -> None:
    _, _, model = tiny
    grouped = [name for group in model.groups.groups for name in group.parameters]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {name for name, _ in model.module.named_parameters()}
    assert model.groups.depth_of().keys() == set(grouped)
    members = [name for group in model.groups.groups for name in group.modules]
    assert len(members) == len(set(members))


def test_a_block_holds_one_layer_of_the_stack_and_they_are_in_order(tiny: Any) -> None:
    name, expected, model = tiny
    numbers = []
    for group in model.groups.groups[1:-1]:
        # Names such as encoder.layer.2.attention: the first number is the layer's. BART's decoder begins with an
        # embedding and a norm of its own, without a number, which run after the last encoder block.
        found = {next((part for part in n.split(".") if part.isdigit()), "none") for n in group.parameters} - {"none"}
        assert len(found) == 1, group
        numbers.append(int(found.pop()))
    assert numbers == ([0, 1, 0, 1] if name == "bart" else list(range(expected.blocks)))


def test_exactly_the_unfrozen_groups_receive_gradients(tiny: Any) -> None:
    name, expected, model = tiny
    for count in (1, 2, len(model.groups)):
        free = {n for group in model.groups.trainable(count) for n in group.parameters}
        for n, parameter in model.module.named_parameters():
            parameter.requires_grad_(n in free)
            parameter.grad = None
        model.module(**a_batch(name)).logits.square().sum().backward()
        with_gradient = {n for n, p in model.module.named_parameters() if p.grad is not None}
        rightly_without = {n for n in free if n.endswith(expected.unused)} if expected.unused else set()
        assert with_gradient | rightly_without == free, f"top {count}"


def test_parameters_are_counted_once(tiny: Any) -> None:
    _, _, model = tiny
    assert model.parameters == sum(p.numel() for p in {id(p): p for p in model.module.parameters()}.values())


def _outside_body(model: TransferModel, name: str) -> bool:
    body = {id(p) for p in model.module.base_model.parameters()}
    return id(model.module.get_parameter(name)) not in body


class Block(nn.Module):
    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.inner = nn.Linear(size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


class Body(nn.Module):
    """Deliberately odd: parts are registered in another order than they run in."""

    def __init__(self) -> None:
        super().__init__()
        self.final_norm = nn.LayerNorm(4)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.between = nn.Linear(4, 4)
        self.table = nn.Embedding(7, 4)
        self.positions = nn.Embedding(9, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids) + self.positions.weight[: ids.shape[1]]
        x = self.between(self.blocks[0](x))
        return self.final_norm(self.blocks[1](x)).mean(1)


class Net(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.body = body

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(ids))


def groups_of(net: Any) -> LayerGroups:
    return find_layer_groups(net, net.body, lambda: net(torch.tensor([[1, 2, 3]])))


def members(groups: LayerGroups) -> dict[str, set[str]]:
    return {group.name: set(group.parameters) for group in groups.groups}


def test_a_module_belongs_where_it_runs_not_where_it_is_registered() -> None:
    found = members(groups_of(Net(Body())))
    assert found["embeddings"] == {"body.table.weight", "body.positions.weight"}
    assert found["block 0"] == {
        "body.blocks.0.inner.weight", "body.blocks.0.inner.bias", "body.between.weight", "body.between.bias",
    }  # fmt: skip
    assert found["block 1"] == {"body.blocks.1.inner.weight", "body.blocks.1.inner.bias"}
    assert found["head"] == {"body.final_norm.weight", "body.final_norm.bias", "head.weight", "head.bias"}


def test_blocks_are_numbered_as_they_run() -> None:
    class Backwards(Body):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.final_norm(self.blocks[0](self.between(self.blocks[1](self.table(ids))))).mean(1)

    found = members(groups_of(Net(Backwards())))
    assert "body.blocks.1.inner.weight" in found["block 0"]
    assert "body.blocks.0.inner.weight" in found["block 1"]


def test_a_weight_tied_to_the_embeddings_counts_once_and_lies_at_the_bottom() -> None:
    net = Net(Body())
    net.body.extra = nn.Linear(4, 7, bias=False)
    net.body.extra.weight = net.body.table.weight
    net.body.forward = lambda ids: (  # type: ignore[method-assign]
        net.body.extra(Body.forward(net.body, ids)) @ net.body.table.weight
    )
    groups = groups_of(net)
    names = [name for group in groups.groups for name in group.parameters]
    assert len(names) == len({id(net.get_parameter(name)) for name in names}) == len(list(net.parameters()))
    assert groups.depth_of()["body.table.weight"] == 0
    assert "body.extra" in groups.head.modules


def test_a_tied_weight_named_first_by_a_module_that_never_runs_still_has_a_place() -> None:
    class Tied(Body):
        def __init__(self) -> None:
            super().__init__()
            self.final_norm = nn.LayerNorm(4)
            self.a_spare = nn.Linear(7, 4, bias=False)
            self.table = nn.Embedding(7, 4)
            self.read = nn.Linear(7, 4, bias=False)
            self.a_spare.weight = self.read.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids) + self.read(torch.ones(7))

    groups = groups_of(Net(Tied()))
    assert "body.a_spare.weight" in groups.head.parameters


def test_lists_of_lists_are_one_stack_of_blocks() -> None:
    class Nested(Body):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.ModuleList([Block(), Block()]), nn.ModuleList([Block()])])

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.between(self.table(ids))
            for stage in self.blocks:
                for block in stage:
                    x = block(x)
            return self.final_norm(x).mean(1)

    found = members(groups_of(Net(Nested())))
    assert list(found) == ["embeddings", "block 0", "block 1", "block 2", "head"]
    assert found["block 2"] == {"body.blocks.1.0.inner.weight", "body.blocks.1.0.inner.bias"}


def test_a_module_shared_between_blocks_lies_in_the_lower_one() -> None:
    net = Net(Body())
    net.body.blocks[1].inner = net.body.blocks[0].inner
    groups = groups_of(net)
    names = [name for group in groups.groups for name in group.parameters]
    assert sorted(names) == sorted(n for n, _ in net.named_parameters())
    assert groups.depth_of()["body.blocks.0.inner.weight"] == 1


def test_a_network_without_blocks_is_refused() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 4)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.table(ids).mean(1)

    with pytest.raises(SourceError, match="Net has no list of blocks"):
        groups_of(Net(Flat()))


def test_a_parameter_that_never_runs_is_refused_by_name() -> None:
    net = Net(Body())
    net.body.idle = nn.Linear(4, 4)
    with pytest.raises(SourceError, match=r"parameter 'body\.idle\.weight' takes no part"):
        groups_of(net)


def test_a_block_that_never_runs_is_refused_by_name() -> None:
    net = Net(Body())
    net.body.blocks.append(Block())
    with pytest.raises(SourceError, match=r"body\.blocks\.2\.inner\.weight"):
        groups_of(net)


def test_a_network_that_ends_with_its_last_block_has_no_head_to_train() -> None:
    class Headless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Body()
            self.body.final_norm = nn.Identity()

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.body(ids)

    with pytest.raises(SourceError, match="no head to train"):
        groups_of(Headless())


def test_a_forward_pass_that_fails_is_one_sentence() -> None:
    net = Net(Body())
    with pytest.raises(SourceError, match="Net fails on a short text") as caught:
        find_layer_groups(net, net.body, lambda: net(torch.tensor([[100]])))
    assert "\n" not in str(caught.value)


def test_looking_leaves_modes_and_hooks_as_they_were() -> None:
    net = Net(Body())
    net.train()
    net.body.eval()
    before = {name: module.training for name, module in net.named_modules()}
    groups_of(net)
    assert {name: module.training for name, module in net.named_modules()} == before
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())


def test_trainable_counts_from_the_head() -> None:
    groups = groups_of(Net(Body()))
    assert [g.name for g in groups.trainable(1)] == ["head"]
    assert [g.name for g in groups.trainable(2)] == ["block 1", "head"]
    assert groups.trainable(len(groups)) == groups.groups

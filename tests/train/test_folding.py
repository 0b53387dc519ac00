"""Frozen batch normalisation inside convolutions: the same answers and gradients, and nothing left behind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from picture_samples import picture_job
from torch import nn
from train_samples import train

from finetune.errors import Interrupted
from finetune.train.events import StepEnded
from finetune.train.folding import find_pairs, folded


class Wrapped(nn.Module):
    """A network that answers as transformers' networks do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.network(pixel_values))


def settled(network: nn.Module) -> Wrapped:
    """With statistics and weights of BatchNorm that change something, and all of it frozen."""
    generator = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low, high in (
                (layer.running_mean, -0.2, 0.2), (layer.running_var, 0.5, 2.0), (layer.weight, 0.5, 1.5), (layer.bias, -0.2, 0.2),
            ):  # fmt: skip
                if tensor is not None:
                    tensor.data.uniform_(low, high, generator=generator)
            layer.requires_grad_(False)
    return Wrapped(network).eval()


def picture(rows: int = 2) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(1))}


def answers(module: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and the gradient of their squares by parameter."""
    logits = module(**picture()).logits
    logits.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return logits.detach(), gradients


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "tf_efficientnet_lite0", "resnet18"])
def test_answers_and_gradients_are_the_same(name: str) -> None:
    module = settled(timm.create_model(name, num_classes=3))
    count = sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    logits, gradients = answers(module)
    pairs = find_pairs(module, picture(1))
    assert len(pairs) == count > 0
    with folded(pairs):
        assert sum("forward" in vars(layer) for layer in module.modules()) == 2 * count
        inside, of_inside = answers(module)
    torch.testing.assert_close(inside, logits, rtol=1e-4, atol=1e-4)
    assert of_inside.keys() == gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(of_inside[key], gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))
    assert not any("forward" in vars(layer) for layer in module.modules())
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())


def test_modes_are_as_before_even_where_the_network_fails() -> None:
    module = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)))
    module.network[2].train()
    assert len(find_pairs(module, picture(1))) == 1
    assert [layer.training for layer in module.network] == [False, False, True]
    with pytest.raises(RuntimeError, match="channels"):
        find_pairs(module, {"pixel_values": torch.zeros(1, 5, 8, 8)})
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())
    assert [layer.training for layer in module.network] == [False, False, True]


class ReadTwice(nn.Module):
    """What the convolution puts out is normalised, and also added as it is; with the gate closed the answers do not tell."""

    def __init__(self, gate: float = 1.0) -> None:
        super().__init__()
        self.conv, self.norm, self.gate = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Parameter(torch.tensor(gate))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        seen = self.conv(pixels)
        return (self.norm(seen) + self.gate * seen).mean(dim=(2, 3))


class Closed(ReadTwice):
    def __init__(self) -> None:
        super().__init__(gate=0.0)


class UsedTwice(nn.Module):
    """One normalisation behind two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return (self.norm(self.first(pixels)) + self.norm(self.second(pixels))).mean(dim=(2, 3))


class NormFirst(nn.Module):
    """Normalisation before the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(pixels)).mean(dim=(2, 3))


@pytest.mark.parametrize("network", [ReadTwice, Closed, UsedTwice, NormFirst])
def test_what_is_no_pair_is_left_alone(network: type[nn.Module]) -> None:
    assert find_pairs(settled(network()), picture(1)) == []


def test_a_subclass_or_a_changed_layer_may_do_anything_and_is_left_alone() -> None:
    class Louder(nn.BatchNorm2d):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(pixels)

    assert find_pairs(settled(nn.Sequential(nn.Conv2d(3, 4, 3), Louder(4))), picture(1)) == []
    changed = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    convolution: Any = changed.network[0]
    convolution.forward = own = lambda pixels: 2 * nn.Conv2d.forward(convolution, pixels)
    assert find_pairs(changed, picture(1)) == []
    assert convolution.forward is own


def test_a_bias_and_missing_weights_are_taken_along() -> None:
    module = settled(
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=True), nn.BatchNorm2d(4, affine=False), nn.ReLU(inplace=True))
    )
    logits, gradients = answers(module)
    with folded(find_pairs(module, picture(1))):
        inside, of_inside = answers(module)
    torch.testing.assert_close(inside, logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(of_inside["network.0.bias"], gradients["network.0.bias"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("policy", ["freeze", "train", "recalibrate"])
def test_runs_fold_what_stands_still_and_put_it_back(tmp_path: Path, policy: str) -> None:
    job, folded_in = picture_job(batchnorm=policy), list[int]()
    layers = list(job.model.module.modules())
    count = lambda: sum("forward" in vars(layer) for layer in layers)  # noqa: E731
    train(job, tmp_path, emit=lambda event: folded_in.append(count()) if isinstance(event, StepEnded) else None)
    norms = sum(isinstance(layer, nn.BatchNorm2d) for layer in layers)
    assert set(folded_in) == ({2 * norms} if policy == "freeze" else {0})
    assert count() == 0


def test_a_stopped_run_leaves_the_network_plain(tmp_path: Path) -> None:
    job = picture_job(batchnorm="freeze")
    with pytest.raises(Interrupted):
        train(job, tmp_path, stop=lambda: True)
    assert not any("forward" in vars(layer) for layer in job.model.module.modules())

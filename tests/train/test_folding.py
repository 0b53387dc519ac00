"""Frozen batch normalisation inside convolutions: the same answers and gradients, and nothing left behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import nn

from finetune.train.folding import folded


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
    with folded(module, picture(1)) as number:
        assert number == count > 0
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
    with folded(module, picture(1)) as number:
        assert number == 1
        assert [layer.training for layer in module.network] == [False, False, True]
    with pytest.raises(RuntimeError, match="channels"), folded(module, {"pixel_values": torch.zeros(1, 5, 8, 8)}):
        pytest.fail("a picture of five channels was taken")
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())
    assert [layer.training for layer in module.network] == [False, False, True]


class ReadTwice(nn.Module):
    """What the convolution puts out is normalised, and also added as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        seen = self.conv(pixels)
        return (seen + self.norm(seen)).mean(dim=(2, 3))


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


@pytest.mark.parametrize("network", [ReadTwice, UsedTwice, NormFirst])
def test_what_is_no_pair_is_left_alone(network: type[nn.Module]) -> None:
    module = settled(network())
    logits, _ = answers(module)
    with folded(module, picture(1)) as number:
        assert number == 0
        assert torch.equal(answers(module)[0], logits)


def test_a_subclass_may_do_anything_and_is_left_alone() -> None:
    class Louder(nn.BatchNorm2d):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(pixels)

    with folded(settled(nn.Sequential(nn.Conv2d(3, 4, 3), Louder(4))), picture(1)) as number:
        assert number == 0


def test_without_a_sample_nothing_is_tried() -> None:
    module = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    with folded(module, None) as number:
        assert number == 0
        assert not any("forward" in vars(layer) for layer in module.modules())

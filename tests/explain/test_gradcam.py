"""Grad-CAM: it lights up where the evidence lies, on every kind of image network, and leaves the network as it was."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import nn

from finetune.explain.gradcam import gradcam


class Wrapped(nn.Module):
    """A timm network that answers as transformers' wrapper does."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.timm_model = timm.create_model(name, pretrained=False, num_classes=3)

    def forward(self, pixel_values):
        return type("Output", (), {"logits": self.timm_model(pixel_values)})


class Brightness(nn.Module):
    """Output 0 is the brightness of the quadrant at row 0, column 1; output 1 of the one at row 1, column 0."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 4, stride=4, bias=False)
        nn.init.constant_(self.conv.weight, 1 / 48)
        self.act = nn.ReLU(inplace=True)
        mask = torch.zeros(2, 8, 8)
        mask[0, :4, 4:], mask[1, 4:, :4] = 1 / 16, 1 / 16
        self.register_buffer("mask", mask)

    def forward(self, pixel_values):
        return torch.einsum("bhw,khw->bk", self.act(self.conv(pixel_values))[:, 0], self.mask)


class Tokens(nn.Module):
    """A class token that reads one patch through its channels: output 0 follows the patch with the given colour."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 3, 8, stride=8, bias=False)
        with torch.no_grad():
            self.patches.weight.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 8, 8) / 64)
        self.norm = nn.Identity()
        self.head = nn.Linear(3, 1, bias=False)
        nn.init.constant_(self.head.weight, 0.0)
        self.head.weight.data[0, 0] = 1.0

    def forward(self, pixel_values):
        tokens = self.patches(pixel_values).flatten(2).transpose(1, 2)
        tokens = self.norm(torch.cat([torch.zeros(len(tokens), 1, 3), tokens], dim=1))
        return self.head(tokens[:, 1:].relu().mean(dim=1))


def picture(size: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, 3, size, size)).astype(np.float32)


@pytest.mark.parametrize(("output", "row", "column"), [(0, 0, 1), (1, 1, 0)])
def test_map_lights_up_where_the_planted_pattern_is(output, row, column):
    pixels = np.full((1, 3, 32, 32), 0.05, dtype=np.float32)
    pixels[..., 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 1.0
    found = gradcam(Brightness(), pixels, output)
    assert found.heat is not None
    assert found.heat.shape == (8, 8)
    quadrant = np.zeros((8, 8), dtype=bool)
    quadrant[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = True
    assert found.heat[quadrant].min() > 10 * found.heat[~quadrant].max()
    assert found.heat.max() == 1.0


def test_tokens_are_laid_back_onto_their_grid_without_the_class_token():
    pixels = np.zeros((1, 3, 32, 32), dtype=np.float32)
    pixels[0, 0, 8:16, 24:32] = 1.0  # the only red patch: row 1, column 3 of 4 × 4
    pixels[0, 1, 24:32, 0:8] = 5.0  # green says nothing to the output
    found = gradcam(Tokens(), pixels, 0)
    assert found.layer == "norm"
    assert found.heat is not None
    assert found.heat.shape == (4, 4)
    assert np.unravel_index(found.heat.argmax(), (4, 4)) == (1, 3)
    assert np.count_nonzero(found.heat) == 1


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("test_resnet", (2, 2)),
        ("test_efficientnet", (2, 2)),
        ("test_convnext", (2, 2)),
        ("test_vit", (10, 10)),
        ("test_vit2", (10, 10)),
    ],
)
def test_networks_of_every_kind_give_a_map_on_the_grid_of_their_last_layer(name, shape):
    found = gradcam(Wrapped(name).eval(), picture(160 if shape == (10, 10) else 64), 1)
    assert found.heat is not None, found.reason
    assert found.heat.shape == shape
    assert found.heat.dtype == np.float32
    assert 0 <= found.heat.min() <= found.heat.max() <= 1
    assert not isinstance(Wrapped(name).get_submodule(found.layer), nn.Linear)


def test_a_class_token_network_is_read_before_its_last_attention():
    found = gradcam(Wrapped("test_vit").eval(), picture(160), 0)
    assert found.layer == "timm_model.blocks.5.norm1"


def test_channels_last_maps_and_pictures_that_are_not_square_are_read_the_right_way_round():
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 8, stride=8, bias=False)
            nn.init.constant_(self.conv.weight, 0.1)
            self.turn = Turn()

        def forward(self, pixels):
            return self.turn(self.conv(pixels))[:, :, :, :1].relu().sum(dim=(1, 2))

    class Turn(nn.Module):
        def forward(self, maps):
            return maps.permute(0, 2, 3, 1)

    pixels = np.zeros((1, 3, 16, 48), dtype=np.float32)
    pixels[..., 8:, 40:] = 1.0
    found = gradcam(Last(), pixels, 0)
    assert found.layer == "turn"
    assert found.heat is not None
    assert found.heat.shape == (2, 6)
    assert np.unravel_index(found.heat.argmax(), (2, 6)) == (1, 5)


def test_network_is_left_as_it_was():
    module = Wrapped("test_resnet")
    module.train()
    module.timm_model.layer1.eval()
    for parameter in module.timm_model.layer2.parameters():
        parameter.requires_grad_(False)
    weight = module.timm_model.get_classifier().weight
    weight.grad = torch.full_like(weight, 0.5)
    modes = [child.training for child in module.modules()]
    flags = [parameter.requires_grad for parameter in module.parameters()]
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    gradcam(module, picture(64), 0)
    assert [child.training for child in module.modules()] == modes
    assert [parameter.requires_grad for parameter in module.parameters()] == flags
    assert [p.grad is None for p in module.parameters()] == [p is not weight for p in module.parameters()]
    assert torch.equal(weight.grad, torch.full_like(weight, 0.5))
    assert all(torch.equal(state[name], tensor) for name, tensor in module.state_dict().items())
    assert not any(child._forward_hooks for child in module.modules())


def test_a_wholly_frozen_network_is_explained_even_where_gradients_are_off():
    module = Wrapped("test_resnet").eval().requires_grad_(False)
    free = gradcam(Wrapped("test_resnet").eval(), picture(64), 2).heat
    with torch.inference_mode():
        frozen = gradcam(module, picture(64), 2).heat
    assert free is not None
    assert frozen is not None
    np.testing.assert_array_equal(free, frozen)


def test_network_without_a_map_says_so():
    found = gradcam(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), picture(4), 0)
    assert found.heat is None
    assert found.reason == "No layer of this network gives a map of the picture."


def test_output_that_depends_on_nothing_says_so():
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    nn.init.zeros_(module[3].weight)
    found = gradcam(module, picture(8), 1)
    assert found.heat is None
    assert found.reason == "Output 1 does not depend on any map of the picture."

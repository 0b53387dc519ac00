"""Tiny image classifiers with settled batch statistics, and pictures that they tell apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from finetune.export.calibrate import Statistics
from finetune.preprocess import ImageEncoder, ImageInput, ImagePreprocess

SIZE = 32
CLASSES = 5
ENCODER = ImageEncoder(
    ImagePreprocess((SIZE, SIZE), (SIZE, SIZE), "squash", "bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
)


def pictures(count: int, seed: int = 0) -> list[ImageInput]:
    """Coloured waves of several directions and widths, uint8 (40, 48, 3)."""
    generator = np.random.default_rng(seed)
    down, right = np.mgrid[0:40, 0:48]
    found: list[ImageInput] = []
    for _ in range(count):
        waves = [np.sin(generator.normal(0, 0.4) * down + generator.normal(0, 0.4) * right) for _ in range(3)]
        tint = generator.uniform(30, 120, size=3)
        found.append((128 + np.stack(waves, axis=2) * tint).astype(np.uint8))
    return found


class DepthwiseNet(nn.Module):
    """Stem, one inverted residual block with ReLU6, and a head: what is hard to quantise about EfficientNet-Lite."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.blocks = nn.ModuleList([Block(8) for _ in range(2)])
        self.head = nn.Linear(8, CLASSES)

    def forward(self, pixel_values: torch.Tensor) -> Answer:
        hidden = self.stem(pixel_values)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return Answer(self.head(hidden.mean(dim=(2, 3))))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(4 * width)
        self.depthwise = nn.Conv2d(4 * width, 4 * width, 3, 1, 1, groups=4 * width, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * width)
        self.narrow = nn.Conv2d(4 * width, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        wide = nn.functional.relu6(self.bn1(self.wide(hidden)))
        spread = nn.functional.relu6(self.bn2(self.depthwise(wide)))
        narrow: torch.Tensor = self.bn3(self.narrow(spread))
        return narrow


def Answer(logits: torch.Tensor) -> object:  # noqa: N802 - stands for the class that transformers answers with
    from transformers.modeling_outputs import ImageClassifierOutput

    return ImageClassifierOutput(logits=logits)


def depthwise_net() -> nn.Module:
    return settled(DepthwiseNet)


def timm_net(architecture: str) -> nn.Module:
    """A timm network as transformers wraps it."""
    import transformers as hf

    def build() -> nn.Module:
        config = hf.TimmWrapperConfig(architecture=architecture, num_labels=CLASSES, do_pooling=True)
        network: nn.Module = hf.TimmWrapperForImageClassification(config)
        return network

    return settled(build)


def transformers_net(name: str) -> nn.Module:
    """A small ResNet or ViT of transformers."""
    import transformers as hf

    configs: dict[str, Callable[[], hf.PreTrainedConfig]] = {
        "resnet": lambda: hf.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=CLASSES
        ),
        "vit": lambda: hf.ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=SIZE,
            patch_size=8,
            num_labels=CLASSES,
            initializer_range=0.1,
        ),
    }
    return settled(lambda: hf.AutoModelForImageClassification.from_config(configs[name]()))


def settled(build: Callable[[], nn.Module]) -> nn.Module:
    """The network with running statistics of real pictures, and a last layer whose answers differ between them."""
    torch.manual_seed(0)
    model = build()
    pixels = torch.from_numpy(ENCODER(pictures(64, seed=9))["pixel_values"])
    model.train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the average over all batches
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.5)
        model(pixel_values=pixels)
        model.eval()
        head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        logits = model(pixel_values=pixels).logits
        factor = 3 / logits.std(dim=0).mean()
        head.weight *= factor
        head.bias.copy_(-factor * (logits.mean(dim=0) - head.bias))
    return model


@dataclass(frozen=True)
class Exported:
    """A tiny convnet, its fp32 file, and what its tensors are on calibration pictures."""

    model: nn.Module
    path: Path
    statistics: dict[str, Statistics]
    rows: list[ImageInput]
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]

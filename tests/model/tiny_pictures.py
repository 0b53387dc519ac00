"""Small random image classifiers of real architectures, saved as hub-style folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
import transformers as hf
from safetensors.torch import save_file
from tiny_models import save
from torch import nn

from finetune.model.backbone import TransferModel, blank_picture, load_backbone

LABELS = ("cracked", "whole", "dirty")
PIXELS = 64

_VIT: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24,
    "image_size": PIXELS, "patch_size": 16,
}  # fmt: skip
STAGES: dict[str, Any] = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
# fmt: off
CLASSIFIERS: dict[str, Any] = {
    "resnet": lambda: hf.ResNetConfig(embedding_size=8, layer_type="basic", **STAGES),
    "vit": lambda: hf.ViTConfig(**_VIT),
    "deit": lambda: hf.DeiTConfig(**_VIT, architectures=["DeiTForImageClassification"]),
    "convnext": lambda: hf.ConvNextConfig(**STAGES),
    "efficientnet": lambda: hf.EfficientNetConfig(width_coefficient=0.25, depth_coefficient=0.1, hidden_dim=320),
    "swin": lambda: hf.SwinConfig(image_size=PIXELS, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4),
    "poolformer": lambda: hf.PoolFormerConfig(**STAGES),
    "clip": lambda: hf.CLIPConfig(
        vision_config=_VIT, text_config={"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    ),
}
# fmt: on


def classifier(folder: Path, name: str, *, labels: int = 3) -> Path:
    """A transformers image classifier, as a checkpoint."""
    config = CLASSIFIERS[name]()
    config.num_labels = labels
    return save(folder, hf.AutoModelForImageClassification, config)


def timm_network(name: str, **arguments: Any) -> Any:
    """A timm network with random values and running statistics; torch's generator stays where it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = timm.create_model(name, pretrained=False, **arguments)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return network


def timm_folder(folder: Path, name: str, *, labels: int = 1000, config: Any = None, **arguments: Any) -> Path:
    """A timm checkpoint as it lies on the hub."""
    network = timm_network(name, num_classes=labels, **arguments)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    cfg = {k: v for k, v in network.pretrained_cfg.items() if k not in ("num_classes", "architecture")}
    content = {
        "architecture": name, "num_classes": labels, "num_features": network.num_features,
        "global_pool": "avg", "pretrained_cfg": cfg, **(config or {}),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def load_picture_model(folder: Path, *, pixels: int = PIXELS, **changes: Any) -> TransferModel:
    """`load_backbone` with the arguments that most tests of images share."""
    arguments: dict[str, Any] = {
        "labels": LABELS,
        "auto_class": "AutoModelForImageClassification",
        "problem_type": "single_label_classification",
        "outputs": len(LABELS),
        "dropout": None,
        "seed": 0,
        "probe": blank_picture((pixels, pixels)),
    }
    return load_backbone(folder, **{**arguments, **changes})


def pictures(rows: int = 2, pixels: int = PIXELS) -> torch.Tensor:
    return torch.randn(rows, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))

"""Small real jobs on pictures: timm's own test networks from their configuration, with BatchNorm and tiny random pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
from torch import nn
from train_samples import accuracy, cross_entropy, small_plan
from transformers.modeling_outputs import ImageClassifierOutput

from finetune.model.backbone import TransferModel
from finetune.model.groups import LayerGroup, LayerGroups
from finetune.recipe import L2SPSettings, TrainSettings
from finetune.tasks import TASKS
from finetune.train.job import Batch, EncodedExamples, Job, Moment, Rows

LABELS, SIDE = 3, 16
STEM = ("conv1", "bn1", "act1", "maxpool", "conv_stem")
HEAD = ("", "net", "global_pool", "fc", "classifier")


class Pictured(nn.Module):
    """A timm network that is called as transformers' image classifiers are."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        return ImageClassifierOutput(logits=self.net(pixel_values))


def picture_model(name: str = "test_efficientnet", *, seed: int = 0) -> TransferModel:
    """Layer groups stem, block 0, ..., head; the running statistics have seen a few pictures, as pretrained ones have."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = timm.create_model(name, pretrained=False, num_classes=LABELS)
        module = Pictured(net)
        with torch.no_grad():
            for _ in range(3):
                module(torch.randn(4, 3, SIDE, SIDE) + 0.5)
    fresh = frozenset(n for n, _ in module.named_parameters() if n.startswith(("net.fc.", "net.classifier.")))
    return TransferModel(module.eval(), groups_of(module), fresh, type(net).__name__)


def groups_of(module: nn.Module) -> LayerGroups:
    """By name, which is enough for the two architectures here; what follows the last block goes with it."""
    blocks = sorted({b for name, _ in module.named_modules() if (b := _block(name)) is not None})
    names = ["stem", *(f"block {i}" for i in blocks), "head"]

    def home(name: str) -> str:
        inner = name.removeprefix("net.")
        if inner in HEAD or inner.split(".")[0] in HEAD:
            return "head"
        block = _block(name)
        return "stem" if inner.split(".")[0] in STEM else f"block {blocks[-1] if block is None else block}"

    return LayerGroups(
        tuple(
            LayerGroup(
                group,
                tuple(n for n, _ in module.named_parameters() if home(n) == group),
                tuple(n for n, _ in module.named_modules() if home(n) == group),
            )
            for group in names
        )
    )


def _block(name: str) -> int | None:
    parts = name.removeprefix("net.").split(".")
    if parts[0] == "blocks" and len(parts) > 1:
        return int(parts[1])
    return int(parts[0].removeprefix("layer")) - 1 if parts[0].startswith("layer") else None


def stack(pictures: Sequence[Any]) -> dict[str, np.ndarray]:
    return {"pixel_values": np.stack(pictures)}


def picture_rows(count: int, *, seed: int = 0) -> Rows:
    """Pictures of noise whose mean colour tells the label."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % LABELS
    pictures = rng.normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)
    pictures[np.arange(count), labels] += 1.0
    return Rows(list(pictures), [1] * count, labels)


@dataclass(frozen=True)
class Shaken:
    """Rows whose pictures are shifted far off in training, as no augmentation would, so that statistics show who saw them."""

    plain: EncodedExamples

    @property
    def lengths(self) -> Sequence[int]:
        return self.plain.lengths

    @property
    def labels(self) -> np.ndarray:
        return self.plain.labels

    def batch(self, rows: Sequence[int], moment: Moment) -> Batch:
        inputs, targets = self.plain.batch(rows, moment)
        return {"pixel_values": inputs["pixel_values"] + np.float32(5.0)}, targets


def picture_job(
    name: str = "test_efficientnet", *, rows: int = 18, transfer: dict[str, Any] | None = None,
    l2sp: L2SPSettings | None = None, shaken: bool = False, batchnorm: Any = "train", seed: int = 0, **train: Any,
) -> Job:  # fmt: skip
    """By default two phases of one epoch of three steps: the head, then the two layer groups below it too."""
    settings = TrainSettings(**{"batch_size": 6, "eval_batch_size": 8, **train})
    model, pictures = picture_model(name), picture_rows(rows)
    plain = EncodedExamples(pictures.inputs, pictures.lengths, pictures.labels, stack)
    chosen = {"unfreeze": "lp_ft", "depth": 3, "epochs": 1, "head_epochs": 1, "learning_rate": 1e-2, **(transfer or {})}
    return Job(
        model=model,
        plan=small_plan(settings, len(model.groups), **chosen),
        train=Shaken(plain) if shaken else plain,
        plain=plain,
        validation=picture_rows(9, seed=1),
        collate=stack,
        task=TASKS["image_classification"],
        settings=settings,
        l2sp=l2sp or L2SPSettings(),
        class_weights=None,
        score=accuracy,
        validation_loss=cross_entropy,
        higher_is_better=True,
        seed=seed,
        batchnorm=batchnorm,
    )

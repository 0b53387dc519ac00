"""The scale of a regression's targets inside its last layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import load, save_body
from tiny_pictures import load_picture_model, pictures, timm_folder
from torch import nn

from finetune.errors import SourceError
from finetune.model.backbone import TransferModel
from finetune.model.scale import fold_scale

NUMBER: dict[str, Any] = {"problem_type": "regression", "labels": (), "outputs": 1}
IDS = torch.tensor([[7, 8, 9, 2], [9, 9, 3, 2]])


def answers(model: TransferModel) -> torch.Tensor:
    model.module.eval()
    with torch.no_grad():
        if "pixel_values" in model.module.forward.__code__.co_varnames:
            return model.module(pixel_values=pictures()).logits
        return model.module(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def timm_model(name: str) -> Callable[[Path], TransferModel]:
    return lambda folder: load_picture_model(timm_folder(folder, name, labels=4), **NUMBER)


def text_model(name: str) -> Callable[[Path], TransferModel]:
    return lambda folder: load(save_body(folder, name), name=name, **NUMBER)


@pytest.mark.parametrize(
    "make", [timm_model("test_resnet"), timm_model("dla46_c"), text_model("bert"), text_model("roberta")],
    ids=["resnet", "classifier as convolution", "bert", "head of two layers"],
)  # fmt: skip
def test_folding_turns_y_into_y_times_std_plus_mean(tmp_path: Path, make: Callable[[Path], TransferModel]) -> None:
    model = make(tmp_path)
    before = answers(model)
    fold_scale(model.module, model.fresh, mean=250.0, std=40.0)
    torch.testing.assert_close(answers(model), before * 40 + 250)


def test_the_mean_of_two_classifiers_is_scaled_once(tmp_path: Path) -> None:
    class Distilled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 1)
            self.head, self.head_dist = nn.Linear(4, 1), nn.Linear(4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.head(x) + self.head_dist(x)) / 2

    module, x = Distilled(), torch.randn(3, 4)
    fresh = {f"{layer}.{part}" for layer in ("head", "head_dist") for part in ("weight", "bias")}
    before, body = module(x), module.body.weight.clone()
    fold_scale(module, fresh, mean=-3.0, std=0.5)
    torch.testing.assert_close(module(x), before * 0.5 - 3)
    assert torch.equal(module.body.weight, body)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_last_layer_without_bias_is_refused_before_training(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match="its last layer has no bias"):
        text_model(name)(tmp_path)


def test_a_head_with_several_outputs_is_refused(tmp_path: Path) -> None:
    model = load_picture_model(timm_folder(tmp_path, "test_resnet", labels=4))
    with pytest.raises(SourceError, match="no last layer with one output"):
        fold_scale(model.module, model.fresh, 0.0, 1.0)

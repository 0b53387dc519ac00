"""Layer groups of timm models: their authors' own division, and nothing left over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import timm
import torch
from tiny_pictures import timm_network
from torch import nn

from finetune.errors import SourceError
from finetune.model.groups import LayerGroups
from finetune.model.timm_groups import classifier_parameters, timm_layer_groups


class Around(nn.Module):
    """Stands where transformers' wrapper does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.timm_model = network

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.timm_model(pixel_values)


def grouped(network: Any, *, pixels: int = 64, device: str = "cpu") -> tuple[Around, LayerGroups]:
    model = Around(network)
    picture = torch.zeros(1, 3, pixels, pixels, device=device)
    return model, timm_layer_groups(model, "timm_model", lambda: model(picture), trial="a picture")


def on_meta(name: str) -> Any:
    """A network without values: only its shape is needed."""
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False, num_classes=3)


def parts(groups: LayerGroups) -> Mapping[str, set[str]]:
    return {group.name: {name.removeprefix("timm_model.") for name in group.parameters} for group in groups.groups}


# Beside the obvious: a stem without a key, parameters of the network itself, two classifiers, normalisation inside the
# head, no group_matcher at all (PoolFormer, PiT), a fine one only (RDNet), matchers that are functions (CaiT, Inception), a
# coarse one that forgets what the fine one knows and the shares of the stages' answers (EfficientViM).
SHAPES: dict[str, tuple[int, int, str]] = {
    "resnet18": (64, 6, "stage"),
    "tf_efficientnet_lite0": (64, 9, "stage"),
    "mobilenetv3_small_050": (64, 8, "stage"),
    "regnetx_002": (64, 6, "stage"),
    "densenet121": (64, 6, "stage"),
    "convnext_atto": (64, 6, "stage"),
    "vgg11": (224, 9, "block"),
    "rexnet_100": (64, 19, "block"),
    "vit_tiny_patch16_224": (224, 14, "block"),
    "deit_tiny_distilled_patch16_224": (224, 14, "block"),
    "cait_xxs24_224": (224, 26, "block"),
    "swin_tiny_patch4_window7_224": (224, 6, "stage"),
    "mixer_s32_224": (224, 10, "block"),
    "levit_128s": (224, 5, "stage"),
    "inception_v3": (299, 14, "block"),
    "poolformer_s12": (64, 6, "stage"),
    "pit_ti_224": (224, 5, "stage"),
    "rdnet_tiny": (64, 9, "block"),
    "efficientvim_m2": (224, 5, "stage"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_parameter_and_module_is_in_exactly_one_group(name: str) -> None:
    pixels, count, kind = SHAPES[name]
    model, groups = grouped(on_meta(name), pixels=pixels, device="meta")
    assert list(groups.names) == ["stem", *(f"{kind} {i}" for i in range(count - 2)), "head"]
    assert all(group.parameters for group in groups.groups)
    parameters = [n for group in groups.groups for n in group.parameters]
    assert sorted(parameters) == sorted(n for n, _ in model.named_parameters())
    modules = [n for group in groups.groups for n in group.modules]
    assert sorted(modules) == sorted(n for n, _ in model.named_modules())
    assert {f"timm_model.{n}" for n in classifier_parameters(model.timm_model)} <= set(groups.head.parameters)


def test_resnet_groups_are_stem_four_stages_and_classifier() -> None:
    _, groups = grouped(on_meta("resnet18"), device="meta")
    found = parts(groups)
    assert found["stem"] == {"conv1.weight", "bn1.weight", "bn1.bias"}
    assert all(name.startswith("layer3.") for name in found["stage 2"])
    assert found["head"] == {"fc.weight", "fc.bias"}


def test_what_the_matcher_joins_to_the_last_stage_stays_there_and_what_it_leaves_out_is_the_heads() -> None:
    _, efficient = grouped(on_meta("tf_efficientnet_lite0"), device="meta")
    assert {"conv_head.weight", "bn2.weight"} <= parts(efficient)["stage 6"]
    assert parts(efficient)["head"] == {"classifier.weight", "classifier.bias"}
    _, dense = grouped(on_meta("densenet121"), device="meta")
    assert parts(dense)["head"] == {
        "features.norm5.weight", "features.norm5.bias", "classifier.weight", "classifier.bias"
    }  # fmt: skip


def test_both_classifiers_of_a_distilled_network_are_the_head() -> None:
    _, groups = grouped(on_meta("deit_tiny_distilled_patch16_224"), pixels=224, device="meta")
    assert parts(groups)["head"] == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    assert {"cls_token", "dist_token", "pos_embed"} <= parts(groups)["stem"]


def test_shares_of_the_stages_answers_are_the_heads_and_the_fine_division_places_what_the_coarse_one_forgets() -> None:
    _, groups = grouped(on_meta("efficientvim_m2"), pixels=224, device="meta")
    found = parts(groups)
    assert {"weights", "heads.0.weight", "heads.3.bias"} <= found["head"]
    assert {"norm.0.weight", "norm.1.bias"} <= found["stage 2"]


class Shifted(nn.Module):
    """A small timm network with a parameter of its own that some part of a pass uses, or none."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.network = timm_network("test_resnet", num_classes=3)
        self.shift = nn.Parameter(torch.zeros(1))
        self.where = where

    def group_matcher(self, coarse: bool = False) -> Mapping[str, str]:
        return {"stem": r"^network\.(?:conv1|bn1)", "blocks": r"^network\.layer(\d+)"}

    def get_classifier(self) -> Any:
        return self.network.fc

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.shift.shape == (1,)
        if self.where == "before":
            x = x + self.shift.expand(3, 1, 1)
        if self.where == "joined before":
            x = x + torch.cat([x.new_ones(1), self.shift]).sum()
        features = self.network.forward_head(self.network.forward_features(x))
        return features + self.shift if self.where == "after" else features


def test_a_parameter_of_the_network_itself_that_is_first_used_at_the_end_is_the_heads() -> None:
    model, groups = grouped(Shifted("after"))
    assert "timm_model.shift" in groups.head.parameters
    assert sorted(n for group in groups.groups for n in group.parameters) == sorted(
        n for n, _ in model.named_parameters()
    )
    assert model.training


@pytest.mark.parametrize("where", ["before", "joined before", "nowhere"])
def test_a_parameter_of_the_network_itself_that_is_used_early_or_never_is_refused_by_name(where: str) -> None:
    with pytest.raises(SourceError, match="Shifted: its authors put parameter 'shift' into no layer group"):
        grouped(Shifted(where))


def test_modules_without_parameters_belong_where_they_lie_or_run() -> None:
    model, groups = grouped(timm_network("test_efficientnet", num_classes=3, drop_rate=0.5, drop_path_rate=0.2))
    depth = {name: at for at, group in enumerate(groups.groups) for name in group.modules}
    assert depth["timm_model.bn1"] == depth["timm_model.bn1.act"] == 0
    for name, at in depth.items():
        inside = name.split(".blocks.")
        if len(inside) == 2 and inside[1]:
            assert groups.names[at] == f"block {inside[1].split('.')[0]}", name
    # The network drops out what enters its classifier in its own forward method, so it is in training mode with its head.
    head = len(groups) - 1
    assert depth[""] == depth["timm_model"] == depth["timm_model.global_pool"] == depth["timm_model.classifier"] == head
    model.eval()
    picture = torch.ones(2, 3, 64, 64)
    still = model(picture)
    for name in groups.head.modules:
        model.get_submodule(name).training = True
    noisy = model(picture)
    assert not torch.equal(still, noisy)


def test_head_training_leaves_the_statistics_of_what_is_below() -> None:
    model, groups = grouped(timm_network("test_resnet", num_classes=3))
    model.eval()
    for name in groups.head.modules:
        model.get_submodule(name).training = True
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(torch.ones(2, 3, 64, 64))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_a_parameter_that_no_group_takes_is_refused_by_name() -> None:
    network = timm_network("test_resnet", num_classes=3)
    network.idle = nn.Linear(2, 2)
    with pytest.raises(SourceError, match=r"ResNet: its authors put parameter 'idle\.weight' into no layer group"):
        grouped(network)


def test_a_layer_before_the_end_that_the_matcher_forgot_is_refused_by_name() -> None:
    network = timm_network("test_resnet", num_classes=3)
    network.maxpool = nn.Sequential(network.maxpool, nn.BatchNorm2d(network.bn1.num_features))
    network.group_matcher = lambda coarse=False: {"stem": r"^conv1|bn1", "blocks": r"^layer(\d+)"}
    with pytest.raises(SourceError, match=r"'maxpool\.1\.weight'"):
        grouped(network)


def test_a_network_without_a_classifier_or_without_stages_is_refused() -> None:
    with pytest.raises(SourceError, match="Linear has no classifier"):
        grouped(nn.Linear(64, 3))
    network = timm_network("test_resnet", num_classes=3)
    network.group_matcher = lambda coarse=False: {"stem": r"^nothing"}
    with pytest.raises(SourceError, match="ResNet does not say where its stages are"):
        grouped(network)


def test_a_picture_of_a_size_that_the_network_refuses_is_one_sentence() -> None:
    with pytest.raises(SourceError, match="fails on a picture") as caught:
        grouped(on_meta("vit_tiny_patch16_224"), pixels=48, device="meta")
    assert "\n" not in str(caught.value)

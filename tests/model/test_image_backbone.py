"""Image classifiers of timm and transformers with a new head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tiny_models import load as load_text
from tiny_models import save_body
from tiny_pictures import CLASSIFIERS, LABELS, PIXELS, classifier, load_picture_model, pictures, timm_folder
from torch import nn

from finetune.errors import RecipeError, SourceError
from finetune.model.quiet import quiet_transformers

HEAD = {"timm_model.fc.weight", "timm_model.fc.bias"}


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = [f"n{i}" for i in range(1000)]
    return timm_folder(
        tmp_path_factory.mktemp("resnet"), "test_resnet",
        config={"label_names": names, "label_descriptions": dict.fromkeys(names, "a thing")},
    )  # fmt: skip


def logits(module: Any, inputs: torch.Tensor) -> torch.Tensor:
    module.eval()
    with torch.no_grad():
        return module(pixel_values=inputs).logits


# timm


@pytest.mark.parametrize(
    ("name", "pixels", "new"),
    [
        ("test_resnet", 64, {"fc"}),
        ("test_efficientnet", 64, {"classifier"}),
        ("test_convnext", 64, {"head.fc"}),
        ("test_vit", 160, {"head"}),
        ("swin_tiny_patch4_window7_224", 224, {"head.fc"}),
        ("deit_tiny_distilled_patch16_224", 224, {"head", "head_dist"}),
    ],
)
def test_a_timm_network_is_the_checkpoint_with_a_new_classifier(
    tmp_path: Path, name: str, pixels: int, new: set[str]
) -> None:
    small: dict[str, Any] = {}
    if name.startswith("swin"):
        small = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2)}
    if name.startswith("deit"):
        small = {"embed_dim": 12, "depth": 2}
    folder = timm_folder(tmp_path / "body", name, labels=7, config={"model_args": small}, **small)
    model = load_picture_model(folder, pixels=pixels)
    assert model.fresh == {f"timm_model.{layer}.{part}" for layer in new for part in ("weight", "bias")}
    assert model.architecture == name
    tensors = {
        f"timm_model.{k}": v
        for k, v in load_file(folder / "model.safetensors").items()
        if f"timm_model.{k}" not in model.fresh
    }
    state = model.module.state_dict()
    assert all(torch.equal(state[k], v) for k, v in tensors.items())
    # timm itself with the same values answers the same: nothing that is not saved, such as index tables, was lost.
    own = timm.create_model(name, pretrained=False, num_classes=3, **small)
    own.load_state_dict({k.removeprefix("timm_model."): v for k, v in state.items()})
    with torch.no_grad():
        expected = own.eval()(pictures(pixels=pixels))
    assert torch.equal(logits(model.module, pictures(pixels=pixels)), expected)


def test_the_new_classifier_begins_small_and_depends_on_the_seed_alone(resnet: Path) -> None:
    torch.manual_seed(1)
    first = load_picture_model(resnet, seed=5)
    state = torch.get_rng_state()
    again = load_picture_model(resnet, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    other = load_picture_model(resnet, seed=6)
    weights = [model.module.timm_model.fc.weight.detach() for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert float(weights[0].std()) == pytest.approx(0.02, rel=0.3)
    assert not first.module.timm_model.fc.bias.any()
    assert first.fresh == HEAD


def test_a_classifier_for_as_many_labels_is_still_new(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path, "test_resnet", labels=len(LABELS))
    model = load_picture_model(folder)
    assert model.fresh == HEAD
    assert not torch.equal(model.module.timm_model.fc.weight, load_file(folder / "model.safetensors")["fc.weight"])


def test_a_checkpoint_of_features_alone_gets_a_classifier(tmp_path: Path) -> None:
    model = load_picture_model(timm_folder(tmp_path, "test_resnet", labels=0))
    assert model.fresh == HEAD
    assert logits(model.module, pictures()).shape == (2, 3)


def test_what_is_saved_loads_in_timm_and_in_transformers(resnet: Path, tmp_path: Path) -> None:
    model = load_picture_model(resnet, dropout=0.25, drop_path=0.1)
    with quiet_transformers():
        model.module.save_pretrained(tmp_path)
        again = hf.AutoModelForImageClassification.from_pretrained(tmp_path)
    expected = logits(model.module, pictures())
    assert torch.equal(logits(again, pictures()), expected)
    network = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(network(pictures()), expected)
    assert again.config.id2label == dict(enumerate(LABELS))
    saved = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert (saved["num_classes"], saved["label_names"]) == (3, list(LABELS))
    assert "a thing" not in json.dumps(saved)


def test_dropout_and_stochastic_depth_reach_the_network(resnet: Path) -> None:
    def rates(**settings: float) -> tuple[float, list[float]]:
        network: Any = load_picture_model(resnet, **settings).module.timm_model
        paths = [m.drop_prob for m in network.modules() if type(m).__name__ == "DropPath"]
        return network.drop_rate, paths

    assert rates() == (0.0, [])
    dropout, paths = rates(dropout=0.25, drop_path=0.1)
    assert dropout == 0.25
    assert max(paths) == pytest.approx(0.1)
    assert rates(drop_path=0.0) == (0.0, [])


def test_the_arguments_of_a_checkpoint_are_kept_but_not_where_its_weights_come_from(tmp_path: Path) -> None:
    arguments = {"global_pool": "max", "num_classes": 5, "pretrained": True, "checkpoint_path": "/else/where.pth"}
    folder = timm_folder(tmp_path, "test_resnet", config={"model_args": {**arguments, "drop_path_rate": 0.3}})
    module: Any = load_picture_model(folder).module
    assert module.config.model_args == {"global_pool": "max"}
    assert module.timm_model.global_pool.pool_type == "max"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drop_path": 0.1}, r"^backbone\.drop_path: vgg11 has no stochastic depth; remove the key$"),
        ({"dropout": 0.1}, None),
    ],
)
def test_a_network_without_stochastic_depth_refuses_it(tmp_path: Path, settings: Any, message: str | None) -> None:
    folder = tmp_path / "vgg"
    folder.mkdir()
    with torch.device("meta"):
        network = timm.create_model("vgg11", pretrained=False)
    save_file({"nothing": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    cfg = {
        "architecture": "vgg11",
        "num_classes": 5,
        "pretrained_cfg": {"classifier": network.pretrained_cfg["classifier"]},
    }
    (folder / "config.json").write_text(json.dumps(cfg), encoding="utf-8")
    error = RecipeError if message else SourceError
    with pytest.raises(error, match=message or "lacks the weights"):
        load_picture_model(folder, pixels=224, **settings)


def test_weights_that_are_missing_below_the_head_are_refused_by_name(resnet: Path, tmp_path: Path) -> None:
    tensors = load_file(resnet / "model.safetensors")
    for absent in ("layer2.0.conv1.weight", "layer1.0.bn1.running_var"):
        folder = tmp_path / absent
        folder.mkdir()
        (folder / "config.json").write_bytes((resnet / "config.json").read_bytes())
        kept = {k: v for k, v in tensors.items() if k != absent}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(SourceError, match=rf"lacks the weights of 1 parameters below the head, such as .*{absent}"):
            load_picture_model(folder)


def test_an_architecture_that_timm_does_not_know_is_one_sentence(resnet: Path, tmp_path: Path) -> None:
    config = json.loads((resnet / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "architecture": "resnet_of_tomorrow"}), "utf-8")
    (tmp_path / "model.safetensors").write_bytes((resnet / "model.safetensors").read_bytes())
    with pytest.raises(SourceError, match="resnet_of_tomorrow") as caught:
        load_picture_model(tmp_path)
    assert "\n" not in str(caught.value)


# transformers


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_transformers_classifier_is_the_checkpoint_with_a_new_classifier(tmp_path: Path, name: str) -> None:
    folder = classifier(tmp_path, name)
    model = load_picture_model(folder)
    with quiet_transformers():
        saved = hf.AutoModelForImageClassification.from_pretrained(folder).state_dict()
    outputs = {n for n in model.fresh if n.endswith("weight")}
    assert len(outputs) == 1
    assert model.fresh == {n for output in outputs for n in (output, output.replace("weight", "bias"))}
    for key, value in model.module.state_dict().items():
        if key not in model.fresh or key in outputs:
            assert torch.equal(value, saved[key]) == (key not in outputs), key
    names = [n for group in model.groups.groups for n in group.parameters]
    assert sorted(names) == sorted(n for n, _ in model.module.named_parameters())
    assert model.fresh <= set(model.groups.head.parameters)
    assert len(model.groups) >= 4
    assert logits(model.module, pictures()).shape == (2, 3)


def test_the_groups_of_a_transformers_resnet_are_its_stages(tmp_path: Path) -> None:
    model = load_picture_model(classifier(tmp_path, "resnet", labels=9))
    assert model.groups.names == ("embeddings", "block 0", "block 1", "block 2", "block 3", "head")
    assert all(".stages.1." in name for name in model.groups.groups[2].parameters)
    # The normalisation layers' statistics follow their module.
    assert any(".stages.1." in n and n.endswith("normalization") for n in model.groups.groups[2].modules)


def test_stochastic_depth_of_transformers_is_set_in_the_configuration_or_refused(tmp_path: Path) -> None:
    swin: Any = load_picture_model(classifier(tmp_path / "swin", "swin"), drop_path=0.3).module
    assert swin.config.drop_path_rate == 0.3
    folder = classifier(tmp_path / "resnet", "resnet")
    with pytest.raises(RecipeError, match=r"backbone\.drop_path: resnet has no stochastic depth"):
        load_picture_model(folder, drop_path=0.3)
    load_picture_model(folder, drop_path=0.0)


def test_head_dropout_of_efficientnet_survives_saving(tmp_path: Path) -> None:
    model = load_picture_model(classifier(tmp_path / "body", "efficientnet"), dropout=0.125)
    with quiet_transformers():
        model.module.save_pretrained(tmp_path / "saved")
        again = hf.AutoModelForImageClassification.from_pretrained(tmp_path / "saved")
    for module in (model.module, again):
        assert module.dropout.p == 0.125
    with pytest.raises(RecipeError, match=r"^head\.dropout: ResNetForImageClassification has no dropout"):
        load_picture_model(classifier(tmp_path / "resnet", "resnet"), dropout=0.5)


def test_a_picture_of_another_size_than_the_network_takes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"fails on a picture of 96×96 pixels"):
        load_picture_model(classifier(tmp_path, "vit"), pixels=96)


# Targets


@pytest.mark.parametrize("kind", ["timm", "resnet", "text"])
@pytest.mark.parametrize(
    ("problem_type", "labels", "outputs"),
    [("regression", (), 1), ("multi_label_classification", ("a", "b"), 2)],
)
def test_heads_for_numbers_and_for_several_labels(
    tmp_path: Path, kind: str, problem_type: str, labels: tuple[str, ...], outputs: int
) -> None:
    settings: dict[str, Any] = {"problem_type": problem_type, "labels": labels, "outputs": outputs}
    if kind == "text":
        model = load_text(save_body(tmp_path, "bert"), **settings)
    elif kind == "timm":
        model = load_picture_model(timm_folder(tmp_path, "test_resnet", labels=5), **settings)
    else:
        model = load_picture_model(classifier(tmp_path, kind), **settings)
    layers = [m for n, m in model.module.named_modules() if isinstance(m, nn.Linear) and f"{n}.weight" in model.fresh]
    assert [layer.out_features for layer in layers] == [outputs]
    config: Any = model.module.config
    assert config.problem_type == problem_type
    assert config.id2label == (dict(enumerate(labels)) or {0: "LABEL_0"})
    with quiet_transformers():
        model.module.save_pretrained(tmp_path / "saved")  # type: ignore[operator]
    again = hf.AutoConfig.from_pretrained(tmp_path / "saved")
    assert (again.num_labels, again.problem_type) == (outputs, problem_type)


def test_the_probe_is_a_picture_of_the_size_that_it_is_made_for() -> None:
    from finetune.model.backbone import blank_picture

    assert blank_picture((PIXELS, 32))(nn.Identity())["pixel_values"].shape == (1, 3, PIXELS, 32)

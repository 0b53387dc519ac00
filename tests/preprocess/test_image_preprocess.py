"""Images come in right, as torchvision and timm would see them, or are refused by name."""

from __future__ import annotations

import gc
import io
import json
import os
import pickle
import struct
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from awkward_images import AWKWARD, encoded, noise, rgb, turned
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from finetune.errors import BundleError, DataError
from finetune.preprocess import ImageEncoder, ImageFile, ImagePreprocess, open_image
from finetune.preprocess.image_file import absence

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NAMES = ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]


def evaluation(size: tuple[int, int], crop_pct: float, crop_mode: str, interpolation: str):  # type: ignore[no-untyped-def]
    """Our settings, and timm's transforms up to the uint8 picture and to the normalised tensor, for one pretrained_cfg."""
    from timm.data import create_transform

    scaled = int(size[0] / crop_pct), int(size[1] / crop_pct)
    resize = {
        "center": {"resize": scaled[0]} if scaled[0] == scaled[1] else {"resize": scaled, "resize_mode": "cover"},
        "squash": {"resize": scaled, "resize_mode": "squash"},
        "border": {"resize": scaled, "resize_mode": "contain", "fill": tuple(round(255 * m) for m in MEAN)},
    }[crop_mode]
    ours = ImageEncoder(ImagePreprocess(crop=size, interpolation=interpolation, mean=MEAN, std=STD, **resize))  # type: ignore[arg-type]
    common = {"crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": interpolation, "mean": MEAN, "std": STD}
    return ours, create_transform((3, *size), normalize=False, **common), create_transform((3, *size), **common)


@pytest.mark.parametrize(
    ("size", "crop_pct", "crop_mode", "interpolation"),
    [
        *[((32, 32), 0.875, "center", name) for name in NAMES],
        ((24, 40), 0.9, "center", "bicubic"),
        ((24, 40), 0.95, "squash", "bilinear"),
        ((31, 33), 1.0, "border", "bicubic"),
        ((40, 24), 0.8, "border", "bilinear"),
    ],
)
def test_awkward_images_equal_timms_evaluation_transform_in_every_bit(
    size: tuple[int, int], crop_pct: float, crop_mode: str, interpolation: str
) -> None:
    encoder, to_uint8, to_tensor = evaluation(size, crop_pct, crop_mode, interpolation)
    assert encoder.settings.size == size
    for name, data in AWKWARD.items():
        picture = open_image(data)
        pixels = encoder.pixels(data)
        assert pixels.shape == (*size, 3)
        assert np.array_equal(pixels, to_uint8(picture).permute(1, 2, 0).numpy()), name
        (values,) = encoder([data])["pixel_values"]
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, to_tensor(picture).numpy(), rtol=0, atol=1e-6, err_msg=name)


@settings(max_examples=40)
@given(
    height=st.integers(1, 70), width=st.integers(1, 70), edge=st.integers(1, 50),
    crop=st.tuples(st.integers(1, 60), st.integers(1, 60)),
)  # fmt: skip
def test_any_size_is_resized_and_cropped_as_torchvision_does(
    height: int, width: int, edge: int, crop: tuple[int, int]
) -> None:
    from torchvision import transforms

    image = rgb(height, width)
    theirs = transforms.Compose(
        [transforms.Resize(edge, transforms.InterpolationMode.BILINEAR), transforms.CenterCrop(crop)]
    )
    encoder = ImageEncoder(ImagePreprocess(crop=crop, resize=edge, interpolation="bilinear"))
    assert np.array_equal(encoder.pixels(image), np.asarray(theirs(image)))


def test_transformers_settings_without_rescaling_and_normalisation_leave_the_pixels_as_they_are() -> None:
    pixels = noise(8, 9)
    encoder = ImageEncoder(ImagePreprocess(crop=(8, 9), rescale=1.0))
    assert np.array_equal(encoder([pixels])["pixel_values"][0], pixels.transpose(2, 0, 1).astype(np.float32))


@pytest.mark.parametrize("resample", [0, 2, 3])
def test_squashed_pictures_equal_those_of_a_transformers_image_processor(resample: int) -> None:
    from transformers import ViTImageProcessorPil

    theirs = ViTImageProcessorPil(size={"height": 24, "width": 30}, resample=resample, image_mean=MEAN, image_std=STD)
    interpolation = Image.Resampling(resample).name.lower()
    ours = ImageEncoder(
        ImagePreprocess((24, 30), (24, 30), "squash", interpolation, mean=MEAN, std=STD)  # type: ignore[arg-type]
    )
    pictures = [rgb(50, 41), rgb(7, 90)]
    found = theirs(pictures, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(ours(pictures)["pixel_values"], found, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says(orientation: int, kind: str) -> None:
    data = turned(orientation, kind)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    found = open_image(data)
    assert found.size == ((30, 41) if orientation < 5 else (41, 30))
    assert np.array_equal(np.asarray(found), np.asarray(upright.convert("RGB")))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
def test_a_damaged_exif_block_does_not_cost_the_picture() -> None:
    data = encoded(rgb(20, 30), "JPEG", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x12\x01")
    assert open_image(data).size == (30, 20)


def test_transparent_parts_lie_on_white() -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(10, 20, 30, 255), (10, 20, 30, 0), (10, 20, 30, 51)])
    assert np.asarray(open_image(encoded(image))).tolist() == [[[10, 20, 30], [255, 255, 255], [206, 208, 210]]]
    grey = Image.new("LA", (2, 1))
    grey.putdata([(40, 255), (40, 0)])
    assert np.asarray(open_image(encoded(grey)))[0, :, 0].tolist() == [40, 255]
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 8, 7, 1, 2, 3])
    palette.putdata([0, 1])
    assert np.asarray(open_image(encoded(palette, transparency=1))).tolist() == [[[9, 8, 7], [255, 255, 255]]]
    assert np.asarray(open_image(encoded(palette, transparency=bytes([0, 255])))).tolist() == [[[255] * 3, [1, 2, 3]]]


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (np.array([[0, 257, 32896, 65535]], np.uint16), "PNG", [0, 1, 128, 255]),
        (np.array([[0, 3, 200, 255]], np.uint16), "PNG", [0, 0, 1, 1]),  # a dark picture stays dark
        (np.array([[0, 1000, 65535]], np.int32), "TIFF", [0, 4, 255]),
        (np.array([[0, 100, 255]], np.int32), "TIFF", [0, 100, 255]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), "TIFF", [0, 128, 255]),
        (np.array([[0.0, 99.6, 255.0]], np.float32), "TIFF", [0, 100, 255]),
    ],
)
def test_wide_grey_values_are_scaled_by_their_range_and_not_clipped(
    values: np.ndarray, kind: str, expected: list[int]
) -> None:
    found = np.asarray(open_image(encoded(Image.fromarray(values), kind)))
    assert found[0, :, 0].tolist() == expected
    assert (found == found[..., :1]).all()


def test_a_dark_16_bit_netpbm_picture_stays_dark() -> None:
    found = open_image(b"P5 3 1 65535 " + np.array([0, 257, 300], ">u2").tobytes())
    assert np.asarray(found)[0, :, 0].tolist() == [0, 1, 1]


def test_a_transparent_16_bit_grey_is_laid_on_white() -> None:
    values = np.array([[0, 30000, 257]], np.uint16)
    assert np.asarray(open_image(encoded(Image.fromarray(values), transparency=30000)))[0, :, 0].tolist() == [0, 255, 1]


@pytest.mark.parametrize("value", [np.nan, -1.0, 1e6])
def test_grey_values_without_an_agreed_meaning_are_refused(value: float) -> None:
    data = encoded(Image.fromarray(np.array([[0.5, value]], np.float32)), "TIFF")
    with pytest.raises(DataError, match=r"odd.tif: the grey values run from"):
        open_image(ImageFile("odd.tif", data=data))


def test_an_animation_gives_its_first_frame() -> None:
    assert set(np.unique(np.asarray(open_image(AWKWARD["animated GIF"])))) == {10}


def test_every_form_of_one_picture_gives_the_same_pixels(tmp_path: Path) -> None:
    pixels = noise(40, 50)
    data = encoded(Image.fromarray(pixels))
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    encoder = ImageEncoder(ImagePreprocess(crop=(32, 32), resize=36))
    forms = [
        path, str(path), data, Image.fromarray(pixels), Image.open(io.BytesIO(data)), pixels,
        ImageFile("a", path=path), ImageFile("b", data=data), np.asfortranarray(pixels),
    ]  # fmt: skip
    expected = encoder.pixels(pixels)
    for row in encoder.encode(forms):
        assert np.array_equal(encoder.pixels(row), expected)
        assert encoder.size_of(row) == 1
    grey = noise(40, 50, 1)
    assert np.array_equal(encoder.pixels(grey), encoder.pixels(np.repeat(grey[..., None], 3, axis=2)))


def test_a_given_picture_is_left_as_it_was() -> None:
    image = Image.open(io.BytesIO(turned(6)))
    before = Image.open(io.BytesIO(turned(6)))
    open_image(image).putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(np.asarray(image), np.asarray(before))
    pixels = noise(5, 6)
    open_image(pixels).putpixel((0, 0), (255, 255, 255))
    assert np.array_equal(pixels, noise(5, 6))


def header_only_png(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_000, 10_000, 60_000])  # below, between and above Pillow's own two limits
def test_a_decompression_bomb_is_refused_by_its_header(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(
        DataError, match=rf"^bomb.png: the image has {side}×{side} pixels, more than the limit of 5000000"
    ):
        open_image(ImageFile("bomb.png", data=header_only_png(side, side)), 5_000_000)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_the_callers_limit_counts_and_not_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    filters = list(warnings.filters)
    for limit in (
        500,
        900,
    ):  # 1,000 pixels are more than twice the first, for which Pillow raises; it warns above the second
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit - 100)
        assert open_image(encoded(rgb(20, 50)), 1_000).size == (50, 20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
    assert open_image(encoded(rgb(20, 50), "TIFF"), 1_000).size == (50, 20)
    assert list(warnings.filters) == filters
    with pytest.raises(
        DataError, match=r"limit of 999; make it smaller, for the limit is the recipe.s data\.max_pixels$"
    ):
        open_image(encoded(rgb(20, 50)), 999)


def test_a_picture_too_narrow_to_be_resized_is_refused_before_it_fills_the_memory() -> None:
    encoder = ImageEncoder(ImagePreprocess(crop=(224, 224), resize=256))
    with pytest.raises(DataError, match=r"thread.png: the image of 1×3000 pixels is so narrow"):
        encoder.pixels(ImageFile("thread.png", data=encoded(rgb(3000, 1))))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "JPEG2000", "PPM"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_truncated_file_is_refused_by_name(kind: str, share: float, tmp_path: Path) -> None:
    data = encoded(rgb(60, 70), kind)
    path = tmp_path / "cut"
    path.write_bytes(data[: max(4, int(len(data) * share))])
    with pytest.raises(DataError) as caught:
        open_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith("replace or remove it")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "jpeg"])
def test_a_truncated_tiff_is_refused_by_name(compression: str) -> None:
    data = encoded(rgb(60, 70), "TIFF", compression=compression)
    with pytest.raises(DataError, match=r"cut.tif: the image is damaged or cut off"):
        open_image(ImageFile("cut.tif", data=data[: len(data) // 2]))


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=60)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "PPM"]), st.integers(0, 2**32), st.integers(1, 20))
def test_damaged_bytes_give_a_picture_or_a_data_error_and_nothing_else(kind: str, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(encoded(rgb(12, 14), kind))
    for place in rng.integers(0, len(data), count):
        data[place] = rng.integers(256)
    with suppress(DataError):
        assert open_image(bytes(data), 100_000).mode == "RGB"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the image is empty"),
        (b"only words, no picture", "this is no image in a format that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "this is no image"),  # Ghostscript is never started
    ],
)
def test_a_file_that_is_no_image_is_refused_by_name(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "words.png"
    path.write_bytes(content)
    for image in (path, ImageFile(str(path), data=content)):
        with pytest.raises(DataError) as caught:
            open_image(image)
        assert str(caught.value).startswith(f"{path}: {message}")


def test_a_path_without_a_file_is_refused_by_name(tmp_path: Path) -> None:
    for path, message in [(tmp_path / "no.png", "there is no such file"), (tmp_path, "is a folder")]:
        with pytest.raises(DataError, match=message) as caught:
            open_image(path)
        assert str(caught.value).startswith(f"{path}: ")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is no file"):  # and it is not waited for
        open_image(tmp_path / "pipe")
    with pytest.raises(DataError, match="a\x00b"):
        open_image("a\x00b")
    caption = "a long caption in the column of paths " * 12
    with pytest.raises(DataError, match="the image cannot be opened") as caught:
        open_image(tmp_path / caption)
    assert str(absence(ImageFile(caption, path=tmp_path / caption))).startswith(
        f"{caption}: the image cannot be opened"
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_file_stays_open(tmp_path: Path) -> None:
    def handles() -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    open_image(AWKWARD["grey"])
    before = handles()
    kept = []
    for kind, options in [("PNG", {}), ("GIF", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("JPEG", {})]:
        data = encoded(rgb(20, 20), kind, **options)
        for content in (data, data[: len(data) // 2], b"no image at all"):
            path = tmp_path / "file"
            path.write_bytes(content)
            try:
                kept.append(open_image(path))
            except DataError as error:
                kept.append(error)
    assert handles() == before


def test_an_image_is_given_by_exactly_one_of_path_and_bytes() -> None:
    for image in ({}, {"path": Path("a.png"), "data": b"x"}):
        with pytest.raises(DataError, match="here: an image is given by a path or by its bytes"):
            ImageFile("here", **image)  # type: ignore[arg-type]
    assert "secret" not in repr(ImageFile("here", data=b"secret"))
    assert pickle.loads(pickle.dumps(ImageFile("here", data=b"x"))) == ImageFile("here", data=b"x")


def test_encoding_opens_nothing_and_names_what_is_no_image() -> None:
    encoder = ImageEncoder(ImagePreprocess(crop=(8, 8)))
    rows = encoder.encode([Path("missing.png"), b"no image"])
    with pytest.raises(DataError, match=r"missing.png: there is no such file"):
        encoder.pixels(rows[0])
    with pytest.raises(DataError, match="image 1: this is no image"):
        encoder.pixels(rows[1])
    with pytest.raises(DataError, match="image 1 is of type int"):
        encoder.encode([b"", 3])  # type: ignore[list-item]


@pytest.mark.parametrize(
    "pixels", [np.zeros((2, 2), np.float32), np.zeros((2, 2, 4), np.uint8), np.zeros(4, np.uint8), np.zeros((0, 3), np.uint8)]
)  # fmt: skip
def test_an_array_that_is_no_picture_is_refused(pixels: np.ndarray) -> None:
    with pytest.raises(DataError, match="an array of"):
        open_image(pixels)


def test_batches_are_float32_with_channels_first() -> None:
    encoder = ImageEncoder(ImagePreprocess(crop=(6, 8), mean=MEAN, std=STD))
    batch = encoder.collate(encoder.encode([noise(6, 8, seed=n) for n in range(3)]))
    assert set(batch) == {"pixel_values"}
    values = batch["pixel_values"]
    assert values.shape == (3, 3, 6, 8)
    assert values.dtype == np.float32
    assert values.flags.c_contiguous
    stacked = np.stack([noise(6, 8, seed=n) for n in range(3)])
    assert np.array_equal(encoder.normalise(stacked), values)
    assert np.array_equal(encoder.normalise(stacked[0]), values[0])


SETTINGS = [
    ImagePreprocess(crop=(224, 224), resize=256, mean=MEAN, std=STD),
    ImagePreprocess((24, 40), (30, 50), "contain", "lanczos", (1, 2, 3), 1.0, MEAN, STD, 10_000),
    ImagePreprocess((5, 6)),
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_settings_survive_json(settings: ImagePreprocess) -> None:
    assert ImagePreprocess.from_json(json.loads(json.dumps(settings.to_json()))) == settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop", [224]), ("crop", [0, 5]), ("crop", 224), ("crop", None), ("crop", [True, 5]), ("resize", [3, 4, 5]), ("resize", 0),
        ("resize", "256"), ("resize", [256, 256]), ("resize_mode", "squash"), ("resize_mode", "crop"), ("interpolation", "cubic"),
        ("interpolation", []), ("fill", [0, 0, 256]), ("rescale", 0), ("rescale", float("nan")), ("mean", [0.5]), ("mean", ["a", 0, 0]),
        ("std", [0.5, 0, 0.5]), ("std", [float("inf")] * 3), ("max_pixels", 0), ("max_pixels", 1.5),
    ],
)  # fmt: skip
def test_settings_of_a_damaged_bundle_name_the_field(field: str, value: object) -> None:
    fields = {**SETTINGS[0].to_json(), field: value}
    with pytest.raises(BundleError, match=f"'{'resize' if field == 'resize_mode' and value == 'squash' else field}'"):
        ImagePreprocess.from_json(fields)


def test_settings_with_missing_or_unknown_fields_are_refused() -> None:
    fields = SETTINGS[0].to_json()
    for name in fields:
        with pytest.raises(BundleError, match=f"lacks '{name}'"):
            ImagePreprocess.from_json({key: value for key, value in fields.items() if key != name})
    with pytest.raises(BundleError, match="unknown field 'gamma'"):
        ImagePreprocess.from_json({**fields, "gamma": 2})
    with pytest.raises(BundleError, match="not an object"):
        ImagePreprocess.from_json([])


def test_images_need_neither_torch_nor_torchvision_nor_transformers() -> None:
    import subprocess
    import sys

    code = "import sys, finetune.preprocess as p; print([m for m in ('torch', 'torchvision', 'transformers', 'timm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""Images to pixel values in numpy and Pillow: the same code feeds training and serving, so both see the same numbers.

The resized and cropped picture equals torchvision's (Resize and CenterCrop on Pillow images, which timm and transformers
use) in every bit; normalisation equals its ToTensor and Normalize. Imports neither torch, torchvision nor transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune.errors import BundleError, DataError
from finetune.preprocess.image_file import MAX_PIXELS, ImageFile, ImageInput, as_file, open_image
from finetune.preprocess.stored import stored_fields, tuples

__all__ = ["ImageEncoder", "ImageFile", "ImageInput", "ImagePreprocess", "open_image"]

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
ResizeMode = Literal["shorter_edge", "squash", "cover", "contain"]


@dataclass(frozen=True)
class ImagePreprocess:
    """How a picture becomes the network's input; kept in the bundle's `preprocess.json`. Sizes are (height, width).

    `resize` is None (as it is), a number of pixels for the shorter edge (`shorter_edge`), or a size that the picture is
    made to have (`squash`), just covers (`cover`) or just fits into (`contain`), the last two with its proportions kept.
    Then the centre is cropped to `crop`; what is missing there gets the colour `fill`. Values are (v·rescale − mean)/std.
    """

    crop: tuple[int, int]
    resize: int | tuple[int, int] | None = None
    resize_mode: ResizeMode = "shorter_edge"
    interpolation: Interpolation = "bicubic"
    fill: tuple[int, int, int] = (0, 0, 0)
    rescale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    max_pixels: int = MAX_PIXELS
    """More pixels than this are not decoded, and no more are made by resizing (at least 50 million may be)."""

    def __post_init__(self) -> None:
        for name, (fits, meaning) in _FIELDS.items():
            if not fits(getattr(self, name)):
                raise BundleError(f"the image preprocessing's '{name}' must be {meaning}, not {getattr(self, name)!r}")
        if self.resize is not None and isinstance(self.resize, int) != (self.resize_mode == "shorter_edge"):
            raise BundleError(
                f"the image preprocessing's 'resize' is {self.resize!r}, which does not go with the mode '{self.resize_mode}'; a number goes with shorter_edge, a height and width with the others"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width that the network sees."""
        return self.crop

    def to_json(self) -> dict[str, object]:
        """Plain values that JSON can hold; `from_json` reads them back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, fields: object) -> ImagePreprocess:
        """The settings that `to_json` wrote; BundleError names a field that is missing, unknown or of a wrong type."""
        return cls(**tuples(stored_fields(cls, fields, "the image section of preprocess.json")))


class ImageEncoder:
    """Pictures to pixel values; immutable after construction and safe to share between threads and processes."""

    def __init__(self, settings: ImagePreprocess) -> None:
        self.settings = settings

    def encode(self, items: Sequence[ImageInput]) -> list[ImageInput]:
        """The images as they are, to be decoded batch by batch; DataError names one of a type that is no image."""
        return [self._named(index, item) for index, item in enumerate(items)]

    def _named(self, index: int, item: ImageInput) -> ImageInput:
        if isinstance(item, ImageFile | Path | str | bytes):
            return as_file(item, f"image {index}")
        if not isinstance(item, Image.Image | np.ndarray):
            raise DataError(
                f"image {index} is of type {type(item).__name__}; give a path, the bytes of a file, a Pillow image or a uint8 array"
            )
        return item

    def pixels(self, item: ImageInput) -> NDArray[np.uint8]:
        """One picture, resized and cropped: uint8 (H, W, 3). DataError as `open_image` says."""
        image = open_image(item, self.settings.max_pixels)
        return np.array(_centre_crop(self._resized(image, item), self.settings.crop, self.settings.fill))

    def _resized(self, image: Image.Image, item: ImageInput) -> Image.Image:
        if self.settings.resize is None:
            return image
        width, height = image.size
        high, wide = _RESIZED[self.settings.resize_mode](height, width, self.settings.resize)
        if high * wide > max(self.settings.max_pixels, MAX_PIXELS):  # one pixel by thousands, its short edge made 256
            place = item.place if isinstance(item, ImageFile) else "an image"
            raise DataError(
                f"{place}: the image of {width}×{height} pixels is so narrow that resizing would make it {wide}×{high}; cut it into less narrow ones"
            )
        return image.resize((wide, high), Image.Resampling[self.settings.interpolation.upper()])

    def normalise(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (…, H, W, 3) -> float32 (…, 3, H, W), channels first, rounded after each step as torchvision does."""
        settings = self.settings
        values = np.moveaxis(pixels, -1, -3).astype(np.float32, order="C")
        values /= np.float32(1 / settings.rescale)
        values -= np.array(settings.mean, np.float32)[:, None, None]
        values /= np.array(settings.std, np.float32)[:, None, None]
        return values

    def collate(self, rows: Sequence[ImageInput]) -> dict[str, NDArray[np.float32]]:
        """Decode a batch: {"pixel_values": float32 (B, 3, H, W)}."""
        return {"pixel_values": self.normalise(np.stack([self.pixels(row) for row in rows]))}

    def size_of(self, row: ImageInput) -> int:
        """1: all images cost the same."""
        return 1

    def __call__(self, items: Sequence[ImageInput]) -> dict[str, NDArray[np.float32]]:
        """`collate(encode(items))`."""
        return self.collate(self.encode(items))


def _shorter_edge(height: int, width: int, edge: int) -> tuple[int, int]:
    """torchvision's Resize(edge), which rounds the longer edge down."""
    if width <= height:
        return int(edge * height / width), edge
    return edge, int(edge * width / height)


def _in_proportion(
    height: int, width: int, size: tuple[int, int], choose: Callable[[float, float], float]
) -> tuple[int, int]:
    """timm's ResizeKeepRatio, which rounds both edges to the nearest."""
    ratio = choose(height / size[0], width / size[1])
    return max(1, round(height / ratio)), max(1, round(width / ratio))


_RESIZED: dict[str, Callable[[int, int, Any], tuple[int, int]]] = {
    "shorter_edge": _shorter_edge,
    "squash": lambda height, width, size: (size[0], size[1]),
    "cover": lambda height, width, size: _in_proportion(height, width, size, min),
    "contain": lambda height, width, size: _in_proportion(height, width, size, max),
}


def _centre_crop(image: Image.Image, crop: tuple[int, int], fill: tuple[int, int, int]) -> Image.Image:
    """The middle as torchvision's CenterCrop finds it, which rounds halves to even when it cuts and down when it pads."""
    if (image.height, image.width) == crop:
        return image
    top, left = (
        round((have - want) / 2) if have >= want else -((want - have) // 2)
        for have, want in zip((image.height, image.width), crop, strict=True)
    )
    canvas = Image.new("RGB", (crop[1], crop[0]), fill)
    canvas.paste(image, (-left, -top))
    return canvas


def _is_whole(value: object, least: int = 1, most: float = math.inf) -> bool:
    return type(value) is int and least <= value <= most


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _all(fits: Callable[[Any], bool], count: int) -> Callable[[object], bool]:
    return lambda value: isinstance(value, tuple) and len(value) == count and all(fits(part) for part in value)


_is_size = _all(_is_whole, 2)
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "crop": (_is_size, "a height and a width in pixels"),
    "resize": (lambda value: value is None or _is_whole(value) or _is_size(value), "null, a number of pixels or a height and a width"),
    "resize_mode": (lambda value: value in get_args(ResizeMode), f"one of {', '.join(get_args(ResizeMode))}"),
    "interpolation": (lambda value: value in get_args(Interpolation), f"one of {', '.join(get_args(Interpolation))}"),
    "fill": (_all(lambda part: _is_whole(part, 0, 255), 3), "three whole numbers from 0 to 255"),
    "rescale": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    "mean": (_all(_is_number, 3), "three numbers"),
    "std": (_all(lambda part: _is_number(part) and part > 0, 3), "three numbers above 0"),
    "max_pixels": (_is_whole, "a whole number of pixels"),
}  # fmt: skip

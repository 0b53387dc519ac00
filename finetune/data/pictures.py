"""One look at an image: is it readable, what is it, and what does it look like from afar."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune import hardware
from finetune.errors import DataError
from finetune.preprocess.image_file import ImageFile, open_image

SIDE = 64  # pixels of the thumbnail's luma
CHROMA_SIDE = 8


@dataclass(frozen=True, slots=True)
class Picture:
    """What is kept of a decoded image: about 4.3 KB.

    `identity` is the SHA-256 of size and RGB pixels. `thumbnail` (4224,) uint8 holds 64×64 luma, then 8×8 blue and 8×8 red
    difference. `size` is (width, height), turned as EXIF says; `mode` is the file's own, such as L or CMYK.
    """

    identity: str
    thumbnail: NDArray[np.uint8]
    size: tuple[int, int]
    mode: str


def look_at_all(files: Sequence[ImageFile], max_pixels: int) -> list[Picture | str]:
    """Every image opened once, on all usable cores; where it cannot be read, the reason in its place.

    Pillow decodes, resizes and hashes without holding the interpreter's lock, so threads keep the cores busy.
    """
    with ThreadPoolExecutor(hardware.cpu().cores) as pool:
        return list(pool.map(lambda file: _look_or_reason(file, max_pixels), files))


def _look_or_reason(file: ImageFile, max_pixels: int) -> Picture | str:
    try:
        return look_at(file, max_pixels)
    except DataError as error:
        return str(error)


def look_at(file: ImageFile, max_pixels: int) -> Picture:
    """Decode one image; DataError names what is no image, damaged, or has more than `max_pixels` pixels."""
    image = open_image(file, max_pixels)
    digest = hashlib.sha256(np.array(image.size, dtype="<i8").tobytes())
    digest.update(image.tobytes())
    return Picture(digest.hexdigest(), thumbnail(image), image.size, _mode(file, image.size))


def thumbnail(image: Image.Image) -> NDArray[np.uint8]:
    """Luma and, coarser, colour of an RGB image squeezed into a square, uint8 (4224,)."""
    # Bilinear with antialiasing is nearly an average over each cell; photographs are first reduced to eight times the side.
    small = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=8.0).convert("YCbCr")
    luma, blue, red = small.split()
    coarse = [channel.resize((CHROMA_SIDE, CHROMA_SIDE), Image.Resampling.BOX) for channel in (blue, red)]
    return np.concatenate([np.asarray(channel).ravel() for channel in (luma, *coarse)])


def _mode(file: ImageFile, size: tuple[int, int]) -> str:
    """The colour mode in the file's header; `?` for an image so large that Pillow would warn of it."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and size[0] * size[1] > limit:
        return "?"
    with Image.open(io.BytesIO(file.data) if file.data is not None else file.path) as image:  # type: ignore[arg-type]
        return image.mode

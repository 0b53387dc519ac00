"""Image files as they come, grey to CMYK, turned, damaged or far too large, into plain 8-bit RGB pictures.

Needs Pillow and numpy. Pillow guards against decompression bombs by a limit and a warning of the whole process; here each
call has its own limit, checked on the header before anything is decoded, so that the process's settings stay as they are.
"""

from __future__ import annotations

import io
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune.errors import DataError

# Formats that are known by their first bytes and need no other program: Pillow would hand an EPS to Ghostscript.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "QOI", "PCX", "SGI")
# Extensions by which files of these formats are found in folders. A file that is named itself may have any.
IMAGE_SUFFIXES = frozenset(
    {
        ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm",
        ".pcx", ".pgm", ".png", ".ppm", ".qoi", ".sgi", ".tif", ".tiff", ".webp",
    }
)  # fmt: skip
MAX_PIXELS = 50_000_000

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Greatest values that pictures of wide numbers may have, by kind of number; the least that holds all values is taken.
_RANGES: dict[str, tuple[float, ...]] = {"u": (65535,), "i": (255, 65535), "f": (1, 255, 65535)}
_ONE_LARGE_PICTURE = threading.Lock()


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One encoded image, not yet opened: a file or its bytes, and the place that errors name."""

    place: str
    path: Path | None = None
    data: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.path is None) == (self.data is None):
            raise DataError(f"{self.place}: an image is given by a path or by its bytes, and by one of them only")


ImageInput = ImageFile | Path | str | bytes | Image.Image | NDArray[np.uint8]
"""An encoded image (file, path, bytes), a Pillow image, or pixels uint8 (H, W) grey or (H, W, 3) RGB."""


def open_image(image: ImageInput, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture as 8-bit RGB, turned as its EXIF says, transparent parts on white, an animation's first frame.

    16-bit grey is scaled by its whole range (65535 becomes 255). Other wide numbers are taken as shares of the least of 1
    (floats only), 255 and 65535 that holds all of them. No file stays open. DataError names the place of what is no
    image, damaged, cut off, or has more than `max_pixels` pixels.
    """
    if isinstance(image, np.ndarray):
        place, source = "an array", _from_array(image)
    elif isinstance(image, Image.Image):
        place, source = str(getattr(image, "filename", "") or "a Pillow image"), image
    else:
        file = as_file(image)
        with _stream(file) as stream:
            return _rgb(_identify(stream, file.place), file.place, max_pixels)
    return _rgb(source, place, max_pixels)


def as_file(image: ImageFile | Path | str | bytes, place: str = "the image's bytes") -> ImageFile:
    """An encoded image with a place to name: a path's own, or `place` for bytes."""
    if isinstance(image, ImageFile):
        return image
    return ImageFile(place, data=image) if isinstance(image, bytes) else ImageFile(str(image), path=Path(image))


def _from_array(pixels: NDArray[Any]) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)):
        raise DataError(
            f"an array of type {pixels.dtype} and shape {pixels.shape} is no picture; give uint8 (height, width) or (height, width, 3)"
        )
    if not pixels.size:
        raise DataError(f"an array of shape {pixels.shape} holds no pixels; remove it")
    return Image.fromarray(np.ascontiguousarray(pixels))


def absence(file: ImageFile) -> str | None:
    """Why there is nothing to read where an image is said to be, as a sentence that names the place; None if there is."""
    try:
        # One call: a pipe or a device would be waited for, and names may be too long for any file.
        found = file.path.stat() if file.path is not None else None
    except FileNotFoundError:
        return f"{file.place}: there is no such file; give the path of an image"
    except (OSError, ValueError) as error:
        return _unopened(file, error)
    if found is not None and not stat.S_ISREG(found.st_mode):
        what = "is a folder" if stat.S_ISDIR(found.st_mode) else "is no file"
        return f"{file.place}: {what}; give the path of an image"
    if not (len(file.data or b"") if found is None else found.st_size):
        return f"{file.place}: the image is empty; replace or remove it"
    return None


def _unopened(file: ImageFile, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or error
    return f"{file.place}: the image cannot be opened ({reason}); give the path of a readable file"


@contextmanager
def _stream(file: ImageFile) -> Iterator[IO[bytes]]:
    """The encoded bytes, closed on leaving."""
    if (reason := absence(file)) is not None:
        raise DataError(reason)
    if file.data is not None:
        yield io.BytesIO(file.data)
        return
    assert file.path is not None
    try:
        stream = file.path.open("rb")
    except OSError as error:
        raise DataError(_unopened(file, error)) from error
    with stream:
        yield stream


def _identify(stream: IO[bytes], place: str) -> Image.Image:
    """The header as Pillow's plugins read it; nothing is decoded. Image.open would check against the process's limit."""
    start = stream.read(16)
    Image.preinit()
    readers = _readers(start)
    if not readers:  # all of Pillow's plugins take a while to import
        Image.init()
        readers = _readers(start)
    failure: Exception | None = None
    for read in readers:
        stream.seek(0)
        try:
            return read(stream, "")
        except Exception as error:  # plugins raise whatever a damaged header makes them trip over
            failure = error
    if failure is not None:
        raise _damaged(place, failure) from failure
    raise DataError(
        f"{place}: this is no image in a format that can be read ({', '.join(FORMATS)}); replace or remove it"
    )


def _readers(start: bytes) -> list[Callable[[IO[bytes], str], Image.Image]]:
    """Pillow's plugins, of those loaded so far, that know the first bytes of a file."""
    known = [Image.OPEN[name] for name in FORMATS if name in Image.OPEN]
    return [read for read, accepts in known if accepts is not None and accepts(start) is True]


def _rgb(image: Image.Image, place: str, max_pixels: int) -> Image.Image:
    """Check the size, decode, and convert."""
    width, height = image.size
    if width < 1 or height < 1:
        raise DataError(f"{place}: the image has no pixels ({width}×{height}); replace or remove it")
    if width * height > max_pixels:
        raise DataError(
            f"{place}: the image has {width}×{height} pixels, more than the limit of {max_pixels}; make it smaller, for the limit is the recipe's data.max_pixels"
        )
    try:
        with _without_bomb_warning(width * height):
            image.load()
        turn = _TURNS.get(_orientation(image))
        plain = _eight_bits(image, place) if image.mode[0] in "IF" else image
        rgb = _on_white(plain) if plain.has_transparency_data else plain.convert("RGB")
        return rgb if turn is None else rgb.transpose(turn)
    except DataError:
        raise
    except Exception as error:  # decoders raise whatever damaged data makes them trip over
        raise _damaged(place, error) from error


def _damaged(place: str, error: Exception) -> DataError:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return DataError(f"{place}: the image is damaged or cut off ({reason[0]}); replace or remove it")


@contextmanager
def _without_bomb_warning(pixels: int) -> Iterator[None]:
    """Some plugins compare with the process's own limit once more; the caller's limit has been kept by then."""
    if pixels <= (Image.MAX_IMAGE_PIXELS or pixels):
        yield
        return
    with _ONE_LARGE_PICTURE, warnings.catch_warnings():  # the filters belong to the process, not to the thread
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _orientation(image: Image.Image) -> int:
    """1 to 8, from EXIF or XMP; 1, as it is stored, where that block is missing or damaged."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
        return found if isinstance(found, int) else 1
    except Exception:  # a damaged EXIF block says nothing about the pixels, which are whole
        return 1


def _eight_bits(image: Image.Image, place: str) -> Image.Image:
    """Grey of 16-bit, 32-bit or floating-point numbers as 8-bit grey, rounded; Pillow would clip it at 255."""
    values = np.asarray(image)
    transparent = image.info.get("transparency")
    kind = "u" if image.format == "PPM" and image.mode == "I" else values.dtype.kind  # scaled to 65535 by Pillow
    low, high = values.min(), values.max()
    greatest = next((limit for limit in _RANGES[kind] if low >= 0 and high <= limit), None)
    if greatest is None:  # so it is for NaN, which compares with nothing
        raise DataError(
            f"{place}: the grey values run from {low:g} to {high:g}, which has no agreed meaning; store the image with 8 or 16 bits"
        )
    grey = values.astype(np.float32)  # holds all these numbers exactly enough to round them
    grey *= np.float32(255 / greatest)
    grey = np.rint(grey, out=grey).astype(np.uint8)
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _on_white(image: Image.Image) -> Image.Image:
    """RGB of a picture with transparency laid on white paper."""
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")

"""Pictures of every awkward kind, as bytes of files, made by Pillow."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """uint8 (H, W, C), or (H, W) for one channel: noise on a gradient, so that turning and cropping show."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 150, height)[:, None, None] + np.linspace(0, 60, width)[None, :, None]
    pixels = (ramp + rng.integers(0, 46, (height, width, channels))).astype(np.uint8)
    return pixels[..., 0] if channels == 1 else pixels


def rgb(height: int, width: int) -> Image.Image:
    return Image.fromarray(noise(height, width))


def palette_with_transparency() -> bytes:
    image = rgb(37, 29).quantize(16)
    return encoded(image, transparency=bytes([0, 128] + [255] * 14))


def turned(orientation: int, kind: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(rgb(41, 30), kind, exif=exif)


def animated() -> bytes:
    frames = [Image.fromarray(np.full((33, 45, 3), value, np.uint8)) for value in (10, 200)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


AWKWARD: dict[str, bytes] = {
    "one pixel": encoded(rgb(1, 1)),
    "one pixel wide": encoded(rgb(37, 1)),
    "one pixel high": encoded(rgb(1, 53)),
    "odd size": encoded(rgb(101, 67)),
    "smaller than the crop": encoded(rgb(9, 5)),
    "large": encoded(rgb(301, 402), "JPEG"),
    "grey": encoded(Image.fromarray(noise(50, 61, 1))),
    "grey with alpha": encoded(Image.fromarray(noise(50, 61, 4)).convert("LA")),
    "RGBA": encoded(Image.fromarray(noise(50, 61, 4))),
    "palette with transparency": palette_with_transparency(),
    "CMYK": encoded(Image.fromarray(noise(50, 61, 4)).convert("CMYK"), "JPEG"),
    "16-bit grey": encoded(Image.fromarray(noise(50, 61, 1).astype(np.uint16) * 257 + 3)),
    "1-bit": encoded(rgb(50, 61).convert("1")),
    "float TIFF": encoded(Image.fromarray(noise(50, 61, 1).astype(np.float32) / 255), "TIFF"),
    "animated GIF": animated(),
    **{f"EXIF orientation {number}": turned(number) for number in range(1, 9)},
}

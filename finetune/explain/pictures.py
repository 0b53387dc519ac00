"""Small pictures for the report: thumbnails, and heat maps laid over them. numpy and Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

LONGEST_SIDE = 224
"""Pixels; a report with two dozen pictures stays below a megabyte."""
_QUALITY = 85

# From violet over red and orange to pale yellow. Lightness rises all the way, so the order is seen without colour too.
_COLOURS = np.array([[66, 10, 104], [140, 31, 101], [204, 66, 72], [243, 120, 25], [251, 180, 26], [248, 240, 150]])
_STRONGEST = 0.72
"""Opacity where the heat is greatest; where there is none the picture shows unchanged."""


def save_thumbnail(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    """Write pixels (H, W, 3) as JPEG, shrunk to LONGEST_SIDE if larger."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    picture.save(path, "JPEG", quality=_QUALITY, optimize=True)


def overlay(pixels: npt.NDArray[np.uint8], heat: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """The picture (H, W, 3) with a heat map (h', w') from 0 to 1 over it, as (H, W, 3): hotter is lighter and denser."""
    from PIL import Image

    height, width = pixels.shape[:2]
    wide = Image.fromarray(np.asarray(heat, dtype=np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    warmth = np.clip(np.asarray(wide, dtype=np.float64), 0.0, 1.0)
    density = (_STRONGEST * np.sqrt(warmth))[..., None]
    mixed = (1 - density) * pixels + density * colours(warmth)
    return np.asarray(np.rint(mixed), dtype=np.uint8)


def colours(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Colours (..., 3), 0 to 255, of values from 0 to 1."""
    at = np.linspace(0.0, 1.0, len(_COLOURS))
    return np.stack([np.interp(values, at, _COLOURS[:, channel]) for channel in range(3)], axis=-1)

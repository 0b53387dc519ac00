"""Small pictures that tests draw: every number another one, none like the others."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from finetune.sources import Source


def picture(number: int, size: tuple[int, int] = (48, 40), grey: bool = False) -> Image.Image:
    """Soft blobs of colour, (width, height) pixels; the same number always gives the same picture."""
    rng = np.random.default_rng(number)
    shape = (6, 8) if grey else (6, 8, 3)
    coarse = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    """The bytes of a file with this picture."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def local(path: Path) -> Source:
    """A file or folder as a source."""
    return Source(str(path), "folder" if path.is_dir() else "file", path)

"""Random changes to training images, with torchvision's transforms, and mixing of pictures (mixup, CutMix).

The noise has no history: a row's picture is a function of (seed, phase, epoch, row), and how a step's pictures are mixed
one of (seed, phase, epoch, step). So a resumed run sees the same pictures, in whatever process each of them is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from finetune.preprocess import ImageEncoder, ImageInput, open_image

if TYPE_CHECKING:  # so that a process that only makes pictures loads no transformers
    from finetune.recipe import AugmentSettings
    from finetune.train.job import Batch, Moment

_OF_ROW, _OF_STEP = 1, 2
_QUARTER_TURNS = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
# Proportions, width to height, of what torchvision's RandomResizedCrop cuts out for a square input.
_NARROWEST, _WIDEST = 3 / 4, 4 / 3


@dataclass(frozen=True)
class _Frame:
    """What is seen of a picture, and in which size: a random cut, or what evaluation sees."""

    encoder: ImageEncoder
    crop: v2.RandomResizedCrop | None

    def cut(self, image: ImageInput) -> Image.Image:
        if self.crop is None:
            return Image.fromarray(self.encoder.pixels(image))
        cut: Image.Image = self.crop(open_image(image, self.encoder.settings.max_pixels))
        return cut


class AugmentedImages:
    """Training images that look a little different each time; implements `Examples`.

    labels: int64 (N,) label numbers, float32 (N, C) label vectors or float32 (N,) numbers; classes: C of label numbers;
    of_phase: encoders of phases whose pictures have another size than `encoder` gives them.
    """

    def __init__(
        self,
        images: Sequence[ImageInput],
        labels: np.ndarray,
        encoder: ImageEncoder,
        settings: AugmentSettings,
        classes: int,
        of_phase: Mapping[int, ImageEncoder] = MappingProxyType({}),
    ) -> None:
        self.labels, self.lengths = labels, [1] * len(images)
        self._images, self._settings = images, settings
        self._frame = _Frame(encoder, _crop(settings, encoder))
        self._frames = {phase: _Frame(other, _crop(settings, other)) for phase, other in of_phase.items()}
        self._classes, self._are_numbers = classes, labels.ndim == 1 and labels.dtype.kind == "f"
        self._colours = v2.Compose(_changes(settings))
        self._erasing = v2.RandomErasing(settings.random_erasing)  # with 0, the mean colour of normalised pictures
        self._mixers = [
            kind(alpha=alpha) for kind, alpha in ((v2.MixUp, settings.mixup), (v2.CutMix, settings.cutmix)) if alpha
        ]

    def batch(self, rows: Sequence[int], moment: Moment) -> Batch:
        """{"pixel_values": float32 (B, 3, H, W)} and the rows' labels; of mixed pictures, mixed labels.

        Mixed label numbers become float32 (B, C), shares of each label; label vectors and numbers keep their shape.
        DataError names an image that cannot be read.
        """
        if not self._mixers:
            pixels = torch.stack([self._view(row, moment) for row in rows])
            return {"pixel_values": pixels.numpy()}, self.labels[list(rows)]
        partners = _partners(rows, moment.step)
        views = {row: self._view(row, moment) for row in {*rows, *partners}}
        # v2.MixUp and v2.CutMix mix each picture with the one before it: every second one comes out as wanted.
        order = [row for pair in zip(partners, rows, strict=True) for row in pair]
        with _noise(_OF_STEP, moment.seed, moment.phase, moment.epoch, moment.cursor):
            mix = self._mixers[int(torch.randint(len(self._mixers), ()))]
            pixels, mixed = mix(torch.stack([views[row] for row in order]), self._vectors(order))
        targets = (mixed[1::2, 0] if self._are_numbers else mixed[1::2]).contiguous()
        return {"pixel_values": pixels[1::2].contiguous().numpy()}, targets.numpy()

    def _vectors(self, rows: Sequence[int]) -> torch.Tensor:
        """The rows' labels as float32 (B, C), (B, 1) for numbers."""
        labels = torch.from_numpy(self.labels[list(rows)])
        if not labels.is_floating_point():
            labels = torch.nn.functional.one_hot(labels, self._classes)
        return (labels[:, None] if self._are_numbers else labels).float()

    def _view(self, row: int, moment: Moment) -> torch.Tensor:
        """One changed picture, normalised: float32 (3, H, W)."""
        image, frame = self._images[row], self._frames.get(moment.phase, self._frame)
        with _noise(_OF_ROW, moment.seed, moment.phase, moment.epoch, row):
            if self._settings.quarter_turns:  # of the whole picture, or one that is not square would change its shape
                turn = _QUARTER_TURNS[int(torch.randint(len(_QUARTER_TURNS), ()))]
                picture = open_image(image, frame.encoder.settings.max_pixels)
                image = picture if turn is None else picture.transpose(turn)
            pixels = frame.encoder.normalise(np.asarray(self._colours(frame.cut(image))))
            changed: torch.Tensor = self._erasing(torch.from_numpy(pixels))
        return changed


def _crop(settings: AugmentSettings, encoder: ImageEncoder) -> v2.RandomResizedCrop | None:
    if settings.random_resized_crop is None:
        return None
    height, width = encoder.settings.size
    return v2.RandomResizedCrop(
        (height, width),
        scale=settings.random_resized_crop,
        ratio=(_NARROWEST * width / height, _WIDEST * width / height),
        interpolation=InterpolationMode(encoder.settings.interpolation),
    )


def _changes(settings: AugmentSettings) -> list[Any]:
    """What happens to a picture after it was cut out, in the order of torchvision's own training scripts."""
    changes: list[Any] = [
        v2.RandomHorizontalFlip(settings.horizontal_flip),
        v2.RandomVerticalFlip(settings.vertical_flip),
    ]
    if strength := settings.color_jitter:
        changes.append(v2.ColorJitter(brightness=strength, contrast=strength, saturation=strength))
    if settings.rand_augment is not None:
        changes.append(v2.RandAugment(magnitude=settings.rand_augment, interpolation=InterpolationMode.BILINEAR))
    return changes


def _partners(rows: Sequence[int], step: Sequence[int]) -> list[int]:
    """The row that each row is mixed with: the one before it in the whole step, the last one for the first.

    So it does not matter how the step is divided. A row that is not of the step is its own partner, and stays as it is.
    """
    before = dict(zip(step, [*step[-1:], *step[:-1]], strict=True))
    return [before.get(row, row) for row in rows]


@contextmanager
def _noise(*key: int) -> Iterator[None]:
    """Random numbers of torch as a function of `key`; the generator stands where it stood before on leaving."""
    (seed,) = np.random.SeedSequence(key).generate_state(1, np.uint64)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(seed) >> 1)  # torch.manual_seed would seed a GPU as well
        yield

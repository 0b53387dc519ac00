"""What differs between exporting texts and images: one plain entry each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.export import image, text
from finetune.export.choose import Workbench
from finetune.export.convnet import is_convnet, try_static
from finetune.export.dynamic import try_dynamic
from finetune.export.image import KeptPixels
from finetune.export.parity import Batch, Predict
from finetune.preprocess import Encoder


@dataclass(frozen=True)
class ExportKind:
    """How the networks of one modality are traced, compared and quantised."""

    prepared: Callable[[Any], Encoder]
    """The encoder as export uses it, when the same rows are collated again and again."""
    axes: Callable[[Any], dict[int, tuple[str, int]]]
    """Dynamic axes of every input: position -> (name, largest size)."""
    example: Callable[[Any, Sequence[Any]], Batch]
    """Arrays to trace the network with, from an encoder and real rows."""
    shape_examples: Callable[[Any, Sequence[Any]], list[Batch]]
    """Batches at the corners of what can be served."""
    spread_rows: Callable[[Any, Sequence[Any], int], list[Any]]
    """A number of rows that stand for all, always the same ones."""
    row_by_row: Callable[[Predict], Predict]
    """The same prediction with each row run alone."""
    try_int8: Callable[[Workbench, str, Any, Sequence[Any]], None]
    """Build and judge int8 candidates: (workbench, processor kind, encoder, calibration rows)."""


def _try_text(bench: Workbench, target: str, encoder: Encoder, calibration: Sequence[Any]) -> None:
    """Encoders of texts: dynamic int8, which needs no calibration."""
    try_dynamic(bench, target)


def _try_image(bench: Workbench, target: str, encoder: Encoder, calibration: Sequence[Any]) -> None:
    """Convnets: static int8, image by image through the encoder. Vision transformers are encoders like those of texts."""
    if is_convnet(bench.fp32.path):
        try_static(bench, target, encoder, calibration)
    else:
        try_dynamic(bench, target)


EXPORTS: dict[str, ExportKind] = {
    "text": ExportKind(
        prepared=lambda encoder: encoder,
        axes=text.axes,
        example=text.example,
        shape_examples=text.shape_examples,
        spread_rows=text.spread_rows,
        row_by_row=text.row_by_row,
        try_int8=_try_text,
    ),
    "image": ExportKind(
        prepared=KeptPixels,
        axes=image.axes,
        example=image.example,
        shape_examples=image.shape_examples,
        spread_rows=image.spread_rows,
        row_by_row=image.row_by_row,
        try_int8=_try_image,
    ),
}

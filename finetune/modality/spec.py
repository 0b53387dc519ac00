"""The form of a modality's entry, and a backbone made ready for a recipe's data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from accelerate import Accelerator
from torch import nn

from finetune.bundle import Bundle
from finetune.data import LabelledData, Split
from finetune.export import ExportRequest, ExportResult
from finetune.model.backbone import TransferModel
from finetune.preflight import Checked
from finetune.preprocess import Encoder
from finetune.recipe import Recipe
from finetune.train.job import Collate, Examples, Rows
from finetune.transfer.scale import Scale


@dataclass(frozen=True)
class Setup:
    """A backbone with its new head, and the rows as it takes them.

    folder: the backbone as it was loaded; train: rows as training draws them; plain: the same without noise;
    calibration: some of them for static quantisation; workers: processes that make batches ahead;
    save_processor: writes what turns inputs into arrays (a tokenizer, an image processor) into a model folder.
    """

    folder: Path
    model: TransferModel
    encoder: Encoder
    train: Examples
    plain: Examples
    validation: Rows
    calibration: Sequence[Any]
    workers: int
    save_processor: Callable[[Path], None]
    collate_of_phase: Mapping[int, Collate] = field(default_factory=dict)
    """Of phases whose images have a size of their own, by the phase's number: validation rows as batches."""
    notes: tuple[str, ...] = ()
    """What is worth saying before training starts."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the modality's own entries need to know again after training."""


class SetUp(Protocol):
    """Load the backbone with a head for these data, and make the rows ready.

    scale: what numbers are learned in; accelerator: processes of one run set up side by side and must not write the same
    files, and beside a GPU batches are made ahead.
    """

    def __call__(
        self, recipe: Recipe, checked: Checked, data: LabelledData, scale: Scale, accelerator: Accelerator, /
    ) -> Setup: ...


@dataclass(frozen=True)
class Finished:
    """A run whose network is trained and measured, for what a modality reports beside the metrics.

    module: the network as it is shipped; test: the test rows, and answers: torch's to them; metrics: what is reported;
    measure: all that the report says about the answers to some rows; calibration: report["calibration"].
    """

    recipe: Recipe
    data: LabelledData
    setup: Setup
    module: nn.Module
    folder: Path
    test: Rows
    answers: np.ndarray
    metrics: tuple[str, ...]
    measure: Callable[[np.ndarray, Rows], dict[str, Any]]
    calibration: Mapping[str, Any] | None
    device: str
    tell: Callable[[str], None]


@dataclass(frozen=True)
class Modality:
    """Everything the pipeline asks of a modality."""

    set_up: SetUp
    describe: Callable[[Recipe, Setup, LabelledData], dict[str, Any]]
    """report["data"]: the sizes of the training inputs."""
    bundle_files: Callable[[Path], None]
    """Files at the top of a bundle that its `model` folder, already there, holds for torch."""
    rows: Callable[[Recipe, Encoder, Split], Rows]
    """A split as the network is measured on it."""
    by_input: Callable[[np.ndarray, Rows], np.ndarray]
    """Answers to rows as answers to inputs, of which a row may be a piece."""
    finish: Callable[[Recipe, Setup, Path], nn.Module]
    """The trained network as it is shipped; into the bundle's folder goes what is shipped beside it."""
    export: Callable[[ExportRequest], ExportResult]
    """Build and measure the ONNX forms."""
    served: Callable[[Path, Split, Rows], np.ndarray]
    """Answers to a split from a sealed bundle, as its users get them."""
    report: Callable[[Finished], dict[str, Any]]
    """Parts of the report beside those of all modalities: samples, baselines, language."""
    probes: Callable[[Bundle], list[Any]]
    """Inputs for a spot check of a bundle, always the same ones for one bundle."""
    calibration_rows: Callable[[Recipe, LabelledData, Encoder], Sequence[Any]]
    """Encoded training rows for static quantisation; none where int8 needs none."""

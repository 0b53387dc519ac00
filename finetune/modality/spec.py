"""The form of a modality's entry, and a backbone made ready for a recipe's data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator

from finetune.bundle import Bundle
from finetune.data import LabelledData
from finetune.explain.samples import Heat, Picture
from finetune.export import ExportKind
from finetune.model.backbone import TransferModel
from finetune.preflight import Checked
from finetune.preprocess import Encoder
from finetune.recipe import Recipe
from finetune.train.job import Examples, Rows
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


class SetUp(Protocol):
    """Load the backbone with a head for these data, and make the rows ready.

    scale: what numbers are learned in; accelerator: processes of one run set up side by side and must not write the same
    files, and beside a GPU batches are made ahead.
    """

    def __call__(
        self, recipe: Recipe, checked: Checked, data: LabelledData, scale: Scale, accelerator: Accelerator, /
    ) -> Setup: ...


@dataclass(frozen=True)
class Modality:
    """Everything the pipeline asks of a modality."""

    set_up: SetUp
    describe: Callable[[Recipe, Setup], dict[str, Any]]
    """report["data"]: the sizes of the training inputs."""
    bundle_files: Callable[[Path], None]
    """Files at the top of a bundle that its `model` folder, already there, holds for torch."""
    export: ExportKind
    pictures: Callable[[Setup], tuple[Picture | None, Heat | None]]
    """How the report shows an input, and where the network looked in it; None for what is no picture."""
    probes: Callable[[Bundle], list[Any]]
    """Inputs for a spot check of a bundle, always the same ones for one bundle."""
    calibration_rows: Callable[[Recipe, LabelledData, Encoder], Sequence[Any]]
    """Encoded training rows for static quantisation; none where int8 needs none."""

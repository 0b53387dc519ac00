"""What inputs with a label or a number have in common, whatever they are: a row per input, and logits as the answer to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from finetune.data import Split
from finetune.evaluation import EVALUATIONS, baselines
from finetune.explain.samples import Heat, Picture, collect_samples
from finetune.export import ExportKind, ExportRequest, ExportResult, export_all
from finetune.modality.spec import Finished, Setup
from finetune.preprocess import Encoder
from finetune.recipe import Recipe
from finetune.serve import Predictor
from finetune.tasks import TASKS
from finetune.train.job import Rows


def rows(recipe: Recipe, encoder: Encoder, split: Split) -> Rows:
    """A row per input, with its label and its weight."""
    encoded = encoder.encode(split.inputs)
    return Rows(encoded, [encoder.size_of(row) for row in encoded], split.labels, split.weights)


def by_input(answers: np.ndarray, rows: Rows) -> np.ndarray:
    """Each row is an input."""
    return answers


def finish(recipe: Recipe, setup: Setup, folder: Path) -> nn.Module:
    """The network is shipped as it was trained."""
    return setup.model.module


def export_as(kind: ExportKind) -> Callable[[ExportRequest], ExportResult]:
    """How networks of one modality are exported: see `export_all`."""

    def export(given: ExportRequest) -> ExportResult:
        return export_all(given, kind)

    return export


def served(folder: Path, split: Split, rows: Rows) -> np.ndarray:
    """Logits (N, C) of a bundle's Predictor."""
    inputs: Sequence[Any] = split.inputs
    return Predictor(folder, verify=False).logits(inputs)


def report_with(
    pictures: Callable[[Setup], tuple[Picture | None, Heat | None]],
) -> Callable[[Finished], dict[str, Any]]:
    """report["baselines"] and report["samples"], the hardest test rows.

    pictures: how the report shows an input, and where the network looked in it; None for what is no picture.
    """

    def report(given: Finished) -> dict[str, Any]:
        recipe, data = given.recipe, given.data
        task = TASKS[recipe.task]
        picture, heat = pictures(given.setup)
        simple = recipe.evaluation.baselines
        return {
            "baselines": baselines(task, data, given.metrics, recipe.seed, max_pixels=recipe.data.max_pixels) if simple else None,
            "samples": collect_samples(
                given.folder, data.test, given.answers / (given.calibration or {}).get("temperature", 1.0),
                EVALUATIONS[task.target.name].hardness(given.answers, data.test.labels), recipe.evaluation.samples,
                target=task.target.name, labels=data.labels, picture=picture, heat=heat, gradcam=recipe.evaluation.gradcam,
            ),
        }  # fmt: skip

    return report

"""Images: decoded when they are needed, changed at random for training, normalised as the backbone was pretrained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from finetune.bundle import Bundle
from finetune.data import LabelledData
from finetune.errors import RecipeError
from finetune.explain.gradcam import gradcam
from finetune.explain.samples import Heat, Picture
from finetune.export import EXPORTS
from finetune.hardware import cpu
from finetune.modality import labelled
from finetune.modality.spec import Modality, Setup
from finetune.model.backbone import blank_picture, convert_pickle, load_backbone
from finetune.model.groups import UnfitInputError
from finetune.model.image_processor import image_preprocess, save_image_processor
from finetune.model.modes import evaluating
from finetune.model.rename import checkpoint_from_weights
from finetune.model_files import first_line, has_safetensors
from finetune.preflight import Checked
from finetune.preprocess import Encoder, ImageEncoder
from finetune.recipe import Recipe
from finetune.sources import local_model
from finetune.train.augment import AugmentedImages
from finetune.train.job import EncodedExamples, Rows
from finetune.transfer.scale import Scale

PROBES = 4
MOST_WORKERS = 8


def set_up(recipe: Recipe, checked: Checked, data: LabelledData, scale: Scale, accelerator: Accelerator) -> Setup:
    """See `SetUp`; images stay encoded until a batch needs them."""
    task, target = checked.task, checked.task.target
    folder = _folder(recipe, checked, accelerator.process_index)
    encoder = _encoder(recipe, folder, recipe.data.image_size)
    try:
        model = load_backbone(
            folder, data.labels, auto_class=task.auto_class, problem_type=target.problem_type, outputs=len(data.labels) or 1,
            dropout=recipe.head.dropout, seed=recipe.seed, drop_path=recipe.backbone.drop_path, probe=blank_picture(encoder.settings.size),
        )  # fmt: skip
    except UnfitInputError as error:
        if recipe.data.image_size is None:
            raise
        raise _unfit_size("data.image_size", recipe.data.image_size, error.reason) from error
    of_phase = _encoders_of_phases(recipe, folder, model.module)
    pictures_of: tuple[Sequence[Any], Sequence[Any]] = (data.train.inputs, data.validation.inputs)
    images, validation = (encoder.encode(inputs) for inputs in pictures_of)
    labels = scale.down(data.train.labels)
    return Setup(
        folder, model, encoder,
        train=AugmentedImages(images, labels, encoder, recipe.train.augment, len(data.labels), of_phase),
        plain=EncodedExamples(images, [1] * len(images), labels, encoder.collate),
        validation=Rows(validation, [1] * len(validation), data.validation.labels, data.validation.weights),
        calibration=calibration_rows(recipe, data, encoder),
        workers=_workers(recipe, on_gpu=accelerator.device.type != "cpu"),
        save_processor=lambda into: save_image_processor(into, encoder.settings),
        collate_of_phase={phase: small.collate for phase, small in of_phase.items()},
    )  # fmt: skip


def _encoder(recipe: Recipe, folder: Path, image_size: int | None) -> ImageEncoder:
    return ImageEncoder(image_preprocess(folder, image_size, recipe.data.max_pixels, recipe.data.image_crop))


def _encoders_of_phases(recipe: Recipe, folder: Path, module: nn.Module) -> dict[int, ImageEncoder]:
    """By the phase's number, for phases with an image size of their own; RecipeError for one that the network cannot take."""
    encoders = {}
    for number, phase in enumerate(recipe.transfer.phases or ()):
        if phase.image_size is None:
            continue
        encoders[number] = encoder = _encoder(recipe, folder, phase.image_size)
        try:
            with evaluating(module), torch.no_grad():
                module(**blank_picture(encoder.settings.size)(module))
        except (RuntimeError, AssertionError, ValueError) as error:  # what architectures raise for sizes not theirs
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise _unfit_size(f"transfer.phases[{number}].image_size", phase.image_size, first_line(error)) from error
    return encoders


def _unfit_size(key: str, size: int, reason: str) -> RecipeError:
    return RecipeError(f"{key}: this backbone takes no pictures of {size}×{size} pixels ({reason}); remove it")


def _folder(recipe: Recipe, checked: Checked, rank: int) -> Path:
    """The backbone as a folder with config.json and safetensors, made of what the recipe names if it is something else."""
    own = checked.workspace.converted(rank)
    settings, source = recipe.backbone, checked.backbone
    folder = local_model(source, allow_pickle=settings.allow_pickle)
    if settings.architecture is not None:
        return checkpoint_from_weights(folder, own, architecture=settings.architecture, rename=settings.rename)
    return folder if has_safetensors(path.name for path in folder.iterdir()) else convert_pickle(folder, own)


def describe(recipe: Recipe, setup: Setup, data: LabelledData) -> dict[str, Any]:
    """What the network sees of each image."""
    height, width = setup.encoder.settings.size
    return {"pixels": {"height": height, "width": width}}


def bundle_files(folder: Path) -> None:
    """Nothing: preprocess.json says all that serving needs to know about images."""


def pictures(setup: Setup) -> tuple[Picture, Heat]:
    """A test image as the network sees it, and its Grad-CAM."""
    encoder = setup.encoder
    assert isinstance(encoder, ImageEncoder)

    def heat(image: Any, output: int) -> np.ndarray | None:
        return gradcam(setup.model.module, encoder.collate([image])["pixel_values"], output).heat

    return encoder.pixels, heat


def calibration_rows(recipe: Recipe, data: LabelledData, encoder: Encoder) -> Sequence[Any]:
    """Training images for static quantisation, drawn by the recipe's seed; all where there are fewer than it asks for."""
    rows = np.random.default_rng([recipe.seed, 8]).permutation(len(data.train))
    chosen = rows[: recipe.export.int8.calibration_rows]
    return encoder.encode([data.train.inputs[row] for row in chosen])


def probes(bundle: Bundle) -> list[Any]:
    """Pictures of seeded noise, coarse to fine, and not of the size that the network sees."""
    height, width = bundle.preprocess.size  # type: ignore[union-attr]
    rng = np.random.default_rng(0)
    pictures = []
    for turn in range(PROBES):
        cell = 2 ** (5 - turn)
        coarse = rng.integers(0, 256, (height // cell + 2, width // cell + 1 + turn, 3), dtype=np.uint8)
        pictures.append(coarse.repeat(cell, axis=0).repeat(cell, axis=1))
    return pictures


def _workers(recipe: Recipe, *, on_gpu: bool) -> int:
    """Processes that make batches ahead: on a CPU the step itself takes all cores, and more processes only get in its way."""
    if recipe.train.workers != "auto":
        return recipe.train.workers
    return min(MOST_WORKERS, max(1, cpu().cores // 2)) if on_gpu else 0


MODALITY = Modality(
    set_up=set_up,
    describe=describe,
    bundle_files=bundle_files,
    rows=labelled.rows,
    by_input=labelled.by_input,
    finish=labelled.finish,
    export=labelled.export_as(EXPORTS["image"]),
    served=labelled.served,
    report=labelled.report_with(pictures),
    probes=probes,
    calibration_rows=calibration_rows,
)

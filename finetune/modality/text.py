"""Texts: a tokenizer beside the backbone, rows as token ids."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from finetune.bundle import MODEL_FOLDER, TOKENIZER, Bundle
from finetune.data import LabelledData
from finetune.export import EXPORTS
from finetune.modality import labelled
from finetune.modality.spec import Modality, Setup
from finetune.model.backbone import convert_pickle, load_backbone
from finetune.model.tokenizer import load_tokenizer, text_preprocess
from finetune.model_files import has_safetensors
from finetune.preflight import Checked
from finetune.preprocess import Encoder, TextEncoder
from finetune.recipe import Recipe
from finetune.sources import local_model
from finetune.train.job import EncodedExamples, Rows
from finetune.transfer.scale import Scale

PROBES = 6


def set_up(recipe: Recipe, checked: Checked, data: LabelledData, scale: Scale, accelerator: Accelerator) -> Setup:
    """See `SetUp`; train and validation texts are turned into ids once."""
    task = checked.task
    folder = local_model(checked.backbone, allow_pickle=recipe.backbone.allow_pickle)
    if not has_safetensors(path.name for path in folder.iterdir()):
        folder = convert_pickle(folder, checked.workspace.converted(accelerator.process_index))
    tokenizer = load_tokenizer(folder)
    model = load_backbone(
        folder, data.labels, auto_class=task.auto_class, problem_type=task.target.problem_type,
        outputs=len(data.labels) or 1, dropout=recipe.head.dropout, seed=recipe.seed,
        pad_token_id=int(tokenizer.pad_token_id),
    )  # fmt: skip
    settings = text_preprocess(tokenizer, type(model.module), recipe.data.max_length)
    with tempfile.TemporaryDirectory() as saved:
        tokenizer.save_pretrained(saved)
        encoder = TextEncoder(Path(saved) / TOKENIZER, settings)
    train, validation = (encoder.encode([str(text) for text in part.inputs]) for part in (data.train, data.validation))
    examples = EncodedExamples(train, [len(row.ids) for row in train], scale.down(data.train.labels), encoder.collate)
    return Setup(
        folder, model, encoder, examples, examples,
        Rows(validation, [len(row.ids) for row in validation], data.validation.labels, data.validation.weights),
        calibration=(), workers=0, save_processor=tokenizer.save_pretrained,
    )  # fmt: skip


def describe(recipe: Recipe, setup: Setup, data: LabelledData) -> dict[str, Any]:
    """Token counts of the training rows, before truncation."""
    assert isinstance(setup.plain, EncodedExamples)
    lengths = np.array([row.length_before for row in setup.plain.rows])
    return {
        "max_length": recipe.data.max_length,
        "tokens": {
            "p50": int(np.percentile(lengths, 50)),
            "p95": int(np.percentile(lengths, 95)),
            "max": int(lengths.max()),
            "truncated_share": float((lengths > recipe.data.max_length).mean()),
        },
    }


def bundle_files(folder: Path) -> None:
    """The tokenizer, which serving reads without transformers."""
    shutil.copyfile(folder / MODEL_FOLDER / TOKENIZER, folder / TOKENIZER)


def no_calibration(recipe: Recipe, data: LabelledData, encoder: Encoder) -> Sequence[Any]:
    """Dynamic quantisation finds ranges at run time."""
    return ()


def probes(bundle: Bundle) -> list[Any]:
    """Texts of the tokenizer's own words, from one token to the longest input."""
    return probe_texts(sorted(tokenizer_words(bundle)), bundle.preprocess.max_length)  # type: ignore[union-attr]


def tokenizer_words(bundle: Bundle) -> set[str]:
    """Everything that the bundle's tokenizer has an id for."""
    from tokenizers import Tokenizer

    return set(Tokenizer.from_file(str(bundle.path / TOKENIZER)).get_vocab())


def probe_texts(vocabulary: Sequence[str], longest: int) -> list[Any]:
    """Texts of random words, always the same ones for one vocabulary; lengths double up to `longest` words."""
    words = [word for word in vocabulary if word.isalpha()] or list(vocabulary)
    rng = np.random.default_rng(0)
    lengths = np.unique(np.geomspace(1, longest, PROBES).astype(int))
    return [" ".join(rng.choice(words, size)) for size in lengths]


def no_pictures(setup: Setup) -> tuple[None, None]:
    """A text is shown as it is."""
    return None, None


MODALITY = Modality(
    set_up=set_up,
    describe=describe,
    bundle_files=bundle_files,
    rows=labelled.rows,
    by_input=labelled.by_input,
    finish=labelled.finish,
    export=labelled.export_as(EXPORTS["text"]),
    served=labelled.served,
    report=labelled.report_with(no_pictures),
    probes=probes,
    calibration_rows=no_calibration,
)

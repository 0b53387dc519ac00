"""A backbone made ready for a recipe's data: new head, tokenizer, rows as ids."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data import TextData
from finetune.model.backbone import TransferModel, convert_pickle, load_backbone
from finetune.model.tokenizer import load_tokenizer, text_preprocess
from finetune.model_files import has_safetensors
from finetune.preflight import Checked
from finetune.preprocess import Encoded, TextEncoder
from finetune.recipe import Recipe
from finetune.sources import local_model
from finetune.tasks import TASKS


@dataclass(frozen=True)
class Setup:
    """The backbone with its new head, its tokenizer, and the rows as the network takes them."""

    folder: Path
    model: TransferModel
    tokenizer: Any
    encoder: TextEncoder
    train: list[Encoded]
    validation: list[Encoded]


def set_up(recipe: Recipe, checked: Checked, data: TextData, rank: int) -> Setup:
    """Load the backbone with a head for these labels, and turn train and validation texts into ids.

    rank: number of this process; processes of one run set up side by side and must not write the same files.
    """
    folder = local_model(checked.backbone, allow_pickle=recipe.backbone.allow_pickle)
    if not has_safetensors(path.name for path in folder.iterdir()):
        folder = convert_pickle(folder, checked.workspace.state / f"backbone.{rank}")
    tokenizer = load_tokenizer(folder)
    model = load_backbone(
        folder, data.labels, auto_class=TASKS[recipe.task].auto_class,
        dropout=recipe.head.dropout, seed=recipe.seed, pad_token_id=int(tokenizer.pad_token_id),
    )  # fmt: skip
    settings = text_preprocess(tokenizer, type(model.module), recipe.data.max_length)
    with tempfile.TemporaryDirectory() as saved:
        tokenizer.save_pretrained(saved)
        encoder = TextEncoder(Path(saved) / "tokenizer.json", settings)
    return Setup(
        folder, model, tokenizer, encoder, encoder.encode(data.train.texts), encoder.encode(data.validation.texts)
    )

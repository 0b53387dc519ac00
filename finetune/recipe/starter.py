"""A commented recipe to start from, filled in from a look at the data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.errors import DataError, RecipeError
from finetune.recipe.identity import scalar_text
from finetune.recipe.strict_yaml import check_text, shorten

if TYPE_CHECKING:
    from finetune.recipe.peek import Look


@dataclass(frozen=True)
class _Kind:
    """What differs between recipes for texts and for images."""

    what: str
    task: str
    backbone: str
    backbone_words: str
    inputs: str
    training: str
    language: str


_KINDS = {
    "text": _Kind(
        "a text classifier",
        "text_classification",
        "distilbert/distilbert-base-uncased",
        "hub id (id@revision), local folder, or package:NAME/path",
        "  max_length: 128  # tokens; longer texts are cut, and the report says how many\n",
        "",
        "  language: [en]  # ISO 639-1 codes of the texts' languages\n",
    ),
    "image": _Kind(
        "an image classifier",
        "image_classification",
        "timm/efficientnet_b0.ra_in1k",
        "hub id of a timm or transformers image model, local folder, or package:NAME/path",
        "  unreadable: refuse  # or skip: what to do about truncated, huge or foreign files; both name them\n",
        "  augment:  # random changes to training images\n"
        "    horizontal_flip: 0.5\n"
        "    random_resized_crop: [0.5, 1.0]  # shares of the area; null if what matters may be at the border\n",
        "  tags: []\n",
    ),
}
DEFAULT_BACKBONE = _KINDS["text"].backbone
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_MOST_SHOWN = 12

_TEMPLATE = """\
{schema}# {name}: {what}. Check it with `finetune validate FILE`, run it with `finetune run FILE`.
# Every key with its default is listed in docs/recipe.md; one key can be changed for one run: `finetune run FILE seed=1`.

name: {quoted_name}  # the bundle goes to exports/{name}
description: ""  # one or two sentences for the report and the model card
task: {task}
seed: 0

backbone:
  name: {backbone}  # {backbone_words}

data:
{data}
{inputs}{splits}
transfer:
  unfreeze: gradual  # gradual, lp_ft, head_only, full or auto
  head_epochs: 1  # first the new head alone …
  epochs: 1  # … then phases of so many epochs, each with …
  step: 2  # … so many more layer groups, from the top
  learning_rate: 2.0e-4  # of the head; each layer group below it gets `decay` times the rate above
  decay: 0.8

train:
  batch_size: 32
{training}
evaluation:
  metric: accuracy  # chooses the best weights; f1_macro if some labels are rare

license:
  use: research  # research, internal or commercial: what you want to do with the result
  # If the card of the backbone or of the data names no licence, say what it is and where you read it:
  # data:
  #   id: cc-by-4.0
  #   reason: "stated on the page that I downloaded the data from"

card:
{language}"""


def starter_recipe(
    data_path: str,
    *,
    name: str | None = None,
    backbone: str | None = None,
    text_column: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    schema: str | None = None,
) -> str:
    """Commented YAML for data at a local path; hub ids and `package:` paths are taken as they are, without a look.

    Columns, and whether they hold texts or images, are guessed from header names and content where not given. `schema` is the path or URL of the JSON Schema for
    editors that run yaml-language-server. DataError if the path holds nothing to learn from, RecipeError for a bad name.
    """
    from finetune.recipe.peek import look_at  # csv and json are wanted for this alone

    if name is not None and not _NAME.fullmatch(name):
        raise RecipeError(
            f"name '{shorten(name)}': use at most 80 letters, digits, '.', '_' and '-', not '.', '_' or '-' first"
        )
    try:
        check_text(data_path)
    except ValueError as error:
        raise DataError(f"{shorten(ascii(data_path))}: the path is not valid UTF-8; rename the file") from error
    path = Path(data_path)
    unseen = data_path.startswith("package:") or (_HUB_ID.fullmatch(data_path) and not path.exists())
    look = None if unseen else look_at(path, text_column or image_column, label_column)
    modality = look.modality if look else "image" if image_column else "text"
    kind, run_name = _KINDS[modality], name or _name_for(data_path)
    return _TEMPLATE.format(
        schema=f"# yaml-language-server: $schema={shorten(schema, 500)}\n" if schema else "",
        name=run_name,
        quoted_name=scalar_text(run_name),
        what=kind.what,
        task=kind.task,
        backbone=scalar_text(backbone or kind.backbone),
        backbone_words=kind.backbone_words,
        data=_data(data_path, look, modality, text_column or image_column, label_column),
        inputs=kind.inputs,
        training=kind.training,
        language=kind.language,
        splits=_splits(look),
    )


def _name_for(data_path: str) -> str:
    stem = re.sub(r"\.(csv|tsv|jsonl|ndjson|parquet)$", "", Path(data_path.partition("@")[0]).name, flags=re.IGNORECASE)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:80]
    return name or "my-classifier"


def _data(data_path: str, look: Look | None, modality: str, input_column: str | None, label_column: str | None) -> str:
    source = str(look.splits["train"]) if look and look.splits else data_path
    lines = [f"source: {scalar_text(source)}"]
    if look is None:
        lines += [f"{modality}_column: {scalar_text(input_column or modality)}  # check the name of the column",
                  f"label_column: {scalar_text(label_column or 'label')}  # check the name of the column"]  # fmt: skip
    else:
        lines.append(f"format: {look.format}")
        if look.input_column and look.label_column:
            columns = shorten(", ".join(look.columns), 100)
            lines += [f"{modality}_column: {scalar_text(look.input_column)}  # columns: {columns}",
                      f"label_column: {scalar_text(look.label_column)}"]  # fmt: skip
        if look.first_row:
            shown = shorten(", ".join(look.first_row), 60)
            lines.append(
                f"columns: [{', '.join(map(scalar_text, look.columns))}]  # made up: the first line is no header but a row ({shown})"
            )
        if look.delimiter:
            lines.append(f"delimiter: {look.delimiter}  # not what the file's ending says")
        if look.encoding != "utf-8":
            lines.append(f"encoding: {look.encoding}" + ("  # not UTF-8; check" if look.encoding == "cp1252" else ""))
        lines.append(f"# labels seen: {_shown(look.labels)}")
    return "\n".join(f"  {line}" for line in lines)


def _shown(labels: tuple[str, ...]) -> str:
    more = f" and {len(labels) - _MOST_SHOWN} more" if len(labels) > _MOST_SHOWN else ""
    return ", ".join(shorten(label, 30) for label in labels[:_MOST_SHOWN]) + more


def _splits(look: Look | None) -> str:
    if not look or not look.splits:
        return "  # splits: {train: 0.8, validation: 0.1, test: 0.1}  # the default: stratified shares of the rows\n"
    lines = ["  splits:  # a share of the training rows where there is no table"]
    for split in ("train", "validation", "test"):
        value = scalar_text(str(look.splits[split])) if split in look.splits else "0.1"
        lines.append(f"    {split}: {value}")
    return "\n".join(lines) + "\n"

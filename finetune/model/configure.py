"""A backbone's configuration, made ready for a new head."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.errors import RecipeError, SourceError
from finetune.model_files import first_line

# The names under which configurations keep the dropout before their classifier.
HEAD_DROPOUT_FIELDS = (
    "classifier_dropout",
    "classifier_dropout_prob",
    "seq_classif_dropout",
    "cls_dropout",
    "summary_last_dropout",
)
# EfficientNet's `dropout_rate` is its classifier's; other architectures mean all of their dropout by that name.
_HEAD_DROPOUT_OF = {"efficientnet": ("dropout_rate",)}
_DROP_PATH_FIELDS = ("drop_path_rate", "drop_connect_rate")
TIMM = "timm_wrapper"


def configure(
    folder: Path, labels: Sequence[str], *, problem_type: str, outputs: int, dropout: float | None,
    drop_path: float | None, pad_token_id: int | None,
) -> Any:  # fmt: skip
    """The configuration of the model in `folder` for a head of `outputs`; `labels` name them, or nothing does.

    SourceError when transformers does not know it, RecipeError for a setting that the architecture does not have.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a field of a wrong type raises the validators' own classes
        raise SourceError(
            f"backbone '{folder}': config.json is not one that transformers knows ({first_line(error)})"
        ) from error
    names = list(labels) or [f"LABEL_{i}" for i in range(outputs)]
    config.num_labels = outputs
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    config.problem_type = problem_type
    if pad_token_id is not None:
        _set_padding(config, folder, pad_token_id)
    if config.model_type == TIMM:
        _set_timm_arguments(config, dropout, drop_path)
        return config
    if dropout is not None:
        for name in (*HEAD_DROPOUT_FIELDS, *_HEAD_DROPOUT_OF.get(config.model_type, ())):
            if hasattr(config, name):
                setattr(config, name, dropout)
    if drop_path is not None:
        fields = [name for name in _DROP_PATH_FIELDS if hasattr(config, name)]
        if drop_path > 0 and not fields:
            raise no_drop_path(config.model_type)
        for name in fields:
            setattr(config, name, drop_path)
    return config


def no_drop_path(architecture: str) -> RecipeError:
    """The refusal of stochastic depth where there is none to set."""
    return RecipeError(f"backbone.drop_path: {architecture} has no stochastic depth; remove the key")


def _set_padding(config: Any, folder: Path, pad_token_id: int) -> None:
    rows = getattr(config, "vocab_size", None)
    if isinstance(rows, int) and pad_token_id >= rows:
        raise SourceError(
            f"backbone '{folder}': its tokenizer pads with token {pad_token_id}, but the model knows only {rows} tokens"
        )
    # GPT-like models read the last token that is not padding, RoBERTa-like ones count positions from it: both by this id.
    config.pad_token_id = pad_token_id


def _set_timm_arguments(config: Any, dropout: float | None, drop_path: float | None) -> None:
    """What timm.create_model is called with: the checkpoint's own arguments of the architecture, and ours."""
    import timm

    saved = getattr(config, "model_args", None)
    # What the factory itself takes says where weights come from, or repeats what transformers passes.
    not_ours = {*inspect.signature(timm.create_model).parameters, "num_classes", "drop_path_rate"}
    arguments = {k: v for k, v in saved.items() if k not in not_ours} if isinstance(saved, Mapping) else {}
    if dropout is not None:
        arguments["drop_rate"] = dropout
    if drop_path:
        arguments["drop_path_rate"] = drop_path
    config.model_args = arguments
    # The names of the labels that the checkpoint knew would be saved beside ours.
    for holder in (vars(config), config.pretrained_cfg):
        for name in ("label_names", "label_descriptions", "label_offset", "labels"):
            holder.pop(name, None)

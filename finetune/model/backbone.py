"""A pretrained backbone with a new head: load it, renew the head, find its layer groups."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune.errors import RecipeError, SourceError
from finetune.model.groups import LayerGroups, find_layer_groups
from finetune.model.pickles import convert_pickle
from finetune.model.quiet import quiet_transformers
from finetune.model_files import first_line

__all__ = ["HEAD_DROPOUT_FIELDS", "TransferModel", "convert_pickle", "load_backbone"]

# The names under which configurations keep the dropout before their classifier.
HEAD_DROPOUT_FIELDS = (
    "classifier_dropout",
    "classifier_dropout_prob",
    "seq_classif_dropout",
    "cls_dropout",
    "summary_last_dropout",
)


@dataclass(frozen=True)
class TransferModel:
    """A network ready for transfer learning; the module is the only mutable part.

    fresh: names of parameters that have no pretrained value, all of them in the head's group.
    """

    module: nn.Module
    groups: LayerGroups
    fresh: frozenset[str]
    architecture: str

    @property
    def parameters(self) -> int:
        """Number of weights; a tied one counts once."""
        return sum(p.numel() for p in self.module.parameters())


def load_backbone(
    folder: Path, labels: Sequence[str], *, auto_class: str, dropout: float | None, seed: int, pad_token_id: int
) -> TransferModel:
    """Load `folder` in fp32 with a new head for `labels`; the head's values depend on `seed` alone.

    pad_token_id: what the tokenizer pads with. Neither torch's generator nor transformers' settings change.
    SourceError when weights of the pretrained body are missing or it cannot be divided into layer groups, RecipeError
    when the head has no dropout to set.
    """
    import transformers

    auto = getattr(transformers, auto_class)
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        config = _configure(folder, labels, dropout, pad_token_id)
        torch.manual_seed(seed)
        try:
            module, info = auto.from_pretrained(
                folder, config=config, dtype=torch.float32, local_files_only=True, use_safetensors=True,
                trust_remote_code=False, ignore_mismatched_sizes=True, output_loading_info=True,
            )  # fmt: skip
        except Exception as error:  # transformers passes on whatever the architecture or a file reader raises
            raise SourceError(f"backbone '{folder}' cannot be loaded as {auto_class}: {first_line(error)}") from error
        missing = set(info["missing_keys"])
        absent = missing | {key for key, *_ in info["mismatched_keys"]}
        groups = find_layer_groups(module, module.base_model, lambda: module(**_short_text(module)))
        new = _new_head(module, missing)
        fresh = frozenset(name for name, _ in module.named_parameters() if name in absent | new)
        if stray := sorted(fresh - set(groups.head.parameters)):
            raise SourceError(
                f"backbone '{folder}' lacks the weights of {len(stray)} parameters below the head, such as '{stray[0]}', "
                "or has them in another shape; it is not a checkpoint of this architecture"
            )
        # The head first and from the seed itself, so that a pooler in need of values does not change the head's.
        for names in (new, fresh - new):
            torch.manual_seed(seed)
            _renew(module, names)
    if dropout is not None:
        _set_head_dropout(module, dropout)
    return TransferModel(module, groups, fresh, type(module).__name__)


def _configure(folder: Path, labels: Sequence[str], dropout: float | None, pad_token_id: int) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a field of a wrong type raises the validators' own classes
        raise SourceError(
            f"backbone '{folder}': config.json is not one that transformers knows ({first_line(error)})"
        ) from error
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    config.problem_type = "single_label_classification"
    rows = getattr(config, "vocab_size", None)
    if isinstance(rows, int) and pad_token_id >= rows:
        raise SourceError(
            f"backbone '{folder}': its tokenizer pads with token {pad_token_id}, but the model knows only {rows} tokens"
        )
    # GPT-like models read the last token that is not padding, RoBERTa-like ones count positions from it: both by this id.
    config.pad_token_id = pad_token_id
    if dropout is not None:
        for name in HEAD_DROPOUT_FIELDS:
            if hasattr(config, name):
                setattr(config, name, dropout)
    return config


def _short_text(module: nn.Module) -> dict[str, torch.Tensor]:
    """A text of five tokens as `module` takes it; the last ends it, as encoder-decoders require."""
    end = getattr(module.config, "eos_token_id", None)
    ids = torch.tensor([[1, 2, 3, 4, end if isinstance(end, int) else 5]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {name: inputs[name] for name in inspect.signature(module.forward).parameters if name in inputs}


def _new_head(module: Any, missing: set[str]) -> set[str]:
    """Names of the head's parameters that must be new.

    A checkpoint with a whole head of this kind was made for other labels: all of it goes. One that only lacks the
    classifier may share other parts with its pretraining (ModernBERT's dense layer), and those stay.
    """
    body = {id(p) for p in module.base_model.parameters()}
    head = {name for name, p in module.named_parameters() if id(p) not in body}
    if head.isdisjoint(missing):
        return head
    incomplete = {name.rpartition(".")[0] for name in missing}
    return {name for name in head if name.rpartition(".")[0] in incomplete}


@torch.no_grad()
def _renew(module: Any, names: Iterable[str]) -> None:
    """Give parameters new values, as their architecture initialises them, from torch's current generator.

    transformers initialises what is not marked as loaded. NaN shows what it would not touch; that would be a head with
    a stranger's values.
    """
    parameters = dict(module.named_parameters())
    for name in names:
        parameters[name]._is_hf_initialized = False
        parameters[name].fill_(torch.nan)
        parts = name.split(".")
        for end in range(len(parts)):
            module.get_submodule(".".join(parts[:end]))._is_hf_initialized = False
    module.initialize_weights()
    if untouched := sorted(name for name in names if parameters[name].isnan().any()):
        raise SourceError(f"{type(module).__name__} does not say how '{untouched[0]}' begins; choose another backbone")


def _set_head_dropout(module: Any, dropout: float) -> None:
    """Set the dropout before the classifier: the last one outside the pretrained body."""
    body = set(module.base_model.modules())
    found = [child for child in module.modules() if isinstance(child, nn.Dropout) and child not in body]
    if found:
        found[-1].p = dropout
    elif dropout > 0:  # without dropout there may be no module for it, which is what 0 asks for
        raise RecipeError(f"head.dropout: {type(module).__name__} has no dropout before its classifier; remove the key")

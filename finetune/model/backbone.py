"""A pretrained backbone with a new head: load it, swap the head, find its layer groups."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune.errors import RecipeError, SourceError
from finetune.model.groups import LayerGroups, find_layer_groups

# The names under which architectures keep the dropout before their classifier.
HEAD_DROPOUT_FIELDS = (
    "classifier_dropout",
    "seq_classif_dropout",
    "cls_dropout",
    "summary_last_dropout",
    "final_dropout",
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
        return sum(p.numel() for p in self.module.parameters())


def load_backbone(
    folder: Path, labels: Sequence[str], *, auto_class: str, dropout: float | None, seed: int, pad_token_id: int
) -> TransferModel:
    """Load `folder` with a new head for `labels`; the head's values depend on `seed` alone.

    SourceError when weights of the pretrained body are missing, RecipeError when the head has no dropout to set.
    """
    import transformers

    config = _configure(folder, labels, dropout, pad_token_id)
    auto = getattr(transformers, auto_class)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module, info = auto.from_pretrained(
                folder, config=config, dtype=torch.float32, local_files_only=True, use_safetensors=True,
                trust_remote_code=False, ignore_mismatched_sizes=True, output_loading_info=True,
            )  # fmt: skip
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise SourceError(f"backbone '{folder}' cannot be loaded as {auto_class}: {_first_line(error)}") from error
        absent = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
        renewed = _renew_head(module, auto, config, absent)
    groups = find_layer_groups(
        module,
        module.base_model,
        lambda: module(input_ids=torch.arange(1, 5)[None], attention_mask=torch.ones(1, 4, dtype=torch.long)),
    )
    fresh = frozenset(name for name, _ in module.named_parameters() if name in absent | renewed)
    stray = sorted(fresh - set(groups.head.parameters))
    if stray:
        raise SourceError(
            f"backbone '{folder}' lacks the weights of {len(stray)} parameters below the head, such as '{stray[0]}'; it is not a checkpoint of this architecture"
        )
    return TransferModel(module, groups, fresh, type(module).__name__)


def convert_pickle(folder: Path, into: Path) -> Path:
    """Copy a model folder with its pickled weights turned into safetensors, unpickled in a process of its own.

    The child loads with weights_only (tensors and plain containers, no code) and passes tensors on by file.
    """
    import shutil

    into.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_file() and path.suffix in {".json", ".txt", ".model", ".md"}:
            shutil.copyfile(path, into / path.name)
    program = (
        "import sys, pathlib, torch; from safetensors.torch import save_file; folder, out = map(pathlib.Path, sys.argv[1:])\n"
        "tensors = {}\n"
        "for part in sorted(folder.glob('pytorch_model*.bin')): tensors.update(torch.load(part, map_location='cpu', weights_only=True))\n"
        "save_file({k: v.contiguous().clone() for k, v in tensors.items()}, out / 'model.safetensors', metadata={'format': 'pt'})\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program, str(folder), str(into)], capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SourceError(
            f"backbone '{folder}': its pickle does not load safely ({reason[:200]}); choose a checkpoint with safetensors"
        )
    return into


def _configure(folder: Path, labels: Sequence[str], dropout: float | None, pad_token_id: int) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(
            f"backbone '{folder}': config.json is not one that transformers knows ({_first_line(error)})"
        ) from error
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    config.problem_type = "single_label_classification"
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = pad_token_id
    if dropout is not None:
        fields = [name for name in HEAD_DROPOUT_FIELDS if hasattr(config, name)]
        if not fields:
            raise RecipeError(f"head.dropout: a {config.model_type} head has no dropout to set; remove the key")
        for name in fields:
            setattr(config, name, dropout)
    return config


def _renew_head(module: Any, auto: Any, config: Any, absent: set[str]) -> set[str]:
    """Give parameters outside the pretrained body new values if the checkpoint brought its own head; return their names."""
    prefix = module.base_model_prefix + "."
    head = {name for name, _ in module.named_parameters() if not name.startswith(prefix)}
    if head <= absent:
        return set()
    new = auto.from_config(config).state_dict()
    module.load_state_dict({name: new[name] for name in head}, strict=False)
    return head


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

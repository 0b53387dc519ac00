"""Checkpoints that exist completely or not at all, without pickles: safetensors and JSON under a manifest of hashes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from finetune.disk import read_json, require_space, sha256, sync, sync_tree, write_json, writing
from finetune.errors import RecipeError, TrainingError

KEEP = 1


@dataclass(frozen=True)
class Progress:
    """Where training stands; the next step is number `cursor` of epoch `epoch` of phase `phase`, all counted from 0.

    best: metric, validation loss, phase and epoch of the best weights so far; waiting: epochs since then in this phase;
    phase_start: fingerprint of the weights at the start of the phase; loss_sum and loss_rows: this epoch's so far.
    """

    phase: int = 0
    epoch: int = 0
    cursor: int = 0
    global_step: int = 0
    waiting: int = 0
    best: dict[str, float] | None = None
    loss_sum: float = 0.0
    loss_rows: float = 0.0
    phase_seconds: float = 0.0
    phase_steps: int = 0
    phase_start: dict[str, str] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    phases: list[dict[str, Any]] = field(default_factory=list)

    def with_(self, **changes: Any) -> Progress:
        return replace(self, **changes)


@dataclass(frozen=True)
class Checkpoint:
    """Progress and the tensors that go with it; `best` holds the trainable weights of the best epoch of this phase."""

    progress: Progress
    model: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, torch.Tensor]
    best: Mapping[str, torch.Tensor]
    scaler: Mapping[str, float] = field(default_factory=dict)


class CheckpointFolder:
    """The checkpoints of one run. `key` names what they depend on; another recipe's or other data's are refused."""

    def __init__(self, folder: Path, key: Mapping[str, object]) -> None:
        self.folder = folder
        self.key = dict(key)

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write aside, sync, rename, and only then remove the one before."""
        from safetensors.torch import save_file

        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        size = sum(t.numel() * t.element_size() for part in _tensors(checkpoint).values() for t in part.values())
        require_space(self.folder, size, "a checkpoint")
        number = max((int(p.name) for p in self._complete()), default=-1) + 1
        aside = self.folder / f"{number:06d}.partial"
        with writing(aside):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            for name, tensors in _tensors(checkpoint).items():
                save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, aside / f"{name}.safetensors")
        write_json(aside / "progress.json", {**asdict(checkpoint.progress), "scaler": dict(checkpoint.scaler)})
        files = {path.name: sha256(path) for path in sorted(aside.iterdir())}
        write_json(aside / "manifest.json", {"format": 1, "key": self.key, "files": files})
        final = self.folder / f"{number:06d}"
        with writing(self.folder):
            sync_tree(aside)
            aside.rename(final)
            sync(self.folder)
            for old in self._complete()[:-KEEP]:
                shutil.rmtree(old)
        return final

    def load(self) -> Checkpoint | None:
        """The newest whole checkpoint; None when there is none.

        RecipeError when it belongs to another recipe, data set or number of processes.
        """
        from safetensors.torch import load_file

        for path in reversed(self._complete()):
            manifest: Any = read_json(path / "manifest.json")
            if any(sha256(path / name) != digest for name, digest in manifest["files"].items()):
                raise TrainingError(
                    f"checkpoint '{path}' was altered after it was written; remove that folder and run without --resume"
                )
            self._check_key(manifest["key"])
            raw: Any = read_json(path / "progress.json")
            scaler = raw.pop("scaler")
            parts = {name: load_file(path / f"{name}.safetensors") for name in ("model", "optimizer", "best")}
            return Checkpoint(Progress(**raw), scaler=scaler, **parts)
        return None

    def clear(self) -> None:
        """Remove every checkpoint."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _complete(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(p for p in self.folder.iterdir() if p.name.isdigit() and (p / "manifest.json").is_file())

    def _check_key(self, found: Mapping[str, object]) -> None:
        for name, value in self.key.items():
            if found.get(name) != value:
                raise RecipeError(
                    f"--resume: the checkpoint in '{self.folder}' was made with another {name.replace('_', ' ')}; "
                    "restore it, or start anew without --resume"
                )


def _tensors(checkpoint: Checkpoint) -> dict[str, Mapping[str, torch.Tensor]]:
    return {"model": checkpoint.model, "optimizer": checkpoint.optimizer, "best": checkpoint.best}

"""Checkpoints that exist completely or not at all, without pickles: safetensors and JSON under a manifest of hashes."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from finetune.disk import read_json, reading, require_space, sha256, sync, sync_tree, write_json, writing
from finetune.errors import RecipeError
from finetune.recipe import Recipe
from finetune.train.checkpoint_files import (
    FORMAT,
    MANIFEST,
    PROGRESS,
    another_run,
    changed_keys,
    complete,
    damaged,
    read_manifest,
)

PARTS = ("model", "optimizer", "best")
# Room for progress.json and the manifest beside the tensors, in bytes.
SLACK = 4_000_000


@dataclass(frozen=True)
class Progress:
    """Where training stands; the next step is number `cursor` of epoch `epoch` of phase `phase`, all counted from 0.

    best: metric, validation loss, phase and epoch of the best weights so far; waiting: epochs since then in this phase;
    phase_start: fingerprint of the weights at the start of the phase; losses: per process, the sum of this epoch's
    losses so far and its denominator; epoch_seconds: training this epoch; phase_seconds: this phase, evaluation included;
    choice: what a phase that chooses its layer groups chose (`Choice.to_json`), so that a resumed run has the very same.
    """

    phase: int = 0
    epoch: int = 0
    cursor: int = 0
    global_step: int = 0
    waiting: int = 0
    best: dict[str, float] | None = None
    losses: list[list[float]] = field(default_factory=list)
    epoch_seconds: float = 0.0
    phase_seconds: float = 0.0
    phase_steps: int = 0
    phase_start: dict[str, str] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    phases: list[dict[str, Any]] = field(default_factory=list)
    choice: dict[str, Any] | None = None

    def with_(self, **changes: Any) -> Progress:
        return replace(self, **changes)


@dataclass(frozen=True)
class Checkpoint:
    """Progress and the tensors that go with it.

    model: what any phase trains, the rest being the backbone's own; optimizer: this phase's; best: what this phase
    trains, as it was after the best epoch so far; scaler: state of the gradient scaler of fp16.
    """

    progress: Progress
    model: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, torch.Tensor]
    best: Mapping[str, torch.Tensor]
    scaler: Mapping[str, float] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Mapping[str, torch.Tensor]]:
        return dict(zip(PARTS, (self.model, self.optimizer, self.best), strict=True))


class CheckpointFolder:
    """The checkpoints of one run. `key` names what they depend on; those of another recipe or other data are refused.

    recipe: kept with them, so that a refusal can name the keys that changed.
    """

    def __init__(self, folder: Path, key: Mapping[str, object], recipe: Recipe | None = None) -> None:
        self.folder = folder
        self.key = dict(key)
        self.recipe = recipe

    def depending_on(self, **more: object) -> CheckpointFolder:
        """The same folder under a key with further parts."""
        return CheckpointFolder(self.folder, {**self.key, **more}, self.recipe)

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write aside, sync, rename, and only then remove the one before; BundleError when the disk refuses it.

        Whatever fails, the checkpoint before stays whole and nothing half-written stays beside it.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_all_but(complete(self.folder)[-1:])
        size = sum(t.numel() * t.element_size() for part in checkpoint.tensors.values() for t in part.values())
        require_space(self.folder, size + SLACK, "a checkpoint")
        number = max((int(path.name) for path in complete(self.folder)), default=-1) + 1
        final, aside = self.folder / f"{number:06d}", self.folder / f"{number:06d}.partial"
        try:
            self._write(aside, checkpoint)
            with writing(self.folder):
                aside.rename(final)
                sync(self.folder)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        with writing(self.folder):
            self._remove_all_but([final])
        return final

    def load(self) -> Checkpoint | None:
        """The checkpoint to go on from; None when there is none.

        RecipeError when it belongs to another recipe, data set, backbone or number of processes; TrainingError when its
        bytes are not those that were written.
        """
        from safetensors.torch import load_file

        found = complete(self.folder)
        if not found:
            return None
        path = found[-1]
        manifest = read_manifest(path)
        if manifest["format"] != FORMAT:
            raise RecipeError(
                f"--resume: the checkpoint in '{path}' was written by another version of finetune; "
                "start anew with --overwrite instead of --resume"
            )
        self._check_key(manifest)
        names = [f"{part}.safetensors" for part in PARTS]
        with reading(path):
            hashes = {name: sha256(path / name) for name in [PROGRESS, *names] if (path / name).is_file()}
            if hashes != manifest["files"]:
                raise damaged(path)
            tensors = {part: load_file(path / name) for part, name in zip(PARTS, names, strict=True)}
        raw: Any = read_json(path / PROGRESS)
        scaler = raw.pop("scaler")
        return Checkpoint(Progress(**raw), scaler=scaler, **tensors)

    def clear(self) -> None:
        """Remove every checkpoint."""
        if self.folder.is_dir():
            with writing(self.folder):
                shutil.rmtree(self.folder)

    def _write(self, folder: Path, checkpoint: Checkpoint) -> None:
        from safetensors.torch import save_file

        with writing(folder), system_errors():
            folder.mkdir()
            for name, tensors in checkpoint.tensors.items():
                save_file(
                    {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, folder / f"{name}.safetensors"
                )
        write_json(folder / PROGRESS, {**asdict(checkpoint.progress), "scaler": dict(checkpoint.scaler)})
        with writing(folder):
            files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
        recipe = self.recipe and self.recipe.model_dump(mode="json")
        write_json(folder / MANIFEST, {"format": FORMAT, "key": self.key, "recipe": recipe, "files": files})
        with writing(folder):
            sync_tree(folder)

    def _remove_all_but(self, kept: list[Path]) -> None:
        """Remove older checkpoints, and what a killed process left half-written or half-removed."""
        for path in self.folder.iterdir():
            if path not in kept and path.name.removesuffix(".partial").isdigit():
                # First the manifest: without it a half-removed folder is no checkpoint.
                (path / MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(path)

    def _check_key(self, manifest: Mapping[str, Any]) -> None:
        for name, value in self.key.items():
            if manifest["key"].get(name) != value:
                recipe = self.recipe if name == "recipe" else None
                raise another_run(self.folder, name, changed_keys(manifest.get("recipe"), recipe) if recipe else "")


@contextmanager
def system_errors() -> Iterator[None]:
    """Raise as OSError what safetensors, whose own error it is not, could not write."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        number = int(code[1]) if code else 0
        raise OSError(number, os.strerror(number) if code else str(error)) from error

"""Where a run lives on disk: the bundle's folder, and beside it the state folder that a run is resumed from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetune.disk import writing
from finetune.errors import BundleError

EXPORTS = Path("exports")


@dataclass(frozen=True)
class Workspace:
    """`bundle` is where the result goes; `state` holds checkpoints, history.jsonl, TensorBoard events and
    converted backbones."""

    bundle: Path
    state: Path

    @classmethod
    def of(cls, name: str, output: str | None) -> Workspace:
        """The folders of a run; both on one file system, so that the bundle can be moved into place in one step."""
        bundle = Path(output).expanduser() if output else EXPORTS / name
        return cls(bundle, bundle.parent / ".state" / bundle.name)

    @property
    def checkpoints(self) -> Path:
        return self.state / "checkpoints"

    @property
    def history(self) -> Path:
        return self.state / "history.jsonl"

    @property
    def events(self) -> Path:
        return self.state / "events"

    def converted(self, rank: int) -> Path:
        """Where a process puts a backbone that had to be made into a model folder; each its own, since they load side by side."""
        return self.state / f"backbone.{rank}"

    def forget_converted(self) -> None:
        """Remove what any process converted; a run that failed keeps it, to be resumed from."""
        for folder in self.state.glob(self.converted(0).with_suffix(".*").name):
            shutil.rmtree(folder, ignore_errors=True)

    def require_writable(self) -> None:
        """BundleError unless files can be written where the bundle and its state will be."""
        with writing(self.bundle.parent):
            self.state.mkdir(parents=True, exist_ok=True)
            for folder in (self.bundle.parent, self.state):
                probe = folder / f".writable.{os.getpid()}"
                probe.touch()
                probe.unlink()

    def require_free(self, *, overwrite: bool) -> None:
        """BundleError if a result is there already and may not be replaced."""
        if self.bundle.exists() and not overwrite:
            raise BundleError(
                f"{self.bundle}: already exists; pass --overwrite to replace it, or name another folder with output=DIR"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the state folder for one run; BundleError if another run holds it."""
        import fcntl

        with writing(self.state):
            self.state.mkdir(parents=True, exist_ok=True)
            lock = (self.state / "lock").open("w")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BundleError(
                    f"{self.state}: another run is using this folder; wait for it, or name another folder with output=DIR"
                ) from None
            yield

"""Where a run lives on disk: the bundle's folder, and beside it the state folder that a run is resumed from."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from finetune.bundle import publishing
from finetune.disk import writing
from finetune.errors import BundleError
from finetune.train.checkpoint_files import how_far

EXPORTS = Path("exports")
ANOTHER = "name another folder with output=DIR"


@dataclass(frozen=True)
class Input:
    """A path that a run reads; open: whether the result may lie inside it all the same."""

    path: Path
    open: bool = False


@dataclass(frozen=True)
class Workspace:
    """`bundle` is where the result goes; `state` holds checkpoints, history.jsonl, TensorBoard events and
    converted backbones."""

    bundle: Path
    state: Path

    @classmethod
    def of(cls, name: str, output: str | None) -> Workspace:
        """The folders of a run; both on one file system, so that the bundle can be moved into place in one step."""
        bundle = Path(os.path.normpath(Path(output).expanduser())) if output else EXPORTS / name
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

    @property
    def how_far(self) -> str | None:
        """How far the unfinished run came that can be resumed here, in words; None when there is none."""
        return how_far(self.checkpoints)

    def require_replaceable(self, inputs: Mapping[str, Input]) -> None:
        """BundleError if a bundle may never come here: over what is none, over what the run reads, or in the midst of it.

        inputs: what the run reads, by its key in the recipe.
        """
        with writing(self.bundle):
            target = self.bundle.resolve()
            if Path.cwd().is_relative_to(target):
                raise BundleError(
                    f"{self.bundle}: is the folder that the command runs in, or holds it, and a bundle takes a folder "
                    f"of its own; {ANOTHER}"
                )
            publishing.check_replaceable(self.bundle, overwrite=True)
            for key, source in inputs.items():
                path = source.path.resolve()
                if path.is_relative_to(target):
                    where = "is" if path == target else "holds"
                elif target.is_relative_to(path) and not source.open:
                    where = "lies inside"
                else:
                    continue
                raise BundleError(f"{self.bundle}: {where} what {key} names, '{source.path}'; {ANOTHER}")

    def require_free(self, *, overwrite: bool) -> None:
        """BundleError if a result is there already and may not be replaced."""
        if self.bundle.exists() and not overwrite:
            raise BundleError(f"{self.bundle}: already exists; pass --overwrite to replace it, or {ANOTHER}")

    def require_fresh(self) -> None:
        """BundleError if an unfinished run lies here, whose training a new one would throw away."""
        if (done := self.how_far) is not None and not self._held():
            raise BundleError(
                f"{self.state}: holds an unfinished run, which ended {done}; go on with --resume, or start anew with "
                f"--overwrite, which discards it, or {ANOTHER}"
            )

    def require_writable(self) -> None:
        """BundleError unless files can be made where the bundle and its state will be; it leaves no trace."""
        with writing(self.bundle):
            for folder in (self.bundle.parent, self.state):
                place, names = Path(os.path.abspath(folder)), [f".{self.bundle.name}.partial"]  # noqa: PTH100 - drops ".."
                while not os.path.lexists(place):
                    names.append(place.name)
                    place = place.parent
                if not place.is_dir():
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                if not os.access(place, os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                for name in names:
                    with suppress(FileNotFoundError):
                        (place / name).lstat()  # a name may be too long

    def _held(self) -> bool:
        """Whether a run is at work here now."""
        import fcntl

        try:
            with (self.state / "lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

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
                    f"{self.state}: another run is using this folder; wait for it, or {ANOTHER}"
                ) from None
            yield

"""A bundle appears whole or not at all: a folder beside the target is filled, sealed, then moved into its place."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from finetune.bundle.contents import MANIFEST
from finetune.disk import sync, sync_tree, writing
from finetune.errors import BundleError

logger = logging.getLogger(__name__)


def start(target: Path) -> Path:
    """A new empty folder beside `target`, on the same file system, to be filled, sealed and published.

    What a killed run left there under the same name is removed.
    """
    target = _absolute(target)
    partial = target.with_name(f".{target.name}.partial")
    with writing(partial):
        partial.parent.mkdir(parents=True, exist_ok=True)
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir()
    return partial


def publish(partial: Path, target: Path, overwrite: bool = False) -> None:
    """Move the sealed folder `partial` to `target` in one step; both must be on one file system.

    With `overwrite` an earlier bundle is set aside first and removed only when the new one is in place. If anything
    fails, both folders are as they were before. A folder that is no bundle is never overwritten.
    """
    target = _absolute(target)
    if not (partial / MANIFEST).is_file():
        raise BundleError(f"{partial}: not sealed yet, there is no {MANIFEST}")
    aside = target.with_name(f".{target.name}.old")
    with writing(target):
        _recover(target, aside)
        check_replaceable(target, overwrite)
        sync_tree(partial)
        moves = [(partial, target)]
        if target.exists():
            moves.insert(0, (target, aside))
        try:
            for source, destination in moves:
                source.replace(destination)
            sync(target.parent)
        except BaseException:
            for source, destination in reversed(moves):
                if destination.exists() and not source.exists():
                    destination.replace(source)
            raise
    if aside.exists():
        _discard(aside)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - also drops "..", which has no name to put a folder beside


def _recover(target: Path, aside: Path) -> None:
    """Finish what a killed `publish` left: put the earlier bundle back, or drop it if the new one is in place."""
    if not aside.exists():
        return
    if target.exists():
        shutil.rmtree(aside)
    else:
        aside.replace(target)


def check_replaceable(target: Path, overwrite: bool) -> None:
    """BundleError unless a bundle may be put there: where nothing is, in an empty folder, or over another bundle if allowed."""
    if not (target.exists() or target.is_symlink()):
        return
    if target.is_symlink() or not target.is_dir():
        raise BundleError(f"{target}: is a link or a file, not a folder; name another folder with output=DIR")
    if not overwrite:
        raise BundleError(f"{target}: already exists; name another folder with output=DIR, or allow overwriting it")
    if not (target / MANIFEST).is_file() and any(target.iterdir()):
        raise BundleError(
            f"{target}: holds files but is no bundle, so it is not overwritten; name another folder with output=DIR"
        )


def _discard(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        logger.warning("the new bundle is in place, but the old one at %s could not be removed: %s", folder, error)

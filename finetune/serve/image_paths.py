"""Image files from what a user names: files, folders and globs."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from finetune.disk import reading
from finetune.errors import DataError
from finetune.preprocess.image_file import IMAGE_SUFFIXES


def find_images(names: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files that the names stand for, in the order of the names, those of one folder or glob sorted.

    A file is taken as it is. A folder stands for the files with an image's extension in it and in all folders below, but
    for hidden ones. Anything else is a glob, in which `**` goes through folders. DataError names one that stands for no file.
    """
    if isinstance(names, str | Path):
        names = [names]
    if not names:
        raise DataError("no image is named; name image files, folders of them or quoted patterns")
    return [path for name in names for path in _files(Path(name))]


def _files(name: Path) -> list[Path]:
    with reading(name):
        if name.is_dir():
            return _some(list(_below(name)), f"{name}: no image file in this folder or below it")
        if name.exists():
            return [name]
        if not glob.has_magic(str(name)):
            raise DataError(f"{name}: no such file or folder; name an image file, a folder of them or a quoted pattern")
        # As a shell would: hidden files are left out, and the pattern may begin anywhere.
        matches = (Path(found) for found in glob.glob(str(name), recursive=True))  # noqa: PTH207
        return _some(sorted(path for path in matches if path.is_file()), f"{name}: no file matches this pattern")


def _some(found: list[Path], otherwise: str) -> list[Path]:
    if not found:
        raise DataError(f"{otherwise}; check the folder and the extensions")
    return found


def _below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            # Hidden files are the droppings of file managers; "._a.jpg" is no picture.
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(parent, name)


def _raise(error: OSError) -> NoReturn:
    raise error  # os.walk would pass over a folder that it may not read

"""Reading and writing files so that what fails says where and why, and what is written is really on disk."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from finetune.errors import BundleError


def free_bytes(path: Path) -> int:
    """Bytes free for this user where `path` is or would be."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    with reading(place):
        return shutil.disk_usage(place).free


def require_space(path: Path, needed_bytes: int, what: str) -> None:
    """Raise BundleError unless `needed_bytes` are free at `path`; `what` begins the sentence ("the bundle")."""
    free = free_bytes(path)
    if free < needed_bytes:
        raise BundleError(
            f"{what} needs {needed_bytes / 1e6:,.0f} MB at {path}, but only {free / 1e6:,.0f} MB are free; "
            "free some space or name another folder with output=DIR"
        )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the file system raises while `path` is written into one BundleError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BundleError(
                f"{path}: the disk is full; free some space or name another folder, then run again"
            ) from error
        reason = error.strerror or str(error)
        raise BundleError(f"{path}: cannot be written ({reason}); check the folder and its permissions") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the file system raises while `path` is read into one BundleError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise BundleError(f"{path}: cannot be read ({reason}); check that it is there and its permissions") from error


def write_whole(path: Path, text: str) -> None:
    """A text file that appears whole or not at all: written beside, then moved; BundleError when the disk refuses it."""
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            with suppress(OSError):  # what went wrong before is what is told
                partial.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """JSON in insertion order, indented by two, on disk when this returns; a NaN or infinity is refused by its key."""
    if place := _not_finite(content, ""):
        raise BundleError(f"{path}: the value at '{place}' is not a finite number, so it cannot be written as JSON")
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with writing(path), path.open("wb") as file:
        # A lone surrogate (an undecodable file name) becomes its JSON escape.
        file.write(text.encode("utf-8", "backslashreplace"))
        file.flush()
        os.fsync(file.fileno())


def _not_finite(value: object, place: str) -> str | None:
    if isinstance(value, float):
        return None if math.isfinite(value) else place or "."
    pairs: Iterable[tuple[object, object]] = ()
    if isinstance(value, Mapping):
        pairs = value.items()
    elif isinstance(value, list | tuple):
        pairs = enumerate(value)
    found = (_not_finite(item, f"{place}.{key}".lstrip(".")) for key, item in pairs)
    return next((hit for hit in found if hit), None)


def read_json(path: Path) -> object:
    """The content of a JSON file; BundleError if it cannot be read or is no JSON."""
    with reading(path):
        content = path.read_bytes()
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not valid JSON ({error}); take a whole copy of the bundle") from error


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_tree(folder: Path) -> None:
    """Flush every file and folder under `folder`, and itself, to the disk."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(parent, name))
        sync(Path(parent))


def sync(path: Path) -> None:
    """Flush one file or folder to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

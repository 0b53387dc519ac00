"""Which files of a local source are read, and as what. Nothing here opens a file."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.errors import DataError

TABLE_SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "jsonl",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
_EXAMPLES = {"csv": "data.csv", "tsv": "data.tsv", "jsonl": "data.jsonl", "parquet": "data.parquet"}


@dataclass(frozen=True)
class DataFile:
    """One file to read; `place` names it and its rows in messages, `label` is its folder's name when folders are classes.

    `called` is how the user wrote it, where the file itself is the source.
    """

    path: Path
    place: str
    label: str | None = None
    called: str | None = None

    @property
    def name(self) -> str:
        """What a sentence about the whole file calls it."""
        return self.called or self.place


@dataclass(frozen=True)
class ClassFiles:
    """Which files of a folder are rows: endings in lower case, what a message calls them, and whether folders are classes.

    Where they are not, files at any depth are rows.
    """

    suffixes: frozenset[str]
    called: str
    classes: bool = True


TEXT_FILES = ClassFiles(frozenset(("", ".text", ".txt")), ".txt files")
DOCUMENT_FILES = ClassFiles(frozenset((".text", ".txt")), ".txt files", classes=False)


@dataclass(frozen=True)
class Layout:
    """The files of a source in a fixed order, their format, which files were left out, and sentences worth telling.

    `called` is how the user wrote the source.
    """

    format: str
    files: tuple[DataFile, ...]
    ignored: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    called: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the audit, one of them about files that were not read, if there were any."""
        if not self.ignored:
            return self.remarks
        more = ", …" if len(self.ignored) > 3 else ""
        were = "file or folder was" if len(self.ignored) == 1 else "files or folders were"
        return (*self.remarks, f"{len(self.ignored)} {were} not read: {', '.join(self.ignored[:3])}{more}")


def find_layout(
    path: Path,
    wanted: str,
    exclude: Collection[Path] = (),
    class_files: ClassFiles = TEXT_FILES,
    called: str | None = None,
) -> Layout:
    """The layout of a file or folder; `wanted` is data.format, `exclude` are paths that other splits read.

    Order is by name, never by the order in which the file system lists, so every machine reads the same rows.
    Raises DataError, naming the path as it is `called`, when the layout does not fit the format, or when `auto` cannot tell.
    """
    called = called or str(path)
    if wanted == "hub":
        raise DataError(f"{called} is a local path, but data.format is hub; set data.format to auto")
    if _is(stat.S_ISREG, path):
        return _one_file(path, wanted, class_files, called)
    hidden = {_real(p) for p in exclude}
    folder = (_class_folders if class_files.classes else _documents)(path, hidden, class_files)
    tables = _tables(path, hidden)
    if wanted == "auto":
        wanted = _guess(path, folder, tables, class_files, called)
    if wanted == "folder":
        if not folder.files:
            raise _no_rows(path, class_files, called)
        return replace(folder, called=called)
    chosen = [file for file, kind in tables if kind == wanted]
    if not chosen:
        raise DataError(f"the folder {called} holds no {wanted} file such as {_EXAMPLES[wanted]}; check data.format")
    return Layout(wanted, tuple(chosen), called=called)


def _one_file(path: Path, wanted: str, class_files: ClassFiles, called: str) -> Layout:
    file = DataFile(path, path.name, called=called)
    if wanted in ("auto", "folder") and not class_files.classes and path.suffix.lower() in class_files.suffixes:
        return Layout("folder", (file,), called=called)
    kind = TABLE_SUFFIXES.get(path.suffix.lower()) if wanted == "auto" else wanted
    if kind is None:
        known = ", ".join(sorted(TABLE_SUFFIXES))
        raise DataError(f"cannot tell the format of {called} (known endings: {known}); set data.format")
    if kind == "folder":
        held = "class folders" if class_files.classes else class_files.called
        raise DataError(f"{called} is a file, but data.format is folder; give the folder that holds the {held}")
    return Layout(kind, (file,), called=called)


def _class_folders(root: Path, exclude: Collection[str], class_files: ClassFiles) -> Layout:
    """Each visible subfolder that directly holds such files is a class; one that does not is told of, as it looks like one."""
    files: list[DataFile] = []
    ignored: list[str] = []
    empty: list[str] = []
    for folder in _entries(root):
        if _real(folder) in exclude:
            continue
        if not _is(stat.S_ISDIR, folder):
            ignored.append(folder.name)
            continue
        before = len(files)
        for file in _entries(folder):
            place = f"{folder.name}/{file.name}"
            if file.suffix.lower() in class_files.suffixes and _is(stat.S_ISREG, file):
                files.append(DataFile(file, place, folder.name))
            else:
                ignored.append(place)
        if len(files) == before:
            empty.append(f"{folder.name}/")
    return Layout("folder", tuple(files), tuple(ignored), _no_labels(empty, class_files))


def _no_labels(folders: list[str], class_files: ClassFiles) -> tuple[str, ...]:
    """A sentence about folders that are no class."""
    if not folders:
        return ()
    if len(folders) == 1:
        return (f"the folder {folders[0]} holds no {class_files.called}, so it is no label; fill or remove it",)
    shown = ", ".join(folders[:3]) + (", …" if len(folders) > 3 else "")
    return (
        f"{len(folders)} folders hold no {class_files.called}, so they are no labels; fill or remove them: {shown}",
    )


def _documents(root: Path, exclude: Collection[str], class_files: ClassFiles) -> Layout:
    """Every such file below the folder; folders that are links are not entered, as they may lead back."""
    files: list[DataFile] = []
    ignored: list[str] = []
    folders = [root]
    while folders:
        inner = []
        for path in _entries(folders.pop()):
            place = path.relative_to(root).as_posix()
            if _real(path) in exclude:
                continue
            if _is(stat.S_ISDIR, path) and not path.is_symlink():
                inner.append(path)
            elif path.suffix.lower() in class_files.suffixes and _is(stat.S_ISREG, path):
                files.append(DataFile(path, place))
            else:
                ignored.append(place)
        folders.extend(reversed(inner))
    return Layout("folder", tuple(files), tuple(ignored))


def _tables(root: Path, exclude: Collection[str]) -> list[tuple[DataFile, str]]:
    found = [(p, TABLE_SUFFIXES.get(p.suffix.lower())) for p in _entries(root) if _real(p) not in exclude]
    return [(DataFile(p, p.name), kind) for p, kind in found if kind and _is(stat.S_ISREG, p)]


def _guess(root: Path, folder: Layout, tables: list[tuple[DataFile, str]], class_files: ClassFiles, called: str) -> str:
    kinds = Counter(kind for _, kind in tables)
    classes = {file.label for file in folder.files}
    if folder.files and kinds and not class_files.classes:
        raise DataError(
            f"the folder {called} holds {class_files.called} and {' and '.join(sorted(kinds))} files; "
            "set data.format, or give one of the files as data.source"
        )
    if len(classes) > 1 or (classes and not kinds):
        return "folder"
    if len(kinds) > 1:
        raise DataError(
            f"the folder {called} holds {' and '.join(sorted(kinds))} files; "
            "set data.format, or give one of the files as data.source"
        )
    if kinds:
        return next(iter(kinds))
    raise _no_rows(root, class_files, called)


def _no_rows(root: Path, class_files: ClassFiles, called: str) -> DataError:
    """Say what is missing, and point one level down when the class folders seem to be there."""
    tables = "a CSV, TSV, JSON lines or Parquet file"
    if not class_files.classes:
        return DataError(
            f"the folder {called} holds neither {class_files.called}, at any depth, nor {tables}; check data.source"
        )
    entries = _entries(root)
    for folder in entries:
        if _is(stat.S_ISDIR, folder) and _class_folders(folder, (), class_files).files:
            inner = folder.name
            return DataError(
                f"the folder {called} holds no class folders, but {called.rstrip('/')}/{inner} does; "
                f"give that as data.source, or name it under data.splits (train: {inner})"
            )
    if any(
        entry.suffix and entry.suffix.lower() in class_files.suffixes and _is(stat.S_ISREG, entry) for entry in entries
    ):
        return DataError(
            f"the folder {called} holds {class_files.called}, but no class folders; "
            f"move the files of each label into a folder of its name, or give {tables} with the label of each"
        )
    return DataError(
        f"the folder {called} holds neither class folders with {class_files.called} nor {tables}; "
        "fill it, or give another data.source"
    )


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: p.name)
    except OSError as error:
        raise DataError(
            f"the folder {folder.name} cannot be listed: {error.strerror}; check its permissions"
        ) from error


def _real(path: Path) -> str:
    """What a path leads to; unlike `Path.resolve`, a link that leads to itself is no obstacle."""
    return os.path.realpath(path)


def _is(kind: Callable[[int], bool], path: Path) -> bool:
    """Whether a path leads to such a file; a link that leads nowhere, or where we may not look, leads to none."""
    try:
        return kind(path.stat().st_mode)
    except (OSError, ValueError):
        return False

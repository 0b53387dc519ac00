"""Which files of a local source are read, and as what. Nothing here opens a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
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
    """One file to read; `place` names it in messages, `label` is its folder's name when folders are classes."""

    path: Path
    place: str
    label: str | None = None

    @property
    def root(self) -> Path:
        """The folder that `place` starts from."""
        return self.path.parents[len(Path(self.place).parts) - 1]


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
    """The files of a source in a fixed order, their format, and how many files were left out."""

    format: str
    files: tuple[DataFile, ...]
    ignored: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence about files that were not read, if there were any."""
        if not self.ignored:
            return ()
        more = ", …" if len(self.ignored) > 3 else ""
        return (f"{len(self.ignored)} files or folders were not read: {', '.join(self.ignored[:3])}{more}",)


def find_layout(
    path: Path, wanted: str, exclude: Collection[Path] = (), class_files: ClassFiles = TEXT_FILES
) -> Layout:
    """The layout of a file or folder; `wanted` is data.format, `exclude` are paths that other splits read.

    Order is by name, never by the order in which the file system lists, so every machine reads the same rows.
    Raises DataError when the layout does not fit the format, or when `auto` cannot tell.
    """
    if wanted == "hub":
        raise DataError(f"{path.name} is a local path, but data.format is hub; set data.format to auto")
    if path.is_file():
        return _one_file(path, wanted, class_files)
    hidden = {p.resolve() for p in exclude}
    folder = (_class_folders if class_files.classes else _documents)(path, hidden, class_files)
    tables = _tables(path, hidden)
    if wanted == "auto":
        wanted = _guess(path, folder, tables, class_files)
    if wanted == "folder":
        if not folder.files:
            raise _no_classes(path, class_files)
        return folder
    chosen = [file for file, kind in tables if kind == wanted]
    if not chosen:
        raise DataError(f"the folder {path.name} holds no {wanted} file such as {_EXAMPLES[wanted]}; check data.format")
    return Layout(wanted, tuple(chosen))


def _one_file(path: Path, wanted: str, class_files: ClassFiles) -> Layout:
    if wanted in ("auto", "folder") and not class_files.classes and path.suffix.lower() in class_files.suffixes:
        return Layout("folder", (DataFile(path, path.name),))
    kind = TABLE_SUFFIXES.get(path.suffix.lower()) if wanted == "auto" else wanted
    if kind is None:
        known = ", ".join(sorted(TABLE_SUFFIXES))
        raise DataError(f"cannot tell the format of {path.name} (known endings: {known}); set data.format")
    if kind == "folder":
        held = "class folders" if class_files.classes else class_files.called
        raise DataError(f"{path.name} is a file, but data.format is folder; give the folder that holds the {held}")
    return Layout(kind, (DataFile(path, path.name),))


def _class_folders(root: Path, exclude: Collection[Path], class_files: ClassFiles) -> Layout:
    """Each visible subfolder that directly holds such files is a class."""
    files: list[DataFile] = []
    ignored: list[str] = []
    for folder in _entries(root):
        if folder.resolve() in exclude:
            continue
        if not folder.is_dir():
            ignored.append(folder.name)
            continue
        for file in _entries(folder):
            place = f"{folder.name}/{file.name}"
            if file.suffix.lower() in class_files.suffixes and file.is_file():
                files.append(DataFile(file, place, folder.name))
            else:
                ignored.append(place)
    return Layout("folder", tuple(files), tuple(ignored))


def _documents(root: Path, exclude: Collection[Path], class_files: ClassFiles) -> Layout:
    """Every such file below the folder; folders that are links are not entered, as they may lead back."""
    files: list[DataFile] = []
    ignored: list[str] = []
    folders = [root]
    while folders:
        inner = []
        for path in _entries(folders.pop()):
            place = path.relative_to(root).as_posix()
            if path.resolve() in exclude:
                continue
            if path.is_dir() and not path.is_symlink():
                inner.append(path)
            elif path.suffix.lower() in class_files.suffixes and path.is_file():
                files.append(DataFile(path, place))
            else:
                ignored.append(place)
        folders.extend(reversed(inner))
    return Layout("folder", tuple(files), tuple(ignored))


def _tables(root: Path, exclude: Collection[Path]) -> list[tuple[DataFile, str]]:
    found = [(p, TABLE_SUFFIXES.get(p.suffix.lower())) for p in _entries(root) if p.resolve() not in exclude]
    return [(DataFile(p, p.name), kind) for p, kind in found if kind and p.is_file()]


def _guess(root: Path, folder: Layout, tables: list[tuple[DataFile, str]], class_files: ClassFiles) -> str:
    kinds = Counter(kind for _, kind in tables)
    classes = {file.label for file in folder.files}
    if folder.files and kinds and not class_files.classes:
        raise DataError(
            f"the folder {root.name} holds {class_files.called} and {' and '.join(sorted(kinds))} files; "
            "set data.format, or give one of the files as data.source"
        )
    if len(classes) > 1 or (classes and not kinds):
        return "folder"
    if len(kinds) > 1:
        raise DataError(
            f"the folder {root.name} holds {' and '.join(sorted(kinds))} files; "
            "set data.format, or give one of the files as data.source"
        )
    if kinds:
        return next(iter(kinds))
    raise _no_classes(root, class_files)


def _no_classes(root: Path, class_files: ClassFiles) -> DataError:
    """Say what is missing, and point one level down when the class folders seem to be there."""
    if not class_files.classes:
        return DataError(
            f"the folder {root.name} holds neither {class_files.called}, at any depth, nor CSV, TSV, JSON lines or Parquet files"
        )
    for folder in _entries(root):
        if folder.is_dir() and _class_folders(folder, (), class_files).files:
            inner = folder.name
            return DataError(
                f"the folder {root.name} holds no class folders, but {root.name}/{inner} does; "
                f"give that as data.source, or name it under data.splits (train: {inner})"
            )
    return DataError(
        f"the folder {root.name} holds neither class folders with {class_files.called} nor CSV, TSV, JSON lines or Parquet files"
    )


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: p.name)
    except OSError as error:
        raise DataError(
            f"the folder {folder.name} cannot be listed: {error.strerror}; check its permissions"
        ) from error

"""`manifest.json`: SHA-256 and size of every file of a bundle, and what was written about it; both are checked here."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NoReturn

from finetune.bundle.contents import FORMAT, INT8, LABELS, MANIFEST, ONNX, PREPROCESS
from finetune.bundle.preprocessing import MODALITIES, read_preprocessing
from finetune.disk import reading, sha256, write_json, writing
from finetune.errors import BundleError

NEEDED = (PREPROCESS, LABELS)


def seal(folder: Path, facts: Mapping[str, object]) -> None:
    """Write `manifest.json`: SHA-256 and size of every file in `folder`, then the `facts` (see docs/predict.md).

    BundleError for links, for files that a bundle must have and this one lacks, and for facts that name no served file.
    """
    if clash := {"format", "files"} & set(facts):
        raise BundleError(f"the manifest's own key '{min(clash)}' cannot be given as a fact")
    with writing(folder):
        (folder / MANIFEST).unlink(missing_ok=True)
    with reading(folder):
        names = sorted(_walk(folder))
        files = {name: {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size} for name in names}
    manifest = {"format": FORMAT, "files": files, **facts}
    check_manifest(folder, manifest)
    check_files(folder, files, MODALITIES[read_preprocessing(folder).modality].files)
    write_json(folder / MANIFEST, manifest)


def _walk(folder: Path) -> Iterator[str]:
    """Relative POSIX paths of all files but the manifest. Links of both kinds and special files are refused."""
    for parent, folders, names in os.walk(folder, onerror=_raise):
        for name in (*folders, *names):
            path = Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            if name in names or path.is_symlink():
                check_regular(folder, relative)
                if relative != MANIFEST:
                    yield relative


def _raise(error: OSError) -> NoReturn:
    raise error  # os.walk would pass over a folder that it may not read


def check_regular(folder: Path, relative: str) -> None:
    """BundleError unless `relative` is a real file that nobody can change from elsewhere."""
    status = (folder / relative).lstat()
    if stat.S_ISLNK(status.st_mode):
        raise BundleError(
            f"{folder}: '{relative}' is a symbolic link; a bundle holds real files only, so copy the file itself"
        )
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{folder}: '{relative}' is not a regular file; remove it")
    if status.st_nlink > 1:
        raise BundleError(
            f"{folder}: '{relative}' has hard links elsewhere, so others can change it; copy the bundle to real files"
        )


def check_manifest(folder: Path, manifest: Mapping[str, object]) -> Mapping[str, Mapping[str, object]]:
    """The manifest's files, checked: plain relative names, all that a bundle needs, and a served file among them."""
    files = manifest.get("files")
    if not isinstance(files, Mapping) or not all(isinstance(entry, Mapping) for entry in files.values()):
        raise BundleError(f"{folder}: {MANIFEST} lists no files; take a whole copy of the bundle")
    for name in files:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or str(pure) != name or name == MANIFEST:
            raise BundleError(f"{folder}: {MANIFEST} lists '{name}', which is no plain path inside the bundle")
    served = manifest.get("served")
    if served not in (ONNX, INT8) or type(manifest.get("batch_invariant")) is not bool:
        raise BundleError(
            f"{folder}: {MANIFEST} must say which ONNX file is 'served' and whether it is 'batch_invariant'"
        )
    check_files(folder, files, (*NEEDED, str(served)))
    return files


def check_files(folder: Path, files: Collection[str], needed: Iterable[str]) -> None:
    """BundleError for the first of the needed files that the bundle lacks."""
    for name in needed:
        if name not in files:
            raise BundleError(f"{folder}: {name} is missing from the bundle; take a whole copy of it")


def verify_all(folder: Path, manifest: Mapping[str, object]) -> None:
    """Re-hash every file; BundleError names one that is missing, altered, added or a link."""
    files = check_manifest(folder, manifest)
    with reading(folder):
        found = set(_walk(folder))
    for name in sorted(found - set(files)):
        raise BundleError(f"{folder}: '{name}' does not belong to the bundle; remove it")
    for name in files:
        verify_file(folder, name, files)


def verify_file(folder: Path, name: str, files: Mapping[str, Mapping[str, object]]) -> None:
    """Re-hash one of the manifest's `files`; BundleError if it is not what the manifest says."""
    if name not in files:
        raise BundleError(f"{folder}: the bundle has no '{name}'")
    path = folder / name
    for parent in PurePosixPath(name).parents[:-1]:
        if (folder / parent).is_symlink():
            raise BundleError(
                f"{folder}: '{parent}' is a symbolic link; a bundle holds real files only, so copy the folder itself"
            )
    if not os.path.lexists(path):
        raise BundleError(f"{folder}: '{name}' is missing; take a whole copy of the bundle")
    with reading(path):
        check_regular(folder, name)
        same = path.stat().st_size == files[name].get("bytes") and sha256(path) == files[name].get("sha256")
    if not same:
        raise BundleError(f"{folder}: '{name}' was changed after the bundle was made; take a whole copy of the bundle")

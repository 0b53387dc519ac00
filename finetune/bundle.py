"""The on-disk contract of `exports/<run>/`: whole or absent, every byte accounted for in `manifest.json`.

Standard library and the text preprocessing settings only; no torch. Writing goes `start` → files → `seal` → `publish`;
reading goes `Bundle.open`, which re-hashes before anything is used.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NoReturn

from finetune.disk import free_bytes, read_json, reading, require_space, sha256, sync, sync_tree, write_json, writing
from finetune.errors import BundleError
from finetune.preprocess import TextPreprocess

__all__ = ["Bundle", "free_bytes", "publish", "require_space", "seal", "start", "write_json", "write_preprocessing"]

FORMAT = 1
MANIFEST, PREPROCESS, TOKENIZER, LABELS = "manifest.json", "preprocess.json", "tokenizer.json", "labels.json"
MODEL_FOLDER, ONNX, INT8 = "model", "onnx/model.onnx", "onnx/model.int8.onnx"
RECIPE, CARD, LICENSE, NOTICE = "recipe.yaml", "README.md", "LICENSE", "NOTICE"
REPORT, REPORT_HTML = "report.json", "report.html"
NEEDED = (PREPROCESS, TOKENIZER, LABELS)

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


def write_preprocessing(folder: Path, text: TextPreprocess, temperature: float) -> None:
    """`preprocess.json`: how a text becomes inputs, and the temperature that logits are divided by (1 for none)."""
    document = {"format": FORMAT, "task": "text_classification", "text": text.to_json(), "temperature": temperature}
    write_json(folder / PREPROCESS, document)


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
    _check_manifest(folder, manifest)
    write_json(folder / MANIFEST, manifest)


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
        _check_replaceable(target, overwrite)
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


def _check_replaceable(target: Path, overwrite: bool) -> None:
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


def _walk(folder: Path) -> Iterator[str]:
    """Relative POSIX paths of all files but the manifest. Links of both kinds and special files are refused."""
    for parent, folders, names in os.walk(folder, onerror=_raise):
        for name in (*folders, *names):
            path = Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            if name in names or path.is_symlink():
                _check_regular(folder, relative)
                if relative != MANIFEST:
                    yield relative


def _raise(error: OSError) -> NoReturn:
    raise error  # os.walk would pass over a folder that it may not read


def _check_regular(folder: Path, relative: str) -> None:
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


def _check_format(path: Path, document: object) -> Mapping[str, object]:
    version = document.get("format") if isinstance(document, Mapping) else None
    if not isinstance(document, Mapping) or type(version) is not int or version < 1:
        raise BundleError(f"{path}: not a finetune file, it states no format; take a whole copy of the bundle")
    if version > FORMAT:
        raise BundleError(
            f"{path}: format {version} is newer than this version of finetune reads ({FORMAT}); update finetune"
        )
    return document


def _check_manifest(folder: Path, manifest: Mapping[str, object]) -> Mapping[str, Mapping[str, object]]:
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
    for name in (*NEEDED, served):
        if name not in files:
            raise BundleError(f"{folder}: {name} is missing from the bundle; take a whole copy of it")
    return files


def _read_labels(path: Path) -> tuple[str, ...]:
    labels = read_json(path)
    if (
        not isinstance(labels, list)
        or not all(isinstance(label, str) for label in labels)
        or not 1 < len(set(labels)) == len(labels)
    ):
        raise BundleError(f"{path}: must be a list of at least two different names; take a whole copy of the bundle")
    return tuple(labels)


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, opened with `Bundle.open`."""

    path: Path
    manifest: Mapping[str, object]
    labels: tuple[str, ...]
    """Label names in the order of the logits."""
    preprocess: TextPreprocess
    temperature: float
    """Logits are divided by it before the softmax."""

    @classmethod
    def open(cls, path: Path, verify: bool = True) -> Bundle:
        """Read a bundle; with `verify` every file is re-hashed first. BundleError says what is wrong with it."""
        if not (path / MANIFEST).is_file():
            raise BundleError(f"{path}: not a bundle, there is no {MANIFEST}; name a folder that `finetune run` wrote")
        _check_regular(path, MANIFEST)
        manifest = _check_format(path / MANIFEST, read_json(path / MANIFEST))
        _check_manifest(path, manifest)
        if verify:
            _verify_all(path, manifest)
        document = _check_format(path / PREPROCESS, read_json(path / PREPROCESS))
        temperature = document.get("temperature")
        if document.get("task") != "text_classification":
            raise BundleError(f"{path / PREPROCESS}: the task {document.get('task')!r} is not known; update finetune")
        if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
            raise BundleError(
                f"{path / PREPROCESS}: the temperature must be a number above zero; take a whole copy of the bundle"
            )
        text = TextPreprocess.from_json(document.get("text"))
        return cls(path, manifest, _read_labels(path / LABELS), text, float(temperature))

    @property
    def files(self) -> Sequence[str]:
        """Relative paths of all files but the manifest."""
        return sorted(_check_manifest(self.path, self.manifest))

    @property
    def served(self) -> str:
        """Relative path of the ONNX file that answers by default."""
        return str(self.manifest["served"])

    @property
    def recipe_path(self) -> Path:
        """The resolved recipe that the bundle was made from."""
        return self.path / RECIPE

    @cached_property
    def report(self) -> Mapping[str, object]:
        """`report.json`, read when first asked for."""
        return _check_format(self.path / REPORT, read_json(self.path / REPORT))

    def verify(self) -> None:
        """Re-hash every file; BundleError names one that is missing, altered, added or a link."""
        _verify_all(self.path, self.manifest)

    def verify_files(self, names: Iterable[str]) -> None:
        """Re-hash some files only, by their relative paths."""
        files = _check_manifest(self.path, self.manifest)
        for name in names:
            _verify_file(self.path, name, files)


def _verify_all(folder: Path, manifest: Mapping[str, object]) -> None:
    files = _check_manifest(folder, manifest)
    with reading(folder):
        found = set(_walk(folder))
    for name in sorted(found - set(files)):
        raise BundleError(f"{folder}: '{name}' does not belong to the bundle; remove it")
    for name in files:
        _verify_file(folder, name, files)


def _verify_file(folder: Path, name: str, files: Mapping[str, Mapping[str, object]]) -> None:
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
        _check_regular(folder, name)
        same = path.stat().st_size == files[name].get("bytes") and sha256(path) == files[name].get("sha256")
    if not same:
        raise BundleError(f"{folder}: '{name}' was changed after the bundle was made; take a whole copy of the bundle")

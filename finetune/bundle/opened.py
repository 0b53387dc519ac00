"""A bundle on disk, opened for use: everything is re-hashed before anything is believed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from finetune.bundle.contents import MANIFEST, RECIPE, REPORT, check_format
from finetune.bundle.manifest import check_files, check_manifest, check_regular, verify_all, verify_file
from finetune.bundle.preprocessing import MODALITIES, Settings, read_labels, read_preprocessing
from finetune.disk import read_json
from finetune.errors import BundleError, DataError, RecipeError, SourceError
from finetune.preprocess import Encoder


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, opened with `Bundle.open`."""

    path: Path
    manifest: Mapping[str, object]
    task: str
    modality: str
    """What it reads: `text`, `image` or `language`."""
    target: str
    """What it answers: `single_label`, `multi_label`, `regression` or `next_token`."""
    labels: tuple[str, ...]
    """Label names in the order of the logits; () for regression and for language models."""
    preprocess: Settings
    temperature: float
    """Logits are divided by it before they become probabilities."""
    interval: float | None
    """Half-width around a regression's value, in the label's unit; None if there is none."""

    @classmethod
    def open(cls, path: Path, verify: bool = True) -> Bundle:
        """Read a bundle; with `verify` every file is re-hashed first. BundleError says what is wrong with it."""
        if not (path / MANIFEST).is_file():
            raise BundleError(f"{path}: not a bundle, there is no {MANIFEST}; name a folder that `finetune run` wrote")
        check_regular(path, MANIFEST)
        manifest = check_format(path / MANIFEST, read_json(path / MANIFEST))
        files = check_manifest(path, manifest)
        if verify:
            verify_all(path, manifest)
        found = read_preprocessing(path)
        check_files(path, files, MODALITIES[found.modality].files)
        return cls(
            path, manifest, found.task, found.modality, found.target, read_labels(path, found.target),
            found.settings, found.temperature, found.interval,
        )  # fmt: skip

    @property
    def outputs(self) -> int:
        """Numbers that a classifier or regressor gives for one input: a logit per label, or one value."""
        return len(self.labels) or 1

    @property
    def files(self) -> Sequence[str]:
        """Relative paths of all files but the manifest."""
        return sorted(check_manifest(self.path, self.manifest))

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
        return check_format(self.path / REPORT, read_json(self.path / REPORT))

    def encoder(self) -> Encoder:
        """What turns this bundle's inputs into the network's arrays; BundleError if its files cannot be used."""
        try:
            return MODALITIES[self.modality].encoder(self.path, self.preprocess)
        except (SourceError, RecipeError, DataError) as error:
            raise BundleError(str(error)) from error

    def verify(self) -> None:
        """Re-hash every file; BundleError names one that is missing, altered, added or a link."""
        verify_all(self.path, self.manifest)

    def verify_files(self, names: Iterable[str]) -> None:
        """Re-hash some files only, by their relative paths."""
        files = check_manifest(self.path, self.manifest)
        for name in names:
            verify_file(self.path, name, files)

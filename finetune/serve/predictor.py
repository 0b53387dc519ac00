"""A bundle's answers from Python: texts in, labels and calibrated probabilities out. Neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finetune.bundle import INT8, ONNX, TOKENIZER, Bundle
from finetune.errors import BundleError, DataError, RecipeError, SourceError
from finetune.preprocess import Encoded, TextEncoder
from finetune.runtime import open_session, run_logits

Which = Literal["served", "onnx", "int8"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer. `score` is the probability of `label`; `probabilities` are in label order and add up to one."""

    label: str
    score: float
    probabilities: dict[str, float]


class Predictor:
    """An open bundle. One predictor may be used by many threads at once: nothing in it changes after construction."""

    def __init__(
        self, path: str | Path, *, which: Which = "served", threads: int | None = None, verify: bool = True
    ) -> None:
        """Open the bundle at `path`, re-hashing every file first unless `verify` is false.

        `which` picks the ONNX file: the one the bundle serves, or `onnx` (fp32) or `int8` by name. `threads` is per call
        to the model, the usable cores when None. BundleError if the bundle cannot be used.
        """
        self._bundle = bundle = Bundle.open(Path(path), verify=verify)
        file = _onnx_file(bundle, which)
        try:
            self._encoder = TextEncoder(bundle.path / TOKENIZER, bundle.preprocess)
        except (SourceError, RecipeError) as error:
            raise BundleError(str(error)) from error
        self._session = open_session(bundle.path / file, threads)
        declared = {item.name for item in self._session.get_inputs()}
        if missing := sorted(declared - set(bundle.preprocess.inputs)):
            raise BundleError(
                f"{bundle.path / file}: wants the input '{missing[0]}', which preprocess.json does not name"
            )
        self._one_by_one = not _batch_invariant(bundle, file)

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names in the order of the model's logits."""
        return self._bundle.labels

    @property
    def manifest(self) -> Mapping[str, object]:
        """The bundle's manifest.json."""
        return self._bundle.manifest

    def predict(self, texts: str | Sequence[str], batch_size: int = 32) -> list[Prediction]:
        """One prediction per text, in order. Texts of like length share a batch, which saves padding."""
        return self._answers(self.logits([texts] if isinstance(texts, str) else texts, batch_size))

    def stream(self, texts: Iterable[str], batch_size: int = 32) -> Iterator[Prediction]:
        """Predictions one after the other, in order, reading `texts` a batch at a time: memory does not grow with them."""
        if isinstance(texts, str):
            raise DataError("stream takes an iterable of texts, not one text; use predict for that")
        check_batch_size(batch_size)
        source = iter(texts)
        batches = iter(lambda: list(islice(source, batch_size)), [])
        return (answer for batch in batches for answer in self.predict(batch, batch_size))

    def logits(self, texts: Sequence[str], batch_size: int = 32) -> NDArray[np.float32]:
        """Raw logits float32 (N, C) before temperature, in the order of the texts.

        A model that the manifest does not call batch-invariant gets one text at a time, whatever `batch_size` is.
        """
        check_batch_size(batch_size)
        rows = self._encoder.encode(texts)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
        size = 1 if self._one_by_one else batch_size
        found = np.empty((len(rows), len(self.labels)), dtype=np.float32)
        for begin in range(0, len(order), size):
            part = order[begin : begin + size]
            found[part] = self._run([rows[index] for index in part])
        return found

    def _run(self, rows: Sequence[Encoded]) -> NDArray[np.float32]:
        logits = run_logits(self._session, self._encoder.collate(rows))
        if logits.shape != (len(rows), len(self.labels)):
            raise BundleError(
                f"{self._bundle.path}: the model gave {logits.shape} numbers for {len(rows)} texts and {len(self.labels)} labels"
            )
        if not np.isfinite(logits).all():
            raise BundleError(
                f"{self._bundle.path}: the model gave a number that is not finite; its weights are damaged"
            )
        return logits

    def _answers(self, logits: NDArray[np.float32]) -> list[Prediction]:
        scaled = logits.astype(np.float64) / self._bundle.temperature
        odds = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        answers = []
        for row in odds / odds.sum(axis=1, keepdims=True):
            best = int(row.argmax())
            answers.append(Prediction(self.labels[best], float(row[best]), dict(zip(self.labels, row.tolist()))))
        return answers


def check_batch_size(batch_size: int) -> None:
    """DataError for a batch of fewer than one text."""
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}; it must be at least 1")


def _onnx_file(bundle: Bundle, which: str) -> str:
    files = {"served": bundle.served, "onnx": ONNX, "int8": INT8}
    if which not in files:
        raise BundleError(f"which is '{which}'; it must be one of {', '.join(files)}")
    if files[which] not in bundle.files:
        raise BundleError(f"{bundle.path}: the bundle has no {files[which]}; use which='served'")
    return files[which]


def _batch_invariant(bundle: Bundle, file: str) -> bool:
    """Whether a text's logits do not depend on the texts beside it; unless measured so, they are taken to depend."""
    if file == bundle.served:
        return bundle.manifest["batch_invariant"] is True
    export = bundle.report.get("export")
    measured = export.get("onnx" if file == ONNX else "int8") if isinstance(export, Mapping) else None
    return isinstance(measured, Mapping) and measured.get("batch_invariant") is True

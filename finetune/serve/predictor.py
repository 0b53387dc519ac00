"""A bundle's answers from Python: texts or images in, calibrated answers out. Neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from finetune.bundle import Bundle
from finetune.errors import BundleError, DataError
from finetune.hardware import cpu
from finetune.runtime import open_session, run_logits
from finetune.serve.answers import TARGETS, Answer
from finetune.serve.forms import Which, batch_invariant, onnx_file
from finetune.serve.inputs import READERS, Input, Shape, as_list


class Predictor:
    """An open bundle. One predictor may be used by many threads at once: nothing in it changes after construction.

    It reads texts (str) or images (a path, encoded bytes, a Pillow picture, an array uint8 (H, W) or (H, W, 3), an
    ImageFile), as the bundle was trained on, and answers with the type of the bundle's target: Prediction,
    MultiLabelPrediction or RegressionPrediction.
    """

    def __init__(
        self, path: str | Path, *, which: Which = "served", threads: int | None = None, verify: bool = True
    ) -> None:
        """Open the bundle at `path`, re-hashing every file first unless `verify` is false.

        `which` picks the ONNX file: the one the bundle serves, or `onnx` (fp32) or `int8` by name. `threads` is per call
        to the model, and for decoding images; the usable cores when None. BundleError if the bundle cannot be used.
        """
        self._bundle = bundle = Bundle.open(Path(path), verify=verify)
        if bundle.modality not in READERS:
            raise BundleError(
                f"{path}: this bundle continues a prompt, given with --prompt; in Python open it with finetune.Generator"
            )
        file = onnx_file(bundle, which)
        self._encoder = bundle.encoder()
        self._reader = READERS[bundle.modality]
        self._session = open_session(bundle.path / file, threads)
        self._threads = threads or cpu().cores
        _check_feeds(bundle, file, self._session, self._reader.feeds(bundle.preprocess))
        self._one_by_one = not batch_invariant(bundle, file)

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names in the order of the model's logits; () for regression."""
        return self._bundle.labels

    @property
    def modality(self) -> str:
        """What the bundle reads: `text` or `image`."""
        return self._bundle.modality

    @property
    def target(self) -> str:
        """What the bundle answers: `single_label`, `multi_label` or `regression`."""
        return self._bundle.target

    @property
    def manifest(self) -> Mapping[str, object]:
        """The bundle's manifest.json."""
        return self._bundle.manifest

    def predict(self, inputs: Input | Sequence[Input], batch_size: int = 32) -> list[Answer]:
        """One answer per input, in order. Texts of like length share a batch; no more than a batch of images is decoded.

        DataError names an input that cannot be read.
        """
        return self._answers(self.logits(inputs, batch_size))

    def attempt(self, inputs: Input | Sequence[Input], batch_size: int = 32) -> list[Answer | DataError]:
        """As `predict`, but an image that cannot be read has its DataError in its place, and the others are answered."""
        failed: dict[int, DataError] = {}
        logits = self._logits(inputs, batch_size, failed.__setitem__)
        read = [index for index in range(len(logits)) if index not in failed]
        answered = dict(zip(read, self._answers(logits[read])))
        return [failed[index] if index in failed else answered[index] for index in range(len(logits))]

    def stream(self, inputs: Iterable[Input], batch_size: int = 32) -> Iterator[Answer]:
        """Answers one after the other, in order, reading `inputs` a batch at a time: memory does not grow with them."""
        if isinstance(inputs, str | bytes | Path):
            raise DataError(
                f"stream takes an iterable of {self._reader.noun}, not one {self.modality}; use predict for that"
            )
        check_batch_size(batch_size)
        return (answer for batch in batches_of(inputs, batch_size) for answer in self.predict(batch, batch_size))

    def logits(self, inputs: Input | Sequence[Input], batch_size: int = 32) -> NDArray[np.float32]:
        """The network's own numbers float32 (N, outputs) before temperature, in the order of the inputs.

        `outputs` is the number of labels, 1 for regression. A model that the manifest does not call batch-invariant gets
        one input at a time, whatever `batch_size` is.
        """
        return self._logits(inputs, batch_size, _refuse)

    def _logits(
        self, inputs: Input | Sequence[Input], batch_size: int, failed: Callable[[int, DataError], object]
    ) -> NDArray[np.float32]:
        """Logits (N, outputs); `failed` is told the index of each input that cannot be read, whose row means nothing."""
        check_batch_size(batch_size)
        rows = self._encoder.encode(as_list(inputs))
        order = sorted(range(len(rows)), key=lambda index: self._encoder.size_of(rows[index]))
        size = 1 if self._one_by_one else batch_size
        found = np.zeros((len(rows), self._bundle.outputs), dtype=np.float32)
        for batch in batches_of(order, batch_size):
            ready = dict(zip(batch, self._reader.ready(self._encoder, [rows[index] for index in batch], self._threads)))
            for index in batch:
                if isinstance(ready[index], DataError):
                    failed(index, ready.pop(index))
            for part in batches_of(ready, size):
                found[part] = self._run([ready[index] for index in part])
        return found

    def _run(self, ready: Sequence[Any]) -> NDArray[np.float32]:
        logits = run_logits(self._session, self._reader.collate(self._encoder, ready))
        wanted = (len(ready), self._bundle.outputs)
        if logits.shape != wanted:
            raise BundleError(
                f"{self._bundle.path}: the model gave numbers of shape {logits.shape} for {wanted[0]} {self._reader.noun} "
                f"and {len(self.labels)} labels, not {wanted}; take a whole copy of the bundle"
            )
        if not np.isfinite(logits).all():
            raise BundleError(
                f"{self._bundle.path}: the model gave a number that is not finite; its weights are damaged"
            )
        return logits

    def _answers(self, logits: NDArray[np.float32]) -> list[Answer]:
        return TARGETS[self.target].answers(logits.astype(np.float64), self._bundle)


def check_batch_size(batch_size: int) -> None:
    """DataError for a batch of fewer than one input."""
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}; it must be at least 1")


def batches_of(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of at most `size` items, in order, each read when it is asked for."""
    source = iter(items)
    return iter(lambda: list(islice(source, size)), [])


def _refuse(_: int, error: DataError) -> NoReturn:
    raise error


def _check_feeds(bundle: Bundle, file: str, session: ort.InferenceSession, made: Mapping[str, Shape]) -> None:
    """BundleError if the ONNX file wants an array, or a size of one, that the preprocessing does not make."""
    for item in session.get_inputs():
        if item.name not in made:
            raise BundleError(
                f"{bundle.path / file}: wants the input '{item.name}', which preprocess.json does not name"
            )
        sizes = zip(item.shape, made[item.name])
        if any(isinstance(wanted, int) and given is not None and wanted != given for wanted, given in sizes):
            raise BundleError(
                f"{bundle.path / file}: wants '{item.name}' of shape {item.shape}, but preprocess.json makes {made[item.name]}"
            )

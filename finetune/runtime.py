"""ONNX Runtime sessions on the CPU, opened and run one way everywhere. Needs onnxruntime and numpy only.

A classifier answers with `run_logits`; a causal language model keeps the keys and values of what it has read
(`CachedDecoder`): one file reads a prompt (prefill) and goes on token by token (step).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from finetune.errors import BundleError
from finetune.hardware import cpu
from finetune.preprocess import IGNORED, LanguageEncoder, language

LOGITS = "logits"
Part = tuple[int, language.Sequence]
"""One document of a sequence, and the place of that sequence."""
PREFILL_TOKENS = 512  # a long prompt is read in pieces, because logits (B, S, V) of all of it at once can be gigabytes
TALLY_NUMBERS = 2**27  # most logits of one batch that are held to score sequences, 512 MiB of float32


def open_session(path: Path, threads: int | None = None) -> ort.InferenceSession:
    """A CPU session on an ONNX file; `threads` per run, the usable cores when None. BundleError if it cannot be opened.

    Idle threads do not spin (a spinning server burns its cores while it waits), and no memory plan is kept per input
    shape (every batch of texts has another). A session may be used by many threads at once.
    """
    if threads is not None and threads < 1:
        raise BundleError(f"threads is {threads}; it must be at least 1")
    if not path.is_file():
        raise BundleError(f"{path}: no such ONNX file; take a whole copy of the bundle")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or cpu().cores
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; warnings about graph optimisations mean nothing to a user
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no other base
        reason = str(error).splitlines()[0]
        raise BundleError(f"{path}: ONNX Runtime {ort.__version__} cannot open it ({reason})") from error


def run_logits(session: ort.InferenceSession, batch: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Logits float32 (B, C) of one batch: int64 (B, T) arrays of texts, or float32 (B, 3, H, W) pixels.

    Only the inputs that the session declares are fed. The output named "logits" is taken, or the first. BundleError if the
    batch lacks a declared input, or if one has a type or shape that the file does not take.
    """
    declared = [item.name for item in session.get_inputs()]
    if missing := [name for name in declared if name not in batch]:
        raise BundleError(
            f"the ONNX file wants the input '{missing[0]}', which the preprocessing does not make ({', '.join(batch)})"
        )
    outputs = [item.name for item in session.get_outputs()]
    wanted = LOGITS if LOGITS in outputs else outputs[0]
    try:
        (logits,) = session.run([wanted], {name: batch[name] for name in declared})
    except InvalidArgument as error:
        given = ", ".join(f"{name} {batch[name].dtype} {batch[name].shape}" for name in declared)
        reason = str(error).splitlines()[0][:200]
        raise BundleError(f"the ONNX file does not take what the preprocessing made ({given}): {reason}") from error
    return np.asarray(logits, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Cache:
    """What a decoder has read so far: P tokens a row, padding included. Reading on gives another; this one stays usable."""

    past: tuple[ort.OrtValue, ...]
    """Keys and values of every layer (B, H, P, D), in the order of the file's inputs."""
    mask: NDArray[np.int64]
    """(B, P): 1 where a row has a token, 0 where it was padded."""
    positions: NDArray[np.int64]
    """(B,): the position of each row's next token."""


class CachedDecoder:
    """A causal language model's ONNX file: prompts, single steps, whole sequences. Immutable; threads may share it.

    The file takes `input_ids` (B, S), `attention_mask` (B, P + S), `position_ids` (B, S), `past.{i}.key` and
    `past.{i}.value` (B, H, P, D), and gives `logits` (B, S, V), `present.{i}.key` and `present.{i}.value` (B, H, P + S, D).
    """

    def __init__(self, session: ort.InferenceSession) -> None:
        """Read names, layers and sizes from the session; BundleError if it is no decoder with a key/value cache."""
        inputs = {item.name: item for item in session.get_inputs()}
        outputs = {item.name: item for item in session.get_outputs()}
        found = [re.fullmatch(r"past\.(\d+)\.(key|value)", name) for name in inputs]
        past = sorted((match for match in found if match), key=lambda match: (int(match[1]), match[2]))
        self._past = tuple(match[0] for match in past)
        self._present = tuple(f"present.{match[1]}.{match[2]}" for match in past)
        if not past or "input_ids" not in inputs or LOGITS not in outputs or set(self._present) - set(outputs):
            raise BundleError(
                "the ONNX file is no language model with a key/value cache: it lacks input_ids, logits, past.*.key or present.*.key"
            )
        shapes = [inputs[name].shape for name in self._past]
        if not all(len(shape) == 4 and isinstance(shape[1], int) and isinstance(shape[3], int) for shape in shapes):
            raise BundleError(
                "the ONNX file does not fix the number of heads and their size in its past.*.key inputs; export it again"
            )
        self._sizes = tuple((shape[1], shape[3]) for shape in shapes)
        self._types = tuple(np.float16 if inputs[n].type == "tensor(float16)" else np.float32 for n in self._past)
        self._fed = frozenset(inputs) - set(self._past)
        self._session = session
        vocabulary = outputs[LOGITS].shape[-1]
        self.vocabulary: int | None = vocabulary if isinstance(vocabulary, int) else None
        """Logits for each token, where the file says so."""
        self.layers = len({match[1] for match in past})
        """Layers with a cache of their own."""

    def prefill(
        self, ids: NDArray[np.int64], lengths: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float32], Cache]:
        """Read prompts (B, S) from the start: logits float32 (B, V) of each row's last token, and the cache.

        `lengths` (B,) are the tokens of right-padded rows, each at least 1; S for all when None.
        """
        rows, width = ids.shape
        ends = np.full(rows, width, np.int64) if lengths is None else np.asarray(lengths, np.int64)
        if not rows or not width or not ((ends >= 1) & (ends <= width)).all():
            raise BundleError(f"a prompt needs at least one token, and lengths between 1 and {width}")
        cache, last = self._empty(rows), None
        for start in range(0, width, PREFILL_TOKENS):
            piece = ids[:, start : start + PREFILL_TOKENS]
            columns = np.arange(start, start + piece.shape[1])
            logits, cache = self._read(piece, (columns < ends[:, None]).astype(np.int64), cache)
            ending = np.flatnonzero((ends > start) & (ends <= start + piece.shape[1]))
            last = np.empty((rows, logits.shape[-1]), np.float32) if last is None else last
            last[ending] = logits[ending, ends[ending] - 1 - start]
        assert last is not None
        return last, replace(cache, positions=ends)

    def step(self, ids: NDArray[np.int64], cache: Cache) -> tuple[NDArray[np.float32], Cache]:
        """Read one more token a row (B,): logits float32 (B, V) of it, and the longer cache."""
        column = np.asarray(ids, np.int64)[:, None]
        logits, after = self._read(column, np.ones_like(column), cache)
        return logits[:, -1], after

    def logits(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits float32 (B, S, V) of whole rows (B, S) without padding, nothing read before."""
        return self._read(ids, np.ones_like(ids), self._empty(len(ids)))[0]

    def tallies(
        self, sequences: Sequence[language.Sequence], encoder: LanguageEncoder, batch_size: int
    ) -> NDArray[np.float64]:
        """float64 (N, 3) of each sequence: nats of negative log-likelihood, target tokens, and how many argmax got right.

        A packed sequence is read document by document, because the file knows no borders inside a row. At most
        `batch_size` rows, of like length, go together; fewer where their logits would not fit in memory.
        """
        parts = [(row, part) for row, sequence in enumerate(sequences) for part in documents_of(sequence)]
        parts.sort(key=lambda pair: len(pair[1].ids))
        sums = np.zeros((len(sequences), 3))
        for batch in self._batches(parts, batch_size):
            together = [part for _, part in batch]
            arrays, targets = encoder.collate(together), encoder.targets(together)
            logits, _ = self._read(arrays["input_ids"], arrays["attention_mask"], self._empty(len(batch)))
            for (row, _), row_logits, row_targets in zip(batch, logits, targets):
                sums[row] += tally_row(row_logits, row_targets)
        return sums

    def _batches(self, parts: Sequence[Part], batch_size: int) -> Iterator[Sequence[Part]]:
        """Runs of at most `batch_size` parts, sorted by length, whose logits stay below TALLY_NUMBERS."""
        batch: list[Part] = []
        for part in parts:
            numbers = (len(batch) + 1) * len(part[1].ids) * (self.vocabulary or 1)
            if batch and (len(batch) == batch_size or numbers > TALLY_NUMBERS):
                yield batch
                batch = []
            batch.append(part)
        if batch:
            yield batch

    def _empty(self, rows: int) -> Cache:
        past = (
            ort.OrtValue.ortvalue_from_numpy(np.zeros((rows, heads, 0, size), kind))
            for (heads, size), kind in zip(self._sizes, self._types)
        )
        return Cache(tuple(past), np.zeros((rows, 0), np.int64), np.zeros(rows, np.int64))

    def _read(self, ids: NDArray[np.int64], mask: NDArray[np.int64], cache: Cache) -> tuple[NDArray[np.float32], Cache]:
        """Logits (B, S, V) of the next tokens (B, S), right-padded as `mask` (B, S) says, and the cache after them."""
        whole = np.concatenate([cache.mask, mask], axis=1)
        positions = cache.positions[:, None] + np.arange(ids.shape[1])
        arrays = {"input_ids": ids, "attention_mask": whole, "position_ids": positions}
        feeds = {
            name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(arrays[name], np.int64))
            for name in arrays
            if name in self._fed
        }
        try:
            # OrtValues stay where they are: through numpy, all keys and values would be copied at every token.
            values = self._session.run_with_ort_values(
                [LOGITS, *self._present], feeds | dict(zip(self._past, cache.past))
            )
        except (Fail, InvalidArgument, RuntimeException) as error:
            reason = str(error).splitlines()[0][:200]
            raise BundleError(
                f"the ONNX file cannot read {ids.shape[1]} tokens after {cache.mask.shape[1]}: {reason}"
            ) from error
        logits = np.asarray(values[0].numpy(), np.float32)
        return logits, Cache(tuple(values[1:]), whole, cache.positions + ids.shape[1])


def documents_of(sequence: language.Sequence) -> list[language.Sequence]:
    """A packed `Sequence` as sequences of one document each, in order; an unpacked one is alone in the list."""
    segments = np.asarray(sequence.segments)
    borders = [0, *(np.flatnonzero(np.diff(segments)) + 1).tolist(), len(segments)]
    if len(borders) <= 2:
        return [sequence]
    return [
        replace(sequence, ids=sequence.ids[a:b], targets=sequence.targets[a:b], segments=[0] * (b - a))
        for a, b in pairwise(borders)
    ]


def tally_row(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> tuple[float, float, float]:
    """Of one row, logits (T, V) and targets (T,): nats lost, targets that count, and how many of them argmax got right."""
    counted = np.flatnonzero(targets != IGNORED)
    lost, right = 0.0, 0
    for start in range(0, len(counted), 64):  # a few rows at a time keep the float64 copy small
        some = counted[start : start + 64]
        wanted = targets[some]
        wide = logits[some].astype(np.float64)
        wide -= wide.max(axis=1, keepdims=True)
        lost += float((np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(len(some)), wanted]).sum())
        right += int((wide.argmax(axis=1) == wanted).sum())
    return lost, float(len(counted)), float(right)

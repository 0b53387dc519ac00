"""What values a network's tensors take on calibration rows, and the ranges that static quantisation should cover.

The rows are run once; every method then reads the same histograms. Memory is bounded whatever the number of rows: a
histogram and sums per tensor, and the activations of one row. Needs numpy, onnx and onnxruntime; imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.errors import ExportError
from finetune.export.parity import Batch
from finetune.runtime import open_session

BINS = 8192
SAMPLES = 65_536
"""Values per row and tensor that enter the histogram, evenly strided; extremes and means are taken over all values."""

Range = tuple[float, float]


class Statistics:
    """Values of one tensor: extremes, a histogram over (-bound, bound), and per channel sums."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self.bound = 0.0
        self.counts = np.zeros(BINS)
        self.rows = 0
        self._sums: NDArray[np.float64] | float = 0.0
        self._squares: NDArray[np.float64] | float = 0.0

    def add(self, values: NDArray[np.float32]) -> None:
        """Take in the values of one row: (1, C, …). ExportError if one is not finite."""
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ExportError("activations on the calibration rows are not finite; the network cannot be quantised")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(max(abs(low), abs(high)))
        flat = values.reshape(-1)
        stride = max(1, flat.size // SAMPLES) | 1  # odd, so that it does not beat with powers of two
        places = (flat[::stride] + self.bound) * (BINS / (2 * self.bound))
        self.counts += np.bincount(np.minimum(places.astype(np.int64), BINS - 1), minlength=BINS)
        self.rows += 1
        if values.ndim >= 2:
            rest = (0, *range(2, values.ndim))
            self._sums = self._sums + values.mean(axis=rest, dtype=np.float64)
            self._squares = self._squares + np.square(values).mean(axis=rest, dtype=np.float64)

    def _widen(self, largest: float) -> None:
        """Double the histogram's bound, joining pairs of bins, until `largest` fits."""
        self.bound = self.bound or max(largest, 1e-12)
        while largest > self.bound:
            joined = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([np.zeros(BINS // 4), joined, np.zeros(BINS // 4)])
            self.bound *= 2

    @property
    def edges(self) -> NDArray[np.float64]:
        """Edges of the bins (BINS + 1,)."""
        return np.linspace(-self.bound, self.bound, BINS + 1)

    @property
    def means(self) -> NDArray[np.float64]:
        """Mean of each channel (C,)."""
        return np.asarray(self._sums / self.rows)

    @property
    def variances(self) -> NDArray[np.float64]:
        """Variance of each channel (C,)."""
        return np.maximum(np.asarray(self._squares / self.rows) - self.means**2, 0)


def collect(fp32: Path, batches: Iterable[Batch], scratch: Path) -> dict[str, Statistics]:
    """Run the network on batches of one row; statistics of every float tensor by name, inputs and logits included."""
    import onnx

    proto = onnx.shape_inference.infer_shapes(onnx.load(str(fp32)))
    graph = proto.graph
    floats = {
        value.name for value in graph.value_info if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }  # shape inference tells the types
    kept = {value.name for value in graph.output}
    inner = [name for node in graph.node for name in node.output if name in floats and name not in kept]
    graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in inner)
    watched = scratch / "watched.onnx"
    onnx.save_model(proto, str(watched))
    session = open_session(watched)
    outputs = [item.name for item in session.get_outputs()]
    found = {name: Statistics() for name in (*(item.name for item in session.get_inputs()), *outputs)}
    for batch in batches:
        values = dict(zip(outputs, session.run(outputs, dict(batch)), strict=True))
        for name, array in (*batch.items(), *values.items()):
            found[name].add(np.asarray(array))
    if not all(one.rows for one in found.values()):
        raise ExportError("static int8 needs calibration rows, and none were given")
    return found


def min_max(found: Statistics) -> Range:
    """The extremes: nothing is cut off, and one outlier makes every step coarse."""
    return found.low, found.high


def percentile(share: float) -> Callable[[Statistics], Range]:
    """The range that holds `share` percent of the values, half of the rest cut off at either end."""

    def limits(found: Statistics) -> Range:
        cumulated = np.cumsum(found.counts) / found.counts.sum()
        tail = (100 - share) / 200
        low = found.edges[np.searchsorted(cumulated, tail)]
        high = found.edges[min(BINS, int(np.searchsorted(cumulated, 1 - tail)) + 1)]
        return max(found.low, float(low)), min(found.high, float(high))

    return limits


def least_squares(found: Statistics) -> Range:
    """The range with the least squared error of 8-bit rounding and clipping (Nagel et al. 2021, arXiv:2106.08295, §2.2).

    First the upper end is searched with the lower one at its extreme, then the lower one.
    """
    centres, counts = (found.edges[1:] + found.edges[:-1]) / 2, found.counts
    centres, counts = centres[counts > 0], counts[counts > 0]

    def error(low: float, high: float) -> float:
        step = (max(high, 0.0) - min(low, 0.0)) / 255 or 1.0
        zero = np.round(-min(low, 0.0) / step)
        rounded = (np.clip(np.round(centres / step) + zero, 0, 255) - zero) * step
        return float((counts * (rounded - centres) ** 2).sum())

    shares = np.linspace(1, 0.2, 33)
    high = (
        min((found.high * share for share in shares), key=lambda end: error(found.low, end))
        if found.high > 0
        else found.high
    )
    low = min((found.low * share for share in shares), key=lambda end: error(end, high)) if found.low < 0 else found.low
    return low, high


def entropy(found: Statistics) -> Range:
    """The range whose 128 levels lose least information: Kullback-Leibler divergence, as TensorRT does (Migacz 2017).

    Magnitudes are looked at, so one threshold serves both signs; it never exceeds the extremes.
    """
    half = BINS // 2
    magnitudes = found.counts[half:] + found.counts[:half][::-1]
    magnitudes = magnitudes.reshape(2048, -1).sum(axis=1)
    magnitudes[0] = magnitudes[
        1
    ]  # zeros, which ReLU makes many of, are exact whatever the range, and would drown the rest
    if not magnitudes.any():
        return min_max(found)
    kept = min(range(128, 2049, 32), key=lambda bins: _divergence(magnitudes, bins))
    threshold = found.bound * kept / 2048
    return max(found.low, -threshold), min(found.high, threshold)


def _divergence(magnitudes: NDArray[np.float64], kept: int) -> float:
    """KL divergence of the distribution clipped to `kept` bins from its form in 128 levels."""
    clipped = magnitudes[:kept].copy()
    clipped[-1] += magnitudes[kept:].sum()
    level = np.arange(kept) * 128 // kept
    filled = magnitudes[:kept] > 0
    per_level = np.bincount(level, magnitudes[:kept], minlength=128) / np.maximum(
        np.bincount(level, filled, minlength=128), 1
    )
    coarse = np.where(filled, per_level[level], 0.0)
    p, q = clipped / clipped.sum(), coarse / max(float(coarse.sum()), 1e-12)
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-9))).sum())


METHODS: dict[str, Callable[[Statistics], Range]] = {
    "percentile 99.99": percentile(99.99),
    "least squares": least_squares,
    "entropy": entropy,
    "min-max": min_max,
}
"""How the range of an activation is found from its statistics."""


def ranges(found: dict[str, Statistics], method: str) -> dict[str, Any]:
    """Tensor name -> (low, high) by one of `METHODS`."""
    return {name: METHODS[method](statistics) for name, statistics in found.items()}

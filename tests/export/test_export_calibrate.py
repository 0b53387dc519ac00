from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_convnets import ENCODER, Exported, pictures

from finetune.errors import ExportError
from finetune.export.calibrate import BINS, METHODS, Statistics, collect, entropy, least_squares, min_max, percentile
from finetune.runtime import open_session


def gathered(*rows: np.ndarray) -> Statistics:
    found = Statistics()
    for row in rows:
        found.add(np.asarray(row, np.float32))
    return found


def rounding_error(values: np.ndarray, low: float, high: float) -> float:
    step = (high - low) / 255
    return float(((np.clip(np.round((values - low) / step), 0, 255) * step + low - values) ** 2).sum())


@settings(max_examples=25)
@given(scales=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6), seed=st.integers(0, 9), signed=st.booleans())
def test_histogram_keeps_every_value_however_the_scale_grows(scales: list[float], seed: int, signed: bool) -> None:
    generator = np.random.default_rng(seed)
    rows = [generator.normal(size=(1, 3, 5)) * scale for scale in scales]
    rows = rows if signed else [np.abs(row) for row in rows]
    found = gathered(*rows)
    values = np.concatenate([row.astype(np.float32).ravel() for row in rows])
    assert found.counts.sum() == values.size
    assert found.low == values.min()
    assert found.high == values.max()
    assert found.bound >= np.abs(values).max()
    width = 2 * found.bound / BINS
    below = np.cumsum(found.counts)
    for edge in (BINS // 4, BINS // 2, 3 * BINS // 4):
        limit = found.edges[edge]
        assert (values < limit - width).sum() <= below[edge - 1] <= (values <= limit + width).sum()


def test_channels_have_their_own_means_and_variances() -> None:
    generator = np.random.default_rng(0)
    rows = [generator.normal([[0.0], [5.0]], [[1.0], [3.0]], size=(1, 2, 400)) for _ in range(20)]
    found = gathered(*rows)
    values = np.concatenate(rows, axis=2)[0]
    assert found.means == pytest.approx(values.mean(axis=1), abs=1e-6)
    assert found.variances == pytest.approx(values.var(axis=1), rel=1e-5)


def test_every_method_stays_within_the_extremes() -> None:
    generator = np.random.default_rng(0)
    for values in (
        generator.normal(size=(1, 4, 99)),
        generator.exponential(size=(1, 99)),
        -np.ones((1, 5)),
        np.zeros((1, 5)),
    ):
        found = gathered(values)
        for method in METHODS.values():
            low, high = method(found)
            assert found.low - 1e-6 <= low <= high <= found.high + 1e-6


def test_percentile_leaves_out_a_lone_outlier_and_min_max_does_not() -> None:
    values = np.random.default_rng(0).normal(size=(1, 60_000))
    values[0, 7] = 1000
    found = gathered(values)
    assert min_max(found)[1] == 1000
    assert percentile(99.9)(found)[1] < 5
    assert percentile(99.9)(found)[0] > -5


def test_least_squares_rounds_better_than_the_extremes() -> None:
    values = np.random.default_rng(1).standard_t(3, size=60_000).astype(np.float32)
    found = gathered(values[None])
    low, high = least_squares(found)
    assert rounding_error(values, low, high) < 0.9 * rounding_error(values, *min_max(found))


def test_entropy_is_not_drowned_by_the_zeros_that_relu_makes() -> None:
    values = np.maximum(np.random.default_rng(2).normal(-1, 1, size=(1, 60_000)), 0)
    _, high = entropy(gathered(values))
    assert high > 0.5 * values.max()


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ExportError, match="not finite"):
        gathered(np.array([[1.0, np.nan]]))


def test_statistics_are_those_of_the_networks_own_tensors(convnet: Exported, tmp_path: Path) -> None:
    rows = pictures(3, seed=4)
    found = collect(convnet.path, (ENCODER.collate([row]) for row in rows), tmp_path)
    pixels = ENCODER.collate(rows)
    (logits,) = open_session(convnet.path).run(None, dict(pixels))
    assert (found["logits"].low, found["logits"].high) == pytest.approx((logits.min(), logits.max()), rel=1e-5)
    assert found["pixel_values"].means == pytest.approx(pixels["pixel_values"].mean(axis=(0, 2, 3)), abs=1e-5)
    assert len(found) > 10
    assert {one.rows for one in found.values()} == {3}


def test_no_calibration_rows_is_one_sentence(convnet: Exported, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="needs calibration rows"):
        collect(convnet.path, [], tmp_path)

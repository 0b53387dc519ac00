from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from finetune.errors import DataError, RecipeError
from finetune.tasks.multi_label import class_weights, loss_denominator, loss_sums

ROWS = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 12),
        "labels": st.integers(1, 5),
        "smoothing": st.sampled_from([0.0, 0.1, 0.7]),
        "weighted": st.booleans(),
        "soft": st.booleans(),
        "seed": st.integers(0, 1000),
    }
)


def batch(case: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, float]:
    generator = torch.Generator().manual_seed(case["seed"])
    shape = (case["rows"], case["labels"])
    logits = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.rand(shape, generator=generator)
    weights = torch.rand(case["labels"], generator=generator) + 0.1 if case["weighted"] else None
    return logits, targets if case["soft"] else targets.round(), weights, case["smoothing"]


@settings(max_examples=50)
@given(case=ROWS)
def test_sum_over_denominator_is_torch_s_mean_loss_and_gradient(case: dict) -> None:
    logits, targets, weights, smoothing = batch(case)
    # Smoothing spreads ε over a label's two answers, yes and no.
    smoothed = targets.double() * (1 - smoothing) + smoothing * 0.5
    expected = bce(logits, smoothed, pos_weight=None if weights is None else weights.double())
    found = loss_sums(logits, targets, weights, smoothing, None) / loss_denominator(targets, weights)
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(loss, logits)[0] for loss in (found, expected)]
    torch.testing.assert_close(*slopes)


@settings(max_examples=30)
@given(case=ROWS, cut=st.integers(0, 12))
def test_sums_and_denominators_of_parts_add_up_to_the_whole(case: dict, cut: int) -> None:
    logits, targets, weights, smoothing = batch(case)
    parts = [slice(None, cut), slice(cut, None)]
    total = sum(loss_sums(logits[part], targets[part], weights, smoothing, None) for part in parts)
    torch.testing.assert_close(total, loss_sums(logits, targets, weights, smoothing, None))
    assert sum(loss_denominator(targets[part], weights) for part in parts) == case["rows"]


@settings(max_examples=30)
@given(case=ROWS, mask_seed=st.integers(0, 1000))
def test_masked_rows_leave_no_trace_in_sum_or_gradient(case: dict, mask_seed: int) -> None:
    logits, targets, weights, smoothing = batch(case)
    mask = torch.randint(2, (case["rows"],), generator=torch.Generator().manual_seed(mask_seed))
    kept = mask.bool()
    found = loss_sums(logits, targets, weights, smoothing, mask)
    torch.testing.assert_close(found, loss_sums(logits[kept], targets[kept], weights, smoothing, None))
    assert not torch.autograd.grad(found, logits)[0][~kept].any()


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits, targets = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(64, 3)
    found = loss_sums(logits.bfloat16(), targets, None, 0.0, None)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, bce(logits.bfloat16().float(), targets, reduction="sum") / 3)


@settings(max_examples=30)
@given(case=ROWS, counts_seed=st.integers(0, 1000))
def test_a_row_of_weight_k_counts_as_k_rows_of_decisions(case: dict, counts_seed: int) -> None:
    logits, targets, weights, smoothing = batch(case)
    counts = torch.randint(1, 4, (case["rows"],), generator=torch.Generator().manual_seed(counts_seed))
    repeated = [part.repeat_interleave(counts, dim=0) for part in (logits, targets)]
    found = loss_sums(logits, targets, weights, smoothing, counts.double())
    torch.testing.assert_close(found, loss_sums(repeated[0], repeated[1], weights, smoothing, None))


def test_balanced_weights_of_labels_count_rows_by_their_weights() -> None:
    labels, counts = np.array([[1, 0], [0, 1], [1, 1], [0, 0]]), np.array([1, 4, 2, 3])
    weights = class_weights("balanced", labels, ["a", "b"], counts.astype(np.float64))
    repeated = class_weights("balanced", labels.repeat(counts, axis=0), ["a", "b"])
    assert weights is not None
    assert repeated is not None
    assert weights.tolist() == repeated.tolist() == [pytest.approx(7 / 3), pytest.approx(4 / 6)]


def test_balanced_weights_are_negative_over_positive_rows() -> None:
    labels = np.array([[1, 0], [0, 1], [0, 1], [0, 1]], dtype=np.float32)
    weights = class_weights("balanced", labels, ["a", "b"])
    assert weights is not None
    assert weights.dtype == np.float32
    assert weights.tolist() == [3.0, pytest.approx(1 / 3)]
    np.testing.assert_allclose((weights * labels).sum(axis=0), (1 - labels).sum(axis=0))


def test_no_weights_are_none_and_named_ones_follow_the_order_of_the_labels() -> None:
    assert class_weights("none", np.eye(2), ["a", "b"]) is None
    weights = class_weights({"b": 2.0, "a": 0.5}, np.eye(2), ["a", "b"])
    assert weights is not None
    assert weights.tolist() == [0.5, 2.0]


@pytest.mark.parametrize(("column", "words"), [(0, "no training row has 'b'"), (1, "every training row has 'b'")])
def test_balanced_weights_of_a_label_with_one_side_only_are_refused_by_its_name(column: int, words: str) -> None:
    labels = np.array([[1, column], [0, column]], dtype=np.float32)
    with pytest.raises(DataError, match=words):
        class_weights("balanced", labels, ["a", "b"])


@pytest.mark.parametrize(
    ("setting", "words"),
    [({"a": 1.0, "c": 1.0}, "'c' is not a label"), ({"a": 1.0}, "'b' has no weight"), ("blanced", "did you mean")],
)
def test_weights_that_do_not_fit_the_labels_are_refused_for_several_labels(setting: object, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        class_weights(setting, np.eye(2), ["a", "b"])  # type: ignore[arg-type]

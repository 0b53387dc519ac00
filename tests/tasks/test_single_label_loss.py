from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import cross_entropy

from finetune.errors import DataError, RecipeError
from finetune.tasks.single_label import class_weights, loss_denominator, loss_sums

ROWS = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 12),
        "classes": st.integers(2, 5),
        "smoothing": st.sampled_from([0.0, 0.1, 0.7]),
        "weighted": st.booleans(),
        "seed": st.integers(0, 1000),
    }
)


def batch(case: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, float]:
    generator = torch.Generator().manual_seed(case["seed"])
    logits = torch.randn(case["rows"], case["classes"], generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(case["classes"], (case["rows"],), generator=generator)
    weights = torch.rand(case["classes"], generator=generator, dtype=torch.float64) + 0.1 if case["weighted"] else None
    return logits, labels, weights, case["smoothing"]


@settings(deadline=None, max_examples=50)
@given(case=ROWS)
def test_sum_over_denominator_is_torch_s_mean_loss_and_gradient(case: dict) -> None:
    logits, labels, weights, smoothing = batch(case)
    expected = cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)
    (slope,) = torch.autograd.grad(expected, logits)
    found = loss_sums(logits, labels, weights, smoothing, None) / loss_denominator(labels, weights)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, logits)[0], slope)


@settings(deadline=None, max_examples=50)
@given(case=ROWS, mask_seed=st.integers(0, 1000))
def test_masked_rows_leave_no_trace_in_sum_or_gradient(case: dict, mask_seed: int) -> None:
    logits, labels, weights, smoothing = batch(case)
    mask = torch.randint(2, (case["rows"],), generator=torch.Generator().manual_seed(mask_seed))
    kept = mask.bool()
    found = loss_sums(logits, labels, weights, smoothing, mask)
    torch.testing.assert_close(found, loss_sums(logits[kept], labels[kept], weights, smoothing, None))
    torch.testing.assert_close(found, loss_sums(logits, labels, weights, smoothing, mask.double()))
    slope = torch.autograd.grad(found, logits)[0]
    assert not slope[~kept].any()
    assert kept.any() == bool(slope.any())


@settings(deadline=None, max_examples=50)
@given(case=ROWS, shares=st.booleans(), counts_seed=st.integers(0, 1000))
def test_a_row_of_weight_k_counts_as_k_rows(case: dict, shares: bool, counts_seed: int) -> None:
    """For labels, and for shares of labels, which need not be those of one class."""
    logits, labels, weights, smoothing = batch(case)
    generator = torch.Generator().manual_seed(counts_seed)
    counts = torch.randint(1, 4, (case["rows"],), generator=generator)
    mixed = torch.rand(case["rows"], case["classes"], generator=generator, dtype=torch.float64).softmax(dim=1)
    truth = mixed if shares else labels
    found = loss_sums(logits, truth, weights, smoothing, counts.double())
    repeated = loss_sums(
        logits.repeat_interleave(counts, dim=0), truth.repeat_interleave(counts, dim=0), weights, smoothing, None
    )
    torch.testing.assert_close(found, repeated)
    torch.testing.assert_close(torch.autograd.grad(found, logits)[0], torch.autograd.grad(repeated, logits)[0])


@settings(deadline=None)
@given(rows=st.lists(st.tuples(st.integers(0, 1), st.integers(1, 4)), min_size=1, max_size=20))
def test_balanced_weights_count_a_row_of_weight_k_as_k_rows(rows: list[tuple[int, int]]) -> None:
    labels, counts = np.array([(0, 1), (1, 1), *rows]).T
    weights = class_weights("balanced", labels, list("ab"), counts.astype(np.float64))
    repeated = class_weights("balanced", labels.repeat(counts), list("ab"))
    assert weights is not None
    np.testing.assert_allclose(weights, repeated, rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(case=ROWS, cut=st.integers(0, 12))
def test_sums_and_denominators_of_parts_add_up_to_the_whole(case: dict, cut: int) -> None:
    logits, labels, weights, smoothing = batch(case)
    parts = [(logits[:cut], labels[:cut]), (logits[cut:], labels[cut:])]
    total = sum(loss_sums(x, y, weights, smoothing, None) for x, y in parts)
    below = sum(loss_denominator(y, weights) for _, y in parts)
    torch.testing.assert_close(total / below, cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing))


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(64, dtype=torch.int64)
    found = loss_sums(logits.bfloat16(), labels, None, 0.0, None)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, cross_entropy(logits.bfloat16().float(), labels, reduction="sum"))


def test_class_weights_of_another_dtype_are_accepted() -> None:
    logits, labels = torch.zeros(2, 2), torch.tensor([0, 1])
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64)
    assert loss_sums(logits, labels, weights, 0.0, None).item() == pytest.approx(4 * np.log(2))
    assert loss_denominator(labels, weights) == 4.0


@settings(deadline=None)
@given(labels=st.lists(st.integers(0, 3), min_size=4, max_size=60).map(lambda rest: np.array([0, 1, 2, 3, *rest])))
def test_balanced_weights_equal_scikit_learn_s_and_average_one_over_the_rows(labels: np.ndarray) -> None:
    weights = class_weights("balanced", labels, list("abcd"))
    assert weights is not None
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, compute_class_weight("balanced", classes=np.arange(4), y=labels), rtol=1e-6)
    assert weights[labels].mean() == pytest.approx(1, rel=1e-5)


def test_no_weights_are_none_and_named_ones_follow_the_order_of_the_labels() -> None:
    assert class_weights("none", np.array([0, 1]), ["a", "b"]) is None
    weights = class_weights({"b": 2.0, "a": 0.5}, np.array([0, 1]), ["a", "b"])
    assert weights is not None
    assert weights.tolist() == [0.5, 2.0]


def test_balanced_weights_of_a_label_without_rows_are_refused_by_its_name() -> None:
    with pytest.raises(DataError, match="'balanced' needs a training row of every label, but 'b' has none"):
        class_weights("balanced", np.array([0, 0, 2]), list("abc"))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"sports": 1.0, "tehc": 1.0}, "'tehc' is not a label of the data; did you mean 'tech'"),
        ({"sports": 1.0}, "label 'tech' has no weight"),
        ("balance", "unknown setting 'balance'; did you mean 'balanced'"),
    ],
)
def test_weights_that_do_not_fit_the_labels_are_refused(setting: object, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        class_weights(setting, np.array([0, 1]), ["sports", "tech"])  # type: ignore[arg-type]


@settings(max_examples=30)
@given(case=ROWS, mask_seed=st.integers(0, 1000))
def test_targets_that_put_everything_on_one_label_are_the_same_as_the_label(case: dict, mask_seed: int) -> None:
    logits, labels, weights, smoothing = batch(case)
    soft = torch.nn.functional.one_hot(labels, case["classes"]).double()
    mask = torch.randint(2, (case["rows"],), generator=torch.Generator().manual_seed(mask_seed)).double()
    for counted in (None, mask):
        hard = loss_sums(logits, labels, weights, smoothing, counted)
        torch.testing.assert_close(loss_sums(logits, soft, weights, smoothing, counted), hard)
    assert loss_denominator(soft, weights) == pytest.approx(loss_denominator(labels, weights))


def mixed(case: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two labels per row, the share of the first, and the soft targets that mixup makes of them."""
    generator = torch.Generator().manual_seed(case["seed"] + 1)
    first, second = torch.randint(case["classes"], (2, case["rows"]), generator=generator)
    share = torch.rand(case["rows"], 1, generator=generator, dtype=torch.float64)
    hot = torch.nn.functional.one_hot
    return first, second, share * hot(first, case["classes"]) + (1 - share) * hot(second, case["classes"])


@settings(max_examples=30)
@given(case=ROWS)
def test_mixed_targets_give_torch_s_loss_and_gradient(case: dict) -> None:
    logits, _, _, smoothing = batch(case)
    _, _, soft = mixed(case)
    expected = cross_entropy(logits, soft, label_smoothing=smoothing)
    found = loss_sums(logits, soft, None, smoothing, None) / loss_denominator(soft, None)
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(loss, logits)[0] for loss in (found, expected)]
    torch.testing.assert_close(*slopes)


@settings(max_examples=30)
@given(case=ROWS, cut=st.integers(0, 12))
def test_mixed_targets_weigh_both_labels_and_their_parts_add_up(case: dict, cut: int) -> None:
    logits, _, weights, smoothing = batch(case)
    first, second, soft = mixed(case)
    share = soft.gather(1, first[:, None])[:, 0].where(first != second, torch.ones(()))
    rows = [
        share[i] * loss_sums(logits[i : i + 1], first[i : i + 1], weights, smoothing, None)
        + (1 - share[i]) * loss_sums(logits[i : i + 1], second[i : i + 1], weights, smoothing, None)
        for i in range(case["rows"])
    ]
    parts = [slice(None, cut), slice(cut, None)]
    total = sum(loss_sums(logits[part], soft[part], weights, smoothing, None) for part in parts)
    torch.testing.assert_close(total, torch.stack(rows).sum())
    below = sum(loss_denominator(soft[part], weights) for part in parts)
    of_labels = torch.ones(case["classes"]) if weights is None else weights
    assert below == pytest.approx(float((share * of_labels[first] + (1 - share) * of_labels[second]).sum()))


@settings(max_examples=20)
@given(case=ROWS, mask_seed=st.integers(0, 1000))
def test_masked_rows_with_mixed_targets_leave_no_trace(case: dict, mask_seed: int) -> None:
    logits, _, weights, smoothing = batch(case)
    _, _, soft = mixed(case)
    mask = torch.randint(2, (case["rows"],), generator=torch.Generator().manual_seed(mask_seed))
    kept = mask.bool()
    found = loss_sums(logits, soft, weights, smoothing, mask)
    torch.testing.assert_close(found, loss_sums(logits[kept], soft[kept], weights, smoothing, None))
    assert not torch.autograd.grad(found, logits)[0][~kept].any()


def test_half_precision_logits_meet_mixed_targets_in_float32() -> None:
    logits, soft = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.full((8, 3), 1 / 3)
    found = loss_sums(logits.half(), soft, None, 0.0, None)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, cross_entropy(logits.half().float(), soft, reduction="sum"))

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import mse_loss

from finetune.errors import RecipeError
from finetune.tasks.regression import class_weights, loss_denominator, loss_sums

ROWS = st.tuples(st.integers(1, 12), st.integers(0, 1000))


def batch(case: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    rows, seed = case
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, 1, generator=generator, dtype=torch.float64, requires_grad=True)
    return logits, torch.randn(rows, generator=generator)


@settings(max_examples=30)
@given(case=ROWS)
def test_sum_over_denominator_is_torch_s_mean_squared_error_and_gradient(case: tuple[int, int]) -> None:
    logits, targets = batch(case)
    expected = mse_loss(logits[:, 0], targets.double())
    found = loss_sums(logits, targets, None, 0.0, None) / loss_denominator(targets, None)
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(loss, logits)[0] for loss in (found, expected)]
    torch.testing.assert_close(*slopes)


@settings(max_examples=30)
@given(case=ROWS, cut=st.integers(0, 12))
def test_squared_errors_of_parts_add_up_to_the_whole(case: tuple[int, int], cut: int) -> None:
    logits, targets = batch(case)
    parts = [slice(None, cut), slice(cut, None)]
    total = sum(loss_sums(logits[part], targets[part], None, 0.0, None) for part in parts)
    torch.testing.assert_close(total, loss_sums(logits, targets, None, 0.0, None))
    assert sum(loss_denominator(targets[part], None) for part in parts) == case[0]


@settings(max_examples=30)
@given(case=ROWS, mask_seed=st.integers(0, 1000))
def test_masked_numbers_leave_no_trace(case: tuple[int, int], mask_seed: int) -> None:
    logits, targets = batch(case)
    mask = torch.randint(2, (case[0],), generator=torch.Generator().manual_seed(mask_seed))
    kept = mask.bool()
    found = loss_sums(logits, targets, None, 0.0, mask)
    torch.testing.assert_close(found, loss_sums(logits[kept], targets[kept], None, 0.0, None))
    assert not torch.autograd.grad(found, logits)[0][~kept].any()


@settings(max_examples=30)
@given(case=ROWS, counts_seed=st.integers(0, 1000))
def test_a_number_of_weight_k_counts_as_k_numbers(case: tuple[int, int], counts_seed: int) -> None:
    logits, targets = batch(case)
    counts = torch.randint(1, 4, (case[0],), generator=torch.Generator().manual_seed(counts_seed))
    repeated = [part.repeat_interleave(counts, dim=0) for part in (logits, targets)]
    found = loss_sums(logits, targets, None, 0.0, counts.double())
    torch.testing.assert_close(found, loss_sums(repeated[0], repeated[1], None, 0.0, None))


def test_half_precision_answers_are_compared_in_float32() -> None:
    answers, targets = torch.full((3, 1), 300.0, dtype=torch.float16), torch.zeros(3)
    found = loss_sums(answers, targets, None, 0.0, None)
    assert found.dtype == torch.float32
    assert found.item() == 3 * 90_000


def test_a_head_with_two_outputs_is_an_error_and_not_all_pairs() -> None:
    for rows in (2, 3):
        with pytest.raises(RuntimeError):
            loss_sums(torch.zeros(rows, 2), torch.zeros(rows), None, 0.0, None)


@pytest.mark.parametrize("setting", ["balanced", {"a": 1.0}])
def test_class_weights_of_numbers_are_refused(setting: object) -> None:
    assert class_weights("none", np.zeros(2), ()) is None
    with pytest.raises(RecipeError, match="a regression has no labels to weigh; remove it"):
        class_weights(setting, np.zeros(2), ())  # type: ignore[arg-type]

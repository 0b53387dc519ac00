"""The loss of the next token against torch's and transformers' own, and tallies against the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers.loss.loss_utils import ForCausalLMLoss

from finetune.errors import RecipeError
from finetune.preprocess import IGNORED
from finetune.tasks.next_token import class_weights, loss_denominator, loss_sums, tallies

BATCHES = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 5),
        "width": st.integers(1, 7),
        "vocabulary": st.integers(2, 9),
        "ignored": st.sampled_from([0.0, 0.4, 1.0]),
        "seed": st.integers(0, 1000),
    }
)


def batch(case: dict) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(case["seed"])
    shape = (case["rows"], case["width"])
    logits = torch.randn(*shape, case["vocabulary"], generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(case["vocabulary"], shape, generator=generator)
    return logits, targets.masked_fill(torch.rand(shape, generator=generator) < case["ignored"], IGNORED)


@settings(max_examples=50)
@given(case=BATCHES, smoothing=st.sampled_from([0.0, 0.2]))
def test_sum_over_denominator_is_torch_s_mean_over_tokens_and_its_gradient(case: dict, smoothing: float) -> None:
    logits, targets = batch(case)
    total, below = loss_sums(logits, targets, None, smoothing, None), loss_denominator(targets, None)
    if below == 0:
        assert total.item() == 0
        assert not torch.autograd.grad(total, logits)[0].any()
        return
    expected = cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=smoothing)
    torch.testing.assert_close(total / below, expected)
    slopes = [torch.autograd.grad(loss, logits)[0] for loss in (total / below, expected)]
    torch.testing.assert_close(*slopes)


def test_it_is_the_loss_that_transformers_computes_from_labels_that_it_shifts_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(3, 8, 11, generator=generator), torch.randint(11, (3, 8), generator=generator)
    labels = ids.clone()
    labels[0, :4] = labels[1, 6:] = IGNORED
    targets = torch.cat([labels[:, 1:], torch.full((3, 1), IGNORED)], dim=1)
    found = loss_sums(logits, targets, None, 0.0, None) / loss_denominator(targets, None)
    torch.testing.assert_close(found, ForCausalLMLoss(logits, labels, vocab_size=11))


@settings(max_examples=40)
@given(case=BATCHES, mask_seed=st.integers(0, 1000))
def test_masked_rows_leave_no_trace_in_sum_or_gradient(case: dict, mask_seed: int) -> None:
    logits, targets = batch(case)
    mask = torch.randint(2, (case["rows"],), generator=torch.Generator().manual_seed(mask_seed))
    kept = mask.bool()
    found = loss_sums(logits, targets, None, 0.0, mask.float())
    torch.testing.assert_close(found, loss_sums(logits[kept], targets[kept], None, 0.0, None))
    assert not torch.autograd.grad(found, logits)[0][~kept].any()


@settings(max_examples=40)
@given(case=BATCHES, cut=st.integers(0, 5))
def test_parts_of_any_width_add_up_to_the_whole_where_their_means_would_not(case: dict, cut: int) -> None:
    logits, targets = batch(case)
    targets[:cut, case["width"] // 2 :] = IGNORED
    narrow = max(1, case["width"] // 2)
    parts = [(logits[:cut, :narrow], targets[:cut, :narrow]), (logits[cut:], targets[cut:])]
    total = sum(loss_sums(x, y, None, 0.0, None) for x, y in parts)
    torch.testing.assert_close(total, loss_sums(logits, targets, None, 0.0, None))
    assert sum(loss_denominator(y, None) for _, y in parts) == loss_denominator(targets, None)


@settings(max_examples=40)
@given(case=BATCHES)
def test_tallies_are_each_row_s_loss_its_targets_and_how_many_are_right(case: dict) -> None:
    logits, targets = batch(case)
    found = tallies(logits, targets)
    assert found.dtype == torch.float64
    assert found.shape == (case["rows"], 3)
    for row, (loss, count, right) in enumerate(found.tolist()):
        one, truth = logits[row : row + 1], targets[row : row + 1]
        assert loss == pytest.approx(loss_sums(one, truth, None, 0.0, None).item(), rel=1e-9)
        assert count == loss_denominator(truth, None)
        assert right == int(((one.argmax(-1) == truth) & (truth != IGNORED)).sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_float32(dtype: torch.dtype) -> None:
    logits = torch.randn(2, 300, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    targets = torch.zeros(2, 300, dtype=torch.int64)
    found = loss_sums(logits, targets, None, 0.0, None)
    assert found.dtype == torch.float32
    expected = cross_entropy(logits.double().flatten(0, 1), targets.flatten(), reduction="sum")
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert tallies(logits, targets)[:, 0].sum().item() == pytest.approx(expected.item(), rel=1e-5)


def test_targets_padded_to_the_longest_sequence_of_all_are_cut_to_the_batch() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1, 2, 3, IGNORED, IGNORED], [4, IGNORED, IGNORED, IGNORED, IGNORED]])
    torch.testing.assert_close(tallies(logits, targets), tallies(logits, targets[:, :3]))
    assert loss_sums(logits, targets, None, 0.0, None) == loss_sums(logits, targets[:, :3], None, 0.0, None)


def test_a_target_beyond_the_batch_is_an_error_and_not_lost() -> None:
    targets = torch.tensor([[1, 2, 3, IGNORED, 0]])
    for function in (tallies, lambda x, y: loss_sums(x, y, None, 0.0, None)):
        with pytest.raises(ValueError, match="targets beyond the 3 tokens"):
            function(torch.zeros(1, 3, 5), targets)


def test_a_logit_that_is_no_number_shows_in_the_tally() -> None:
    logits = torch.zeros(2, 3, 5)
    logits[0, 1, 2] = float("nan")
    found = tallies(logits, torch.ones(2, 3, dtype=torch.int64))
    assert np.isfinite(found.numpy()).all(axis=1).tolist() == [False, True]


@pytest.mark.parametrize("setting", ["balanced", {"a": 1.0}])
def test_class_weights_of_tokens_are_refused(setting: object) -> None:
    assert class_weights("none", np.zeros((2, 3)), ()) is None
    with pytest.raises(RecipeError, match="a language model has no labels to weigh; remove it"):
        class_weights(setting, np.zeros((2, 3)), ())  # type: ignore[arg-type]

"""Numbers are learned on a scale of their own and told in the labels' unit."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.transfer.scale import Scale, scale_of


def test_numbers_are_learned_around_zero_with_unit_spread_and_come_back() -> None:
    labels = np.array([120.0, 80.0, 100.0, 140.0], np.float32)
    scale = scale_of("regression", labels)
    learned = scale.down(labels)
    assert learned.mean() == pytest.approx(0, abs=1e-6)
    assert learned.std() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(scale.up(learned[:, None])[:, 0], labels, rtol=1e-6)


def test_numbers_that_are_all_alike_keep_their_unit() -> None:
    assert scale_of("regression", np.full(3, 7.0)) == Scale(mean=7.0, std=1.0)


@pytest.mark.parametrize("target", ["single_label", "multi_label"])
def test_labels_that_are_no_numbers_are_left_as_they_are(target: str) -> None:
    labels = np.array([1, 0, 1])
    scale = scale_of(target, labels)
    assert scale.down(labels) is labels
    assert scale.up(labels) is labels

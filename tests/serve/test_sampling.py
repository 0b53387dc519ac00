"""Choosing a token: the same numbers as transformers, the same draws for a seed."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.errors import DataError
from finetune.serve.sampling import Sampling

SETTINGS = [
    {},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {"temperature": 0.7},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.0, "top_k": 5000},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.0, "top_p": 1e-6},
    {"temperature": 1.7, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.2},
]


def transformers_scores(logits, seen, temperature=0.0, top_k=None, top_p=None, repetition_penalty=1.0):
    """The processors in the order in which `generate` applies them."""
    import torch
    from transformers import (
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    ids, scores = torch.tensor([list(seen)]), torch.from_numpy(logits)[None]
    chain = [RepetitionPenaltyLogitsProcessor(repetition_penalty)]
    if temperature:
        chain.append(TemperatureLogitsWarper(temperature))
    if top_k:
        chain.append(TopKLogitsWarper(top_k))
    if top_p:
        chain.append(TopPLogitsWarper(top_p))
    for process in chain:
        scores = process(ids, scores)
    return scores[0].numpy()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_transformers(settings, seed):
    random = np.random.default_rng(seed)
    logits = (random.normal(size=400) * 4).astype(np.float32)
    seen = set(random.integers(0, 400, 60).tolist())
    found = Sampling(**settings).scores(logits, seen)
    wanted = transformers_scores(logits, seen, **settings)
    assert np.array_equal(np.isfinite(found), np.isfinite(wanted))
    kept = np.isfinite(wanted)
    assert kept.any()
    np.testing.assert_allclose(found[kept], wanted[kept], rtol=1e-6, atol=1e-6)


def test_without_a_temperature_the_largest_logit_is_taken_after_the_penalty():
    logits = np.array([1.0, 3.0, 2.0], np.float32)
    random = np.random.default_rng(0)
    assert Sampling().choose(logits, {1}, random) == 1
    assert Sampling(repetition_penalty=2.0).choose(logits, {1}, random) == 2
    assert random.bit_generator.state == np.random.default_rng(0).bit_generator.state


def test_draws_follow_the_probabilities_and_leave_out_what_was_cut():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05])).astype(np.float32)
    random = np.random.default_rng(1)
    counts = np.bincount([Sampling(1.0).choose(logits, (), random) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.15, 0.05], atol=0.03)
    nucleus = {Sampling(1.0, top_p=0.7).choose(logits, (), random) for _ in range(400)}
    best = {Sampling(1.0, top_k=1).choose(logits, (), random) for _ in range(50)}
    assert (nucleus, best) == ({0, 1}, {0})


def test_a_token_without_probability_is_never_drawn_at_the_ends_of_the_range():
    class Fixed:
        def __init__(self, value: float) -> None:
            self.random = lambda: value

    logits = np.array([-np.inf, 0.0, 0.0, -np.inf], np.float32)
    drawn = [Sampling(1.0).choose(logits, (), Fixed(value)) for value in (0.0, np.nextafter(1.0, 0.0))]
    assert drawn == [1, 2]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; it must be a number of at least 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": True}, "temperature is True"),
        ({"temperature": 1.0, "top_k": 0}, "top_k is 0; it must be a whole number"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p is 0.0; it must be above 0 and at most 1"),
        ({"temperature": 1.0, "top_p": 1.2}, "top_p is 1.2"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; it must be a number above 0"),
        ({"seed": -1}, "seed is -1; it must be a whole number of at least 0"),
        ({"top_k": 5}, "top_k needs a temperature above 0"),
        ({"top_p": 0.5}, "top_p needs a temperature above 0"),
    ],
)
def test_a_value_that_cannot_be_is_one_sentence(settings, words):
    with pytest.raises(DataError, match=words) as caught:
        Sampling(**settings)
    assert "\n" not in str(caught.value)

"""What a language model has to beat: how often each token stands in the training texts, whatever went before."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from finetune.errors import DataError
from finetune.evaluation import next_token
from finetune.evaluation.logits import Floats, Integers


def unigram_baselines(
    train: Sequence[Sequence[int]], test: Sequence[Sequence[int]], vocabulary: int, metrics: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """Shares of the training tokens, measured on the test tokens: {"unigram": {metric: value, ..., "seconds": s}}.

    Args: train and test, the target ids of each sequence, where a negative id is no target (-100); vocabulary, how many ids there
    are. Raises DataError for an id outside of it, or if the test texts have no target.
    """
    started = time.perf_counter()
    values = next_token.measure(metrics, unigram_tallies(train, test, vocabulary))
    return {"unigram": {**values, "seconds": time.perf_counter() - started}}


def unigram_tallies(train: Sequence[Sequence[int]], test: Sequence[Sequence[int]], vocabulary: int) -> Floats:
    """Tallies (N, 3) of the test sequences under p(token) = (count + 1) / (training tokens + V) (Laplace's rule of succession).

    The one added to each count gives a token that training never saw a finite loss. Its first choice is always the most frequent
    token, the lowest id of equals.
    """
    counts = np.zeros(vocabulary, dtype=np.int64)
    for targets in _targets(train, vocabulary):
        counts += np.bincount(targets, minlength=vocabulary)
    losses = np.log(counts.sum() + vocabulary) - np.log(counts + 1)
    first = int(counts.argmax())
    tallies = [(losses[own].sum(), len(own), (own == first).sum()) for own in _targets(test, vocabulary)]
    return np.asarray(tallies, dtype=np.float64).reshape(-1, 3)


def _targets(sequences: Iterable[Sequence[int]], vocabulary: int) -> Iterable[Integers]:
    """The targets of each sequence, without the places that have none."""
    for sequence in sequences:
        given: npt.NDArray[np.int64] = np.asarray(sequence, dtype=np.int64)
        own = given[given >= 0]
        if len(own) and own.max() >= vocabulary:
            raise DataError(
                f"evaluation: token id {own.max()} is beyond the {vocabulary} that the network knows; use the backbone's own tokenizer"
            )
        yield own

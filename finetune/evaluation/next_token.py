"""Metrics of a language model from tallies, by name, with confidence intervals; every result is ready for strict JSON.

A tally is what one sequence came to, a row of (N, 3): the sum of its tokens' negative log-likelihoods in nats, the number of those
tokens, and how many of them were the model's first choice. Nobody keeps the logits (T, V) that it was made from. Each metric is a
ratio of two sums over sequences, so that a token counts the same wherever it stands, and not less in a long text.

A tally already holds what was right, so `labels` are not looked at anywhere here. They may be None. Nor are `weights`: a text counts
by its tokens, and recipes of language models have no data.weight_column.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.errors import DataError, RecipeError, TrainingError
from finetune.evaluation import external
from finetune.evaluation.intervals import CONFIDENCE, RESAMPLES, percentiles, resample
from finetune.evaluation.logits import Floats, Weights
from finetune.evaluation.names import known
from finetune.recipe.task_names import METRICS as NAMES

METRICS = NAMES["next_token"]
RISING = frozenset({"accuracy"})
"""Metrics of which more is better."""
SAME_WITHIN = 0.05
"""Two forms agree on a sequence if its perplexity differs by at most this share between them."""
LARGEST = sys.float_info.max
"""Stands for a perplexity or a drop that no float64 holds (a loss above 709 nats a token), since JSON has no infinity."""

_Labels = npt.NDArray[Any] | None


def _loss(tallies: Floats, weights: Floats) -> Floats:
    """Nats per target token of weighted sequences, (R,); NaN where they have no target token. Weights: (R, N)."""
    return _ratio(weights @ tallies[:, 0], weights @ tallies[:, 1])


def _perplexity(tallies: Floats, weights: Floats) -> Floats:
    """e to the loss, (R,): how many equally likely tokens the model wavers between, on average."""
    loss, most = _loss(tallies, weights), math.log(LARGEST)
    return np.where(loss > most, LARGEST, np.exp(np.minimum(loss, most)))


def _accuracy(tallies: Floats, weights: Floats) -> Floats:
    """Share of the target tokens that were the first choice, (R,)."""
    return _ratio(weights @ tallies[:, 2], weights @ tallies[:, 1])


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.where(below > 0, above / np.where(below > 0, below, 1), np.nan)


FORMULAS: Mapping[str, Callable[[Floats, Floats], Floats]] = {
    "perplexity": _perplexity,
    "accuracy": _accuracy,
    "loss": _loss,
}
"""Functions of tallies (N, 3) and row weights (R, N), giving (R,)."""


def checked_tallies(tallies: npt.NDArray[Any]) -> Floats:
    """Tallies (N, 3) as float64, or an error that says what is wrong with them.

    A sequence without a target token (a prompt whose answer was cut off) is allowed and weighs nothing. Raises TrainingError if a sum
    is NaN or infinite, DataError for no rows, no target token at all, another shape, or counts that cannot be.
    """
    tallies = np.asarray(tallies, dtype=np.float64)
    if tallies.ndim != 2 or tallies.shape[1] != 3:
        raise DataError(
            f"evaluation: tallies of shape {tallies.shape} are not (N, 3); give the sum of nats, tokens, and tokens right"
        )
    if not len(tallies):
        raise DataError("evaluation: there are no sequences to score; give the split at least one text")
    if bad := int((~np.isfinite(tallies)).any(axis=1).sum()):
        raise TrainingError(
            f"evaluation: {bad} of {len(tallies)} sequences have a NaN or infinite loss; lower the learning rate or use precision fp32"
        )
    tokens, right = tallies[:, 1], tallies[:, 2]
    if not ((right >= 0) & (right <= tokens)).all():
        raise DataError(
            "evaluation: a tally counts more tokens right than it has, or fewer than none; count them again"
        )
    if not tokens.any():
        raise DataError("evaluation: no sequence has a token to predict; give the split texts of two tokens or more")
    return tallies


def by_document(tallies: npt.NDArray[Any], rows: Sequence[Sequence[int]]) -> Floats:
    """Tallies (N, 3) of sequences summed over those that share a document: (documents, 3), in order of first sight.

    Pieces of one long text resemble each other, so that a bootstrap that drew them one by one would promise too narrow an interval.
    A packed block of several documents joins them all, so evaluate unpacked sequences where intervals matter.

    Args: rows, for each sequence the numbers of the documents that it holds tokens of, at least one.
    """
    tallies = np.asarray(tallies, dtype=np.float64)
    if len(rows) != len(tallies):
        raise DataError(
            f"evaluation: {len(rows)} sequences do not fit tallies of {len(tallies)}; give one list of rows each"
        )
    parent: dict[int, int] = {}

    def root(row: int) -> int:
        while (above := parent.setdefault(row, row)) != row:
            # Halving the path on the way keeps long chains of blocks short.
            parent[row] = parent.setdefault(above, above)
            row = parent[row]
        return row

    for own in rows:
        for row in own:
            parent[root(row)] = root(own[0])
    numbers: dict[int, int] = {}
    groups = [numbers.setdefault(root(own[0]), len(numbers)) for own in rows]
    summed = np.zeros((len(numbers), 3))
    np.add.at(summed, groups, tallies)
    return summed


def check_metrics(names: Sequence[str], *, classes: int = 2, weighted: bool = False) -> None:
    """Make sure, before training, that every name can be computed. RecipeError for an unknown name or an `evaluate:` metric."""
    if weighted:
        external.refuse_weighted(names)
    for name in names:
        _known(name)


def higher_is_better(metric: str) -> bool:
    """Whether a greater value of this metric is better; false for perplexity and loss. RecipeError for an unknown name."""
    return _known(metric) in RISING


def score(metric: str, tallies: npt.NDArray[Any], labels: _Labels = None, weights: Weights = None) -> float:
    """One metric of tallies (N, 3), over all their tokens. Raises RecipeError (unknown name), and what `checked_tallies` does."""
    return _value(_known(metric), checked_tallies(tallies))


def measure(
    metrics: Sequence[str], tallies: npt.NDArray[Any], labels: _Labels = None, weights: Weights = None
) -> dict[str, float | None]:
    """Values of metrics without intervals; errors as `score`."""
    tallies = checked_tallies(tallies)
    return {name: _value(_known(name), tallies) for name in metrics}


def evaluate(
    tallies: npt.NDArray[Any],
    labels: _Labels,
    label_names: Sequence[str],
    metrics: Sequence[str],
    seed: int = 0,
    weights: Weights = None,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Everything the report says about one set of sequences, JSON-ready.

    Args: tallies (N, 3), by document where documents were split (`by_document`), since the intervals come from drawing rows of them
    anew (the percentile bootstrap of a ratio of sums); metrics, built-in names.
    Returns: {"rows": N, "tokens": how many were predicted, "loss" and each metric: {"value", "low", "high"}}. low and high are None
    where fewer than two rows have a target token, as one says nothing about the next. Raises as `score` does.
    """
    tallies = checked_tallies(tallies)
    names = list(dict.fromkeys((*map(_known, metrics), "loss")))
    formulas = {name: lambda weights, name=name: FORMULAS[name](tallies, weights) for name in names}
    enough = np.count_nonzero(tallies[:, 1]) > 1
    samples = resample(formulas, len(tallies), resamples, seed) if enough else {}
    result: dict[str, Any] = {"rows": len(tallies), "tokens": int(tallies[:, 1].sum())}
    for name in names:
        value = _value(name, tallies)
        low, high = percentiles(value, samples[name], confidence) if enough else (None, None)
        result[name] = {"value": value, "low": low, "high": high}
    return result


def agreement(reference: npt.NDArray[Any], other: npt.NDArray[Any], labels: _Labels = None) -> float:
    """Share of the sequences with target tokens whose perplexity differs by at most 5 % between two forms of a model.

    The share of tokens on which both forms have the same first choice says more, but needs the choices, which a tally does not hold.
    Raises what `checked_tallies` does, and DataError if the two were not measured on the same sequences.
    """
    reference, other = checked_tallies(reference), checked_tallies(other)
    if not np.array_equal(reference[:, 1], other[:, 1]):
        raise DataError(
            "evaluation: two forms were measured on different tokens; give both the same sequences in the same order"
        )
    told = reference[:, 1] > 0
    gaps = np.abs(reference[told, 0] - other[told, 0]) / reference[told, 1]
    return float(np.mean(gaps <= math.log1p(SAME_WITHIN)))


def drop(metric: str, reference_score: float, other_score: float, labels: _Labels = None) -> float:
    """How much worse the other score is: perplexity and loss as a share of the reference, accuracy as a difference.

    Negative if it is better; finite whatever the scores.
    """
    if higher_is_better(metric):
        return reference_score - other_score
    if other_score == reference_score:
        return 0.0
    # A loss of 0 is a text known by heart; whatever is worse than that is worse by any measure.
    change = (other_score - reference_score) / max(abs(reference_score), sys.float_info.min)
    return min(change, LARGEST)


def hardness(tallies: npt.NDArray[Any], labels: _Labels = None) -> Floats:
    """Nats per target token of each sequence (N,); 0 for one that has none."""
    tallies = checked_tallies(tallies)
    return tallies[:, 0] / np.maximum(tallies[:, 1], 1)


def _value(metric: str, tallies: Floats) -> float:
    # The `+ 0.0` turns the -0.0 of a perfectly certain text into 0.0, which is what a reader of JSON expects.
    return float(FORMULAS[metric](tallies, np.ones((1, len(tallies))))[0]) + 0.0


def _known(metric: str) -> str:
    if metric.startswith(external.PREFIX):
        raise RecipeError(
            f"evaluation.metrics: '{metric}' cannot score a language model, which gives no list of answers to compare; "
            f"choose among {', '.join(METRICS)}"
        )
    return known(metric, METRICS)

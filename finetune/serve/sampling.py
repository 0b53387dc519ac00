"""Which token comes next: the largest logit, or one drawn at random. Numpy, number for number what transformers does."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from finetune.errors import DataError


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen; DataError names a value that cannot be.

    temperature: logits are divided by it before one token is drawn; 0 takes the largest logit (greedy). top_k: draw from
    the k most probable only. top_p: draw from the fewest whose probabilities reach p together (Holtzman et al. 2020).
    repetition_penalty: tokens already seen, in the prompt too, have positive logits divided by it and negative ones
    multiplied (Keskar et al. 2019); 1 for none. seed: the same draws every time.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (fits, meaning) in _VALUES.items():
            if not fits(getattr(self, name)):
                raise DataError(f"{name} is {getattr(self, name)!r}; it must be {meaning}")
        for name in ("top_k", "top_p"):
            if self.temperature == 0 and getattr(self, name) is not None:
                raise DataError(f"{name} needs a temperature above 0, because without one no token is drawn at random")

    def scores(self, logits: NDArray[Any], seen: Collection[int]) -> NDArray[np.float64]:
        """Logits (V,) after penalty, temperature, top-k and top-p, in that order; -inf for a token that cannot be drawn."""
        scores = logits.astype(np.float64)
        if self.repetition_penalty != 1 and seen:
            ids = np.fromiter(seen, np.int64)
            past = scores[ids]
            scores[ids] = np.where(past < 0, past * self.repetition_penalty, past / self.repetition_penalty)
        if self.temperature == 0:
            return scores
        scores /= self.temperature
        if self.top_k is not None and self.top_k < len(scores):
            scores[scores < np.partition(scores, -self.top_k)[-self.top_k]] = -np.inf
        if self.top_p is not None and self.top_p < 1:
            order = np.argsort(scores, kind="stable")
            unlikely = np.cumsum(_softmax(scores[order])) <= 1 - self.top_p
            unlikely[-1] = False  # the most probable token can always be drawn
            scores[order[unlikely]] = -np.inf
        return scores

    def choose(self, logits: NDArray[Any], seen: Collection[int], random: np.random.Generator) -> int:
        """The next token's id; `seen` are the ids of the prompt and of what was said so far."""
        scores = self.scores(logits, seen)
        if self.temperature == 0:
            return int(scores.argmax())
        reached = np.cumsum(_softmax(scores))
        return int(np.searchsorted(reached, random.random() * reached[-1], side="right"))


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    odds = np.exp(scores - scores.max())
    return np.asarray(odds / odds.sum(), np.float64)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: object, least: int) -> TypeGuard[int]:
    """Whether a value is a whole number of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (lambda value: _is_number(value) and value >= 0, "a number of at least 0"),
    "top_k": (lambda value: value is None or is_whole(value, 1), "a whole number of at least 1"),
    "top_p": (lambda value: value is None or (_is_number(value) and 0 < value <= 1), "above 0 and at most 1"),
    "repetition_penalty": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    "seed": (lambda value: is_whole(value, 0), "a whole number of at least 0"),
}

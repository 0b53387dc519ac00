"""How much of what a language model writes is its training text, word for word (Carlini et al. 2021, 2023). numpy only.

The beginning of a training text is continued, and every run of n tokens of the continuation that stands in some training text counts
as reproduced. The training text is read once, in pieces; what was written, which is little, is what is kept in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.errors import RecipeError

EXAMPLES = 5
"""Most reproduced runs that are shown."""

_BASE = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that its powers never vanish modulo 2⁶⁴."""

Ngram = tuple[int, ...]
Place = tuple[int, int]
"""A training text's number, and a position in it."""


@dataclass(frozen=True)
class Run:
    """Tokens of one continuation that stand in a training text in the same order."""

    sample: int
    start: int
    tokens: int
    place: Place


def reproduced_share(
    generated: Sequence[Sequence[int]],
    training: Sequence[Sequence[int]],
    ngram: int,
    *,
    prompts: Sequence[Sequence[int]] = (),
) -> dict[str, Any]:
    """Share of the n-grams of continuations that stand in the training text, JSON-ready.

    Args: generated, token ids of each continuation, without its prompt; training, token ids of each training text, n-grams across two
    of which do not count; ngram, their length in tokens; prompts, what each continuation continued: an n-gram that its own prompt
    holds is copied from there, not from memory, and counts neither as reproduced nor at all.
    Returns {"share": reproduced / ngrams, or None if no continuation has an n-gram that counts, "ngrams", "reproduced", "longest":
    tokens of the longest reproduced run (0 if there is none), "examples": the longest runs, at most 5 and one a continuation,
    {"sample": number of the continuation, "start": its first token there, "tokens": how many, "document": number of the training text,
    "position": its first token there, "ids"}}. Raises RecipeError for an ngram below 1 or another number of prompts.
    """
    if ngram < 1:
        raise RecipeError(f"evaluation.memorisation.ngram: {ngram} tokens are no run of words; give at least 1")
    if prompts and len(prompts) != len(generated):
        raise RecipeError(
            f"evaluation.memorisation: {len(prompts)} prompts do not fit {len(generated)} continuations; give one each"
        )
    windows = [
        _windows(ids, ngram, _ngrams(prompts[i], ngram) if prompts else set()) for i, ids in enumerate(generated)
    ]
    wanted = {key for own in windows for key in own if key is not None}
    places = _places(wanted, training, ngram)
    counted = sum(key is not None for own in windows for key in own)
    reproduced = sum(key in places for own in windows for key in own if key is not None)
    longest = [run for i, own in enumerate(windows) if (run := _longest_run(i, own, places, ngram)) is not None]
    longest.sort(key=lambda run: (-run.tokens, run.sample))
    return {
        "share": reproduced / counted if counted else None,
        "ngrams": counted,
        "reproduced": reproduced,
        "longest": longest[0].tokens if longest else 0,
        "examples": [_example(run, generated[run.sample]) for run in longest[:EXAMPLES]],
    }


def _windows(ids: Sequence[int], ngram: int, copied: set[Ngram]) -> list[Ngram | None]:
    """The n-gram at each position of a continuation; None for those that its prompt holds."""
    return [None if key in copied else key for key in _each_ngram(ids, ngram)]


def _ngrams(ids: Sequence[int], ngram: int) -> set[Ngram]:
    return set(_each_ngram(ids, ngram))


def _each_ngram(ids: Sequence[int], ngram: int) -> Iterator[Ngram]:
    plain = [int(token) for token in ids]
    return (tuple(plain[start : start + ngram]) for start in range(len(plain) - ngram + 1))


def _places(wanted: set[Ngram], training: Sequence[Sequence[int]], ngram: int) -> dict[Ngram, list[Place]]:
    """Where each of the n-grams that occur in the training text stands there.

    Fingerprints of 64 bits find the few places worth a look; each of these is then compared token by token, so none is found wrongly.
    """
    places: dict[Ngram, list[Place]] = {}
    if not wanted:
        return places
    keys = np.unique(np.concatenate([_fingerprints(np.asarray(key, dtype=np.int64), ngram) for key in wanted]))
    for document, text in enumerate(training):
        ids = np.asarray(text, dtype=np.int64)
        prints = _fingerprints(ids, ngram)
        nearest = np.minimum(np.searchsorted(keys, prints), len(keys) - 1)
        for position in np.flatnonzero(keys[nearest] == prints):
            key = tuple(ids[position : position + ngram].tolist())
            if key in wanted:
                places.setdefault(key, []).append((document, int(position)))
    return places


def _fingerprints(ids: npt.NDArray[np.int64], ngram: int) -> npt.NDArray[np.uint64]:
    """A number for each n-gram, (T − n + 1,), equal for equal ones: Σ_k id_k · base^(n−1−k) modulo 2⁶⁴ (Karp and Rabin 1987)."""
    found = np.zeros(max(0, len(ids) - ngram + 1), dtype=np.uint64)
    if not len(found):
        return found
    # Plus one, so that leading tokens with id 0 count too.
    raised = ids.astype(np.uint64) + np.uint64(1)
    for offset in range(ngram):
        # Horner's rule; unsigned numbers wrap around as the modulus asks.
        found = found * _BASE + raised[offset : offset + len(found)]
    return found


def _longest_run(
    sample: int, windows: Sequence[Ngram | None], places: dict[Ngram, list[Place]], ngram: int
) -> Run | None:
    """The longest piece of one continuation that stands in one training text; the first of equals, None if there is none."""
    best: Run | None = None
    ending: dict[Place, int] = {}
    for start, key in enumerate(windows):
        # An n-gram right after another one of the same text makes that run one token longer.
        here = places.get(key, ()) if key is not None else ()
        ending = {(text, at): ending.get((text, at - 1), ngram - 1) + 1 for text, at in here}
        for (text, at), tokens in ending.items():
            if best is None or tokens > best.tokens:
                back = tokens - ngram
                best = Run(sample, start - back, tokens, (text, at - back))
    return best


def _example(run: Run, ids: Sequence[int]) -> dict[str, Any]:
    document, position = run.place
    shown = [int(token) for token in ids[run.start : run.start + run.tokens]]
    return {
        "sample": run.sample,
        "start": run.start,
        "tokens": run.tokens,
        "document": document,
        "position": position,
        "ids": shown,
    }

"""How fast forms of a language model write: the time to the first token, and tokens a second after it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from finetune.export.causal_measure import Decoder, Ids

NEW_TOKENS = 32


def measure_generation(
    forms: Mapping[str, Decoder],
    prompt: Ids,
    *,
    new_tokens: int = NEW_TOKENS,
    rounds: int = 3,
    seconds: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, Any]]:
    """Per form "ms_first_token", "tokens_per_second", and "latency_ms" and "throughput" of whole answers, medians all.

    Every form continues `prompt` (1, S) greedily by `new_tokens`, at least two. The forms take turns, so that a busy machine
    slows all of them alike, at least `rounds` times and until `seconds` per form have passed. A short untimed run warms each
    up. A whole answer is the prompt and `new_tokens`; its latency and throughput are at batch "1".
    """
    first: dict[str, list[float]] = {name: [] for name in forms}
    rest: dict[str, list[float]] = {name: [] for name in forms}
    for decoder in forms.values():
        _write(decoder, prompt, 2, clock)
    start, done = clock(), 0
    while done < rounds or clock() - start < seconds * len(forms):
        for name, decoder in forms.items():
            before, after = _write(decoder, prompt, new_tokens, clock)
            first[name].append(before)
            rest[name].append(after)
        done += 1
    return {name: _figures(float(np.median(first[name])), float(np.median(rest[name])), new_tokens) for name in forms}


def _write(decoder: Decoder, prompt: Ids, new_tokens: int, clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds to the first new token, and from it to the last."""
    start = clock()
    logits, cache = decoder.prefill(prompt)
    token = logits.argmax(axis=1)
    first = clock()
    for _ in range(new_tokens - 1):
        logits, cache = decoder.step(token, cache)
        token = logits.argmax(axis=1)
    return first - start, clock() - first


def _figures(first: float, rest: float, new_tokens: int) -> dict[str, Any]:
    return {
        "ms_first_token": round(first * 1000, 3),
        "tokens_per_second": round((new_tokens - 1) / rest, 3),
        "latency_ms": {"1": round((first + rest) * 1000, 3)},
        "throughput": {"1": round(1 / (first + rest), 4)},
    }

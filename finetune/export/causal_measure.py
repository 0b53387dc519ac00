"""What a form of a causal language model answers: to whole texts, to prompts step by step, and at other shapes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from finetune.errors import ExportError
from finetune.export.parity import INVARIANCE_TOLERANCE
from finetune.preprocess.language import IGNORED
from finetune.preprocess.language import Sequence as TokenSequence
from finetune.runtime import documents_of, tally_row

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

SHAPES = ((1, 0, 1), (2, 0, 7), (1, 9, 1), (3, 5, 1), (2, 6, 4))
"""(B, P, S): rows, tokens that are in the cache, tokens that are read after them."""


class Decoder(Protocol):
    """A form of the model, as `finetune.runtime.CachedDecoder` has it."""

    def prefill(self, ids: Ids, lengths: Ids | None = None, /) -> tuple[Floats, Any]:
        """Read prompts (B, S): logits (B, V) of each row's last token, and the cache."""

    def step(self, ids: Ids, cache: Any, /) -> tuple[Floats, Any]:
        """Read one more token a row (B,): its logits (B, V), and the longer cache."""

    def logits(self, ids: Ids, /) -> Floats:
        """Logits (B, S, V) of whole rows without padding."""


class TorchDecoder:
    """A transformers model behind the same calls; the caller has put it into evaluation mode."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._last: dict[str, Any] = {"logits_to_keep": 1} if keeps else {}  # as transformers' own generate does

    def prefill(self, ids: Ids, lengths: Ids | None = None) -> tuple[Floats, Any]:
        """Prompts of one length only."""
        from transformers import DynamicCache

        if lengths is not None and (np.asarray(lengths) != ids.shape[1]).any():
            raise ValueError("prompts of different lengths")
        return self.step(ids, DynamicCache())

    def step(self, ids: Ids, cache: Any) -> tuple[Floats, Any]:
        """Tokens (B,) or (B, S); the cache is changed in place."""
        output = self._run(ids[:, None] if ids.ndim == 1 else ids, past_key_values=cache, use_cache=True, **self._last)
        return output.logits[:, -1].float().cpu().numpy(), output.past_key_values

    def logits(self, ids: Ids) -> Floats:
        """Without a cache."""
        found: Floats = self._run(ids, use_cache=False).logits.float().cpu().numpy()
        return found

    def _run(self, ids: Ids, **more: Any) -> Any:
        with torch.inference_mode():
            return self._model(input_ids=torch.from_numpy(np.ascontiguousarray(ids)).to(self._device), **more)


@dataclass(frozen=True)
class Answers:
    """What a form said to some sequences."""

    tallies: NDArray[np.float64]
    """(N, 3): nats of negative log-likelihood, target tokens, how many of them argmax got right."""
    choices: tuple[Ids, ...]
    """Per sequence, the token that argmax gives at each target."""
    logits: tuple[Floats, ...] = ()
    """Per sequence, those of its targets (targets, V); empty unless they were asked for."""


def answers_of(decoder: Decoder, sequences: Sequence[TokenSequence], *, keep_logits: bool = False) -> Answers:
    """Run the sequences through a form, document by document, so that nothing depends on padding or a neighbour."""
    tallies, choices, kept = np.zeros((len(sequences), 3)), [], []
    for row, sequence in enumerate(sequences):
        chosen, logits = [np.zeros(0, np.int64)], []
        for document in documents_of(sequence):
            targets = np.asarray(document.targets, np.int64)
            if (targets == IGNORED).all():
                continue
            found = decoder.logits(np.asarray([document.ids], np.int64))[0]
            tallies[row] += tally_row(found, targets)
            found = found[targets != IGNORED]
            chosen.append(found.argmax(axis=1))
            logits += [found] if keep_logits else []
        choices.append(np.concatenate(chosen))
        kept += [np.concatenate(logits)] if logits else []
    return Answers(tallies, tuple(choices), tuple(kept))


def same_choice(reference: Answers, other: Answers) -> float:
    """Share of target tokens for which both forms have the same first choice."""
    same = [one == two for one, two in zip(reference.choices, other.choices, strict=True)]
    return float(np.concatenate(same).mean())


def logit_gaps(reference: Answers, other: Answers) -> dict[str, float]:
    """ "max_abs_diff" and "mean_abs_diff" of kept logits."""
    worst, total, count = 0.0, 0.0, 0
    for one, two in zip(reference.logits, other.logits, strict=True):
        gap = np.abs(one - two)
        worst, total, count = max(worst, float(gap.max())), total + float(gap.sum(dtype=np.float64)), count + gap.size
    return {"max_abs_diff": worst, "mean_abs_diff": total / count}


def sample_of(sequences: Sequence[TokenSequence], tokens: int, pieces: int = 6) -> list[TokenSequence]:
    """At most `pieces` sequences of all lengths, cut so that they have about `tokens` tokens together, always the same ones."""
    useful = sorted((row for row in sequences if any(t != IGNORED for t in row.targets)), key=lambda row: len(row.ids))
    if not useful:
        raise ExportError("export got no validation text with a token to predict; give the split longer texts")
    places = np.unique(np.linspace(0, len(useful) - 1, pieces).round().astype(int))
    return [_cut(useful[place], max(2, tokens // len(places))) for place in places]


def _cut(sequence: TokenSequence, length: int) -> TokenSequence:
    """The first tokens that hold a target, or the last ones: of a chat, the prompt has none."""
    part = slice(0, length) if any(t != IGNORED for t in sequence.targets[:length]) else slice(-length, None)
    return replace(sequence, ids=sequence.ids[part], targets=sequence.targets[part], segments=sequence.segments[part])


def shape_gap(reference: Decoder, session: Any, stream: Sequence[int], context: int) -> float:
    """Worst difference of logits between a form without a cache and an ONNX session, over `SHAPES`; infinity for NaN.

    The session reads P tokens from an empty cache, then S more. `stream` are real tokens, repeated as needed.
    """
    worst = 0.0
    for rows, before, length in SHAPES:
        if before + length > context:
            continue
        ids = np.resize(np.asarray(stream, np.int64), rows * (before + length)).reshape(rows, -1)
        past = empty_past(session, rows)
        if before:
            _, past = run_cached(session, ids[:, :before], past)
        logits, _ = run_cached(session, ids[:, before:], past)
        gap = float(np.abs(reference.logits(ids)[:, before:] - logits).max())
        worst = max(worst, gap if np.isfinite(gap) else float("inf"))
    return worst


def empty_past(session: Any, rows: int) -> dict[str, Floats]:
    """Keys and values of no tokens, by the session's input names."""
    past = [value for value in session.get_inputs() if value.name.startswith("past.")]
    return {value.name: np.zeros((rows, value.shape[1], 0, value.shape[3]), np.float32) for value in past}


def run_cached(session: Any, ids: Ids, past: dict[str, Floats]) -> tuple[Floats, dict[str, Floats]]:
    """Logits (B, S, V) of tokens (B, S) after `past`, and the longer past."""
    rows, length = ids.shape
    before = next(iter(past.values())).shape[2]
    feeds = {
        "input_ids": np.ascontiguousarray(ids),
        "attention_mask": np.ones((rows, before + length), np.int64),
        "position_ids": np.tile(np.arange(before, before + length), (rows, 1)),
    }
    logits, *present = session.run(["logits", *(name.replace("past", "present", 1) for name in past)], feeds | past)
    return logits, dict(zip(past, present))


def invariances(decoder: Decoder, sequences: Sequence[TokenSequence], unit: float) -> tuple[bool, bool]:
    """Whether prompts have the same answer alone and padded in a batch, and read at once and step by step."""
    prompts = [np.asarray(row.ids[:12], np.int64) for row in sequences if len(row.ids) > 1][-3:]
    if not prompts:
        return True, True
    # A row twice, once shorter: there must be padding even where all prompts have one length.
    prompts.append(prompts[0][:-1])
    lengths = np.array([len(prompt) for prompt in prompts])
    padded = np.zeros((len(prompts), lengths.max()), np.int64)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = prompt
    together, cache = decoder.prefill(padded, lengths)
    after, _ = decoder.step(together.argmax(axis=1), cache)
    alone, then = [], []
    for prompt, first in zip(prompts, together):
        logits, own = decoder.prefill(prompt[None])
        alone.append(logits)
        then.append(decoder.step(first.argmax()[None], own)[0])
    gap = max(np.abs(together - np.concatenate(alone)).max(), np.abs(after - np.concatenate(then)).max())
    longest = max(prompts, key=len)
    stepped, cache = decoder.prefill(longest[None, :1])
    for token in longest[1:]:
        stepped, cache = decoder.step(token[None], cache)
    step_gap = np.abs(stepped - decoder.prefill(longest[None])[0]).max()
    tolerance = INVARIANCE_TOLERANCE * unit
    return bool(gap <= tolerance), bool(step_gap <= tolerance)

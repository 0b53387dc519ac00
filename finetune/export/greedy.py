"""Whether two forms of a language model write the same text when each token is the likeliest one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune.errors import ExportError
from finetune.export.causal_measure import Decoder, Ids


@dataclass(frozen=True)
class Greedy:
    """What came of it."""

    prompts: int
    tokens: int
    """Written after each prompt."""
    differing: int
    """Tokens for which the forms' first choices differ."""
    ties: int
    """How many of them are ties: logits that lie closer than the tolerance, in which rounding decides."""

    @property
    def passed(self) -> bool:
        """Whether nothing but rounding parts the two forms."""
        return self.differing == self.ties

    def to_json(self) -> dict[str, object]:
        """report["export"]["greedy"]."""
        return {"prompts": self.prompts, "tokens": self.tokens, "identical": not self.differing, "ties": self.ties}

    def sentence(self) -> str:
        """For the gate."""
        where = f"the {self.tokens} tokens after each of {self.prompts} prompts"
        if not self.differing:
            return f"fp32 ONNX writes the same as torch: {where} are identical, chosen greedily"
        ties = f", {self.ties} of them ties within rounding" if self.ties else ""
        return f"fp32 ONNX writes other tokens than torch at {self.differing} places of {where}{ties}"


def compare_greedy(
    reference: Decoder, other: Decoder, prompts: Sequence[Sequence[int]], tokens: int, tolerance: float
) -> Greedy:
    """Continue the prompts greedily by `tokens` with one form, let the other read along, and compare its choices.

    As long as the choices are the same, the other form alone would have written the same text; where they part at a tie,
    reading along keeps the rest comparable. Prompts of one length go together. ExportError if there are none.
    """
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise ExportError("export got no prompts to compare generation with; give at least one of one token or more")
    differing = ties = 0
    for length in sorted({len(prompt) for prompt in prompts}):
        ids = np.array([prompt for prompt in prompts if len(prompt) == length], np.int64)
        found = _side_by_side(reference, other, ids, tokens, tolerance)
        differing, ties = differing + found[0], ties + found[1]
    return Greedy(len(prompts), tokens, differing, ties)


def _side_by_side(reference: Decoder, other: Decoder, ids: Ids, tokens: int, tolerance: float) -> tuple[int, int]:
    """Places where the choices differ, and how many of them are ties."""
    differing = ties = 0
    ours, our_cache = reference.prefill(ids)
    theirs, their_cache = other.prefill(ids)
    for written in range(1, tokens + 1):
        wanted, got = ours.argmax(axis=1), theirs.argmax(axis=1)
        for row in np.flatnonzero(wanted != got):
            differing += 1
            # Each form may err by the tolerance, and the two logits may err in opposite directions.
            ties += bool(ours[row, wanted[row]] - ours[row, got[row]] <= 2 * tolerance)
        if written < tokens:
            ours, our_cache = reference.step(wanted, our_cache)
            theirs, their_cache = other.step(wanted, their_cache)
    return differing, ties

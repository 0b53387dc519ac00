"""Does the model recite? Beginnings of training texts are continued by sampling, before training and after it, and compared.

The base model may know such texts too, from its own training or because they are everybody's phrases. Its share, measured on the same
beginnings with the same random numbers, is what fine-tuning cannot be blamed for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from finetune.errors import RecipeError
from finetune.evaluation.memorisation import reproduced_share
from finetune.explain.generate import sample

TEMPERATURE = 1.0
TOP_K = 40
"""Carlini et al. (2021) sample so: the model's own distribution without the long tail, which only derails it."""


@dataclass(frozen=True)
class MemorisationCheck:
    """What is continued, and how; the same before and after training.

    beginnings: token ids of each; documents: token ids of every training text; ngram: tokens in a row that count as reproduced.
    """

    beginnings: tuple[tuple[int, ...], ...]
    documents: Sequence[Sequence[int]]
    ngram: int
    max_new_tokens: int
    eos_token_ids: tuple[int, ...]
    seed: int

    def continuations(self, module: nn.Module) -> list[list[int]]:
        """Ids that the network writes after each beginning; the same ones for the same weights. Errors as `generate.sample`."""
        return sample(
            module, self.beginnings, max_new_tokens=self.max_new_tokens, eos_token_ids=self.eos_token_ids,
            temperature=TEMPERATURE, top_k=TOP_K, seed=self.seed,
        )  # fmt: skip

    def report(
        self, before: Sequence[Sequence[int]], after: Sequence[Sequence[int]], decode: Callable[[list[int]], str]
    ) -> dict[str, Any]:
        """report["language"]["memorisation"] from the continuations of the base model and of the trained one.

        Returns {"samples", "ngram", "ngrams": how many were looked at, "reproduced", "share", "longest", "base_share", "base_longest",
        "examples": [{"beginning", "text", "tokens", "document"}]}, the longest reproduced runs as text, and the number of the training
        text that holds each. A share is None where no continuation was long enough to hold an n-gram.
        """
        own, base = (
            reproduced_share(written, self.documents, self.ngram, prompts=self.beginnings)
            for written in (after, before)
        )
        examples = [
            {
                "beginning": decode(list(self.beginnings[one["sample"]])),
                "text": decode(one["ids"]),
                "tokens": one["tokens"],
                "document": one["document"],
            }
            for one in own["examples"]
        ]
        return {
            "samples": len(self.beginnings),
            "ngram": self.ngram,
            **{key: own[key] for key in ("ngrams", "reproduced", "share", "longest")},
            "base_share": base["share"],
            "base_longest": base["longest"],
            "examples": examples,
        }


def prepare_check(
    documents: Sequence[Sequence[int]],
    *,
    samples: int,
    prompt_tokens: int,
    ngram: int,
    max_new_tokens: int,
    eos_token_ids: Sequence[int],
    seed: int,
) -> MemorisationCheck | None:
    """Draw at most `samples` training texts whose first `prompt_tokens` tokens will be continued; each at most once.

    Only texts that go on for an n-gram or more after their beginning are drawn, since of others there is nothing to recite.
    None if no text is so long, or if `samples` is 0. RecipeError if `max_new_tokens` is below `ngram`, so that nothing could count.
    """
    if samples and max_new_tokens < ngram:
        raise RecipeError(
            f"evaluation.memorisation: continuations of {max_new_tokens} tokens hold no run of {ngram}; "
            "raise max_new_tokens or lower ngram"
        )
    long_enough = [text for text in documents if len(text) >= prompt_tokens + ngram]
    count = min(samples, len(long_enough))
    if not count:
        return None
    drawn = sorted(np.random.default_rng(seed).choice(len(long_enough), size=count, replace=False).tolist())
    beginnings = tuple(tuple(long_enough[place][:prompt_tokens]) for place in drawn)
    return MemorisationCheck(beginnings, documents, ngram, max_new_tokens, tuple(eos_token_ids), seed)

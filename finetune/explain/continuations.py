"""What a language model writes after fixed prompts, before training and after it, for the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from finetune.explain.generate import generate_greedy
from finetune.preprocess.language import Conversation, LanguageInput

PROMPTS = 4
"""Test texts that lend their beginnings where the recipe names no prompts."""
WORDS = 12
"""Words of each beginning."""


def opening_prompts(inputs: Sequence[LanguageInput], count: int = PROMPTS, words: int = WORDS) -> tuple[str, ...]:
    """Beginnings of some test texts, spread evenly over them: first words of documents, first thing said in conversations.

    Texts that are no longer than that, and prompts seen already, are passed over while there are others; there may be fewer than `count`.
    """
    openings = list(dict.fromkeys(filter(None, (_opening(item, words) for item in inputs))))
    count = min(count, len(openings))
    return tuple(openings[place * len(openings) // count] for place in range(count))


def _opening(item: LanguageInput, words: int) -> str:
    if isinstance(item, Conversation):
        return next((content for role, content in item.messages if role == "user" and content.strip()), "")
    found = item.split(maxsplit=words)
    return " ".join(found[:words]) if len(found) > words else ""


def continue_prompts(
    module: nn.Module,
    prompts: Sequence[str],
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
    *,
    max_new_tokens: int,
    eos_token_ids: Sequence[int],
) -> list[str]:
    """The network's greedy continuation of each prompt, which `finetune predict` gives too.

    encode: a prompt to the ids that it is continued from; decode: ids to text. Raises RecipeError naming the prompt that is empty or too long.
    """
    ids = [encode(prompt) for prompt in prompts]
    written = generate_greedy(module, ids, max_new_tokens=max_new_tokens, eos_token_ids=eos_token_ids)
    return [_said(start, new, decode) for start, new in zip(ids, written, strict=True)]


def side_by_side(prompts: Sequence[str], before: Sequence[str], after: Sequence[str]) -> list[dict[str, str]]:
    """report["language"]["generations"]: [{"prompt", "before", "after"}]."""
    rows = zip(prompts, before, after, strict=True)
    return [{"prompt": prompt, "before": first, "after": then} for prompt, first, then in rows]


def _said(start: list[int], new: list[int], decode: Callable[[list[int]], str]) -> str:
    """What the new ids add to the text: alone, some tokenizers would leave out the space that they begin with."""
    head, whole = decode(start), decode([*start, *new])
    return whole[len(head) :] if whole.startswith(head) else decode(new)

"""Continue prompts with a torch language model and its own key/value cache: greedily, or by seeded sampling.

This is for what the report shows and checks. A bundle is asked through `finetune.serve`, which has no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from finetune.errors import RecipeError, TrainingError
from finetune.model.modes import evaluating

BATCH = 8
"""Prompts that are continued side by side unless the caller says otherwise."""

_Choose = Callable[[Tensor, Sequence[int]], Tensor]
"""Logits (B, V) of the next token and the rows' numbers among all prompts, to token ids (B,)."""


@dataclass(frozen=True)
class Continuing:
    """When a continuation ends, and how many are made at once.

    max_new_tokens: longest one; eos_token_ids: tokens that end one, and are not part of it; batch_size: prompts side by side.
    """

    max_new_tokens: int
    eos_token_ids: tuple[int, ...] = ()
    batch_size: int = BATCH


def generate_greedy(
    module: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_token_ids: Sequence[int] = (),
    batch_size: int = BATCH,
) -> list[list[int]]:
    """The most likely token, again and again: ids of each continuation, without its prompt and without the token that ended it.

    Args: module, a causal language model of transformers, plain or in peft's wrapping; prompts, token ids, at least one each.
    Prompts of one batch are padded on the left, which changes nothing but rounding. Layers' modes are as before afterwards.
    Raises RecipeError for an empty prompt or more tokens than the network has positions, TrainingError for logits that
    are NaN or infinite.
    """
    how = Continuing(max_new_tokens, tuple(eos_token_ids), batch_size)
    return _continue(module, prompts, how, lambda logits, _: logits.argmax(dim=-1))


def sample(
    module: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_token_ids: Sequence[int] = (),
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    batch_size: int = BATCH,
) -> list[list[int]]:
    """Tokens drawn from the model's distribution, as `shares` narrows it; otherwise as `generate_greedy`.

    Each prompt has its own stream of random numbers, which depends on the seed and the prompt's place alone, so that neither the
    batch size nor the device decides what is drawn. Raises RecipeError, besides, for a temperature, top_k or top_p out of range.
    """
    _check_sampling(temperature, top_k, top_p)
    how = Continuing(max_new_tokens, tuple(eos_token_ids), batch_size)
    streams = [np.random.default_rng([seed, place]) for place in range(len(prompts))]

    def draw(logits: Tensor, places: Sequence[int]) -> Tensor:
        totals = shares(logits, temperature=temperature, top_k=top_k, top_p=top_p).cumsum(dim=-1)
        chance = torch.tensor([[streams[place].random()] for place in places], dtype=totals.dtype) * totals[:, -1:]
        drawn = torch.searchsorted(totals, chance, right=True)
        # A chance that was rounded up to the very end must not fall on a token of no share behind it.
        return torch.minimum(drawn, torch.searchsorted(totals, totals[:, -1:].contiguous()))[:, 0]

    return _continue(module, prompts, how, draw)


def shares(logits: Tensor, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Probabilities (B, V), float64, on the processor: temperature first, then the top_k likeliest, then the nucleus (Holtzman et al. 2020).

    The nucleus is the fewest likeliest tokens that together have at least `top_p` of what is left. Equal logits at the edge of the
    top_k all stay. The order and the edges are those of transformers' logits processors.
    """
    scaled = logits.double().cpu() / temperature
    if top_k is not None and top_k < scaled.shape[-1]:
        least = scaled.topk(top_k, dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    found = scaled.softmax(dim=-1)
    if top_p is not None and top_p < 1:
        ordered, order = found.sort(dim=-1, descending=True, stable=True)
        # The likeliest token has nothing before it, so it always stays.
        before = ordered.cumsum(dim=-1) - ordered
        outside = (before >= top_p).scatter(-1, order, before >= top_p)
        found = found.masked_fill(outside, 0.0)
        found = found / found.sum(dim=-1, keepdim=True)
    return found


def _check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    if not 0 < temperature < float("inf"):
        raise RecipeError(f"sampling: a temperature of {temperature} is not above 0; give one, or generate greedily")
    if top_k is not None and top_k < 1:
        raise RecipeError(f"sampling: top_k of {top_k} leaves no token to draw; give at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise RecipeError(f"sampling: top_p of {top_p} is no share; give more than 0 and at most 1")


def _continue(module: nn.Module, prompts: Sequence[Sequence[int]], how: Continuing, choose: _Choose) -> list[list[int]]:
    _check_lengths(module, prompts, how.max_new_tokens)
    found: list[list[int]] = [[] for _ in prompts]
    # Prompts of like length share a batch, so that little is padded.
    places = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    # Not inference_mode: a buffer that a layer makes on the way could never take part in training again.
    with evaluating(module), torch.no_grad():
        for start in range(0, len(places), how.batch_size):
            batch = places[start : start + how.batch_size]
            going = set(range(len(batch)))
            for tokens in _steps(module, [prompts[place] for place in batch], batch, how.max_new_tokens, choose):
                going -= {row for row in going if tokens[row] in how.eos_token_ids}
                for row in going:
                    found[batch[row]].append(tokens[row])
                if not going:
                    break
    return found


def _steps(
    module: nn.Module, prompts: Sequence[Sequence[int]], places: Sequence[int], steps: int, choose: _Choose
) -> Iterator[list[int]]:
    """The next token of every row, `steps` times; rows that their caller is done with go on beside the others."""
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    ids, mask = _padded(prompts)
    ids, mask = ids.to(device), mask.to(device)
    # Positions begin at 0 with the first real token. What stands at a padding's place is never looked at.
    positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
    cache = None
    for _ in range(steps):
        given = module(
            input_ids=ids, attention_mask=mask, position_ids=positions,
            past_key_values=cache, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        logits, cache = given.logits[:, -1].float(), given.past_key_values
        # A logit of -inf is a token that a network never says; NaN and +inf leave no distribution.
        if not bool((logits < torch.inf).all()):
            raise TrainingError("the network's logits are NaN or infinite, so it says nothing; lower the learning rate")
        chosen = choose(logits, places).to(device)
        yield chosen.tolist()
        ids, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)


def _padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, T), padded on the left, so that every prompt ends where its continuation begins."""
    longest = max(len(prompt) for prompt in prompts)
    ids, mask = (torch.zeros(len(prompts), longest, dtype=torch.int64) for _ in range(2))
    for row, prompt in enumerate(prompts):
        # The mask hides what stands at a padding's place, so any id will do there: 0.
        ids[row, longest - len(prompt) :] = torch.as_tensor(list(prompt))
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


def _check_lengths(module: nn.Module, prompts: Sequence[Sequence[int]], new: int) -> None:
    if any(not len(prompt) for prompt in prompts):
        raise RecipeError("an empty prompt cannot be continued by this network; begin it with a word")
    most = getattr(getattr(module, "config", None), "max_position_embeddings", None)
    longest = max((len(prompt) for prompt in prompts), default=0)
    if isinstance(most, int) and longest + new > most:
        raise RecipeError(
            f"a prompt of {longest} tokens and {new} new ones are more than the {most} that this network takes; "
            "shorten the prompt or lower max_new_tokens"
        )

"""The next token at every place of a sequence: cross-entropy over the vocabulary, as causal language models learn it.

Targets are already shifted: targets[b, t] is the id that should follow the ids up to t, or `IGNORED` where no loss is taken
(padding, prompts, the last token). Sum and denominator count tokens, not rows, so that they add up over the parts of a step
whatever the lengths in them; a mean of the parts' means would not.

Nobody keeps logits (B, T, V). What is kept of a sequence is its **tally**: [sum of the negative log-likelihoods of its
targets in nats, number of targets, number of them that the largest logit got right].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from finetune.errors import RecipeError
from finetune.preprocess import IGNORED
from finetune.recipe.task_names import DEFAULT_METRIC, METRICS
from finetune.tasks.spec import Target

if TYPE_CHECKING:
    from torch import Tensor


def loss_sums(
    logits: Tensor, targets: Tensor, weights: Tensor | None, label_smoothing: float, row_weights: Tensor | None
) -> Tensor:
    """Σ over targets of torch's cross-entropy in nats, a scalar in float32 or wider; 0 where there are no targets.

    Args: logits (B, T, V); targets (B, T) int64, `IGNORED` where no loss is taken; label_smoothing ε in [0, 1); row_weights (B,),
    1 for rows that count and 0 for padding, or None. There are no labels that `weights` could be about.
    """
    import torch
    from torch.nn.functional import cross_entropy

    targets = _as_wide_as(logits, targets)
    if row_weights is not None:
        targets = targets.masked_fill((row_weights == 0)[:, None], IGNORED)
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="sum"
    )


def loss_denominator(targets: Tensor, class_weights: Tensor | None) -> float:
    """The D for which loss_sums / D is the mean over tokens: how many are targets. Zero if none is."""
    return float(int((targets != IGNORED).sum()))


def class_weights(
    setting: str | Mapping[str, float],
    labels: npt.NDArray[Any],
    label_names: Sequence[str],
    row_weights: npt.NDArray[Any] | None = None,
) -> None:
    """None: every token counts alike. RecipeError for any setting but `none`."""
    if setting != "none":
        raise RecipeError("train.class_weights: a language model has no labels to weigh; remove it")


def tallies(logits: Tensor, targets: Tensor) -> Tensor:
    """What is kept of each sequence, float64 (B, 3): see above. Args: logits (B, T, V); targets (B, T) as in `loss_sums`.

    Row by row, so that memory holds the logits and no further array of their size. Not finite where a logit that matters
    is not.
    """
    import torch
    from torch.nn.functional import cross_entropy

    targets = _as_wide_as(logits, targets)
    rows = []
    for row, truth in zip(logits, targets, strict=True):
        counted = truth != IGNORED
        said, truth = row[counted], truth[counted]
        said = said.float() if said.dtype in (torch.float16, torch.bfloat16) else said
        losses = cross_entropy(said, truth, reduction="none").double()
        right = (said.argmax(dim=-1) == truth).sum().double()
        rows.append(torch.stack([losses.sum(), losses.new_tensor(float(len(truth))), right]))
    return torch.stack(rows)


def _as_wide_as(logits: Tensor, targets: Tensor) -> Tensor:
    """Targets (B, T) of a batch whose rows may come padded to the longest of all sequences; ValueError if a target would be lost."""
    width = logits.shape[1]
    if targets.shape[1] > width and bool((targets[:, width:] != IGNORED).any()):
        raise ValueError(f"there are targets beyond the {width} tokens that the network was given")
    return targets[:, :width]


TARGET = Target(
    name="next_token",
    problem_type="",
    metrics=METRICS["next_token"],
    default_metric=DEFAULT_METRIC["next_token"],
    loss_sums=loss_sums,
    loss_denominator=loss_denominator,
    class_weights=class_weights,
    answers=tallies,
)

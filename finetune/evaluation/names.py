"""Names of built-in metrics."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.errors import RecipeError, nearest


def known(metric: str, names: Sequence[str]) -> str:
    """The metric's name if it is one of the target's; RecipeError with the nearest name otherwise."""
    if metric not in names:
        raise RecipeError(f"evaluation: unknown metric '{metric}'{nearest(metric, names)}")
    return metric

"""`train.class_weights` as the recipe writes it: what targets with named labels have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from finetune.errors import RecipeError, nearest

SETTINGS = ("none", "balanced")


def named_weights(setting: Mapping[str, float], label_names: Sequence[str]) -> npt.NDArray[np.float32]:
    """Weights (C,) in the order of the labels; RecipeError for a label that is unknown or left out."""
    for name in setting:
        if name not in label_names:
            raise RecipeError(f"train.class_weights: '{name}' is not a label of the data{nearest(name, label_names)}")
    missing = [name for name in label_names if name not in setting]
    if missing:
        raise RecipeError(
            f"train.class_weights: label '{missing[0]}' has no weight; give one to every label (1 is neutral)"
        )
    return np.array([setting[name] for name in label_names], dtype=np.float32)


def refuse_unknown(setting: str) -> None:
    """RecipeError for a word that is no setting."""
    if setting not in SETTINGS:
        raise RecipeError(f"train.class_weights: unknown setting '{setting}'{nearest(setting, SETTINGS)}")

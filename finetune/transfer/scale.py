"""Numbers learned on a scale of their own: a regression head starts near zero, whatever unit the labels have.

Training sees (y − mean) / std of the training labels, so that one learning rate fits metres and millimetres. At the end
the head's last layer takes the scale up (finetune/model/scale.py), and the network answers in the labels' own unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Scale:
    """An affine map between labels and what the network learns."""

    mean: float = 0.0
    std: float = 1.0

    def down(self, labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Labels as the network learns them; untouched, bit for bit, by the scale of labels that are no numbers."""
        if self == Scale():
            return labels
        return np.asarray((labels - self.mean) / self.std, dtype=np.float32)

    def up(self, answers: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What the network answers, in the labels' unit."""
        return answers if self == Scale() else np.asarray(answers * self.std + self.mean, dtype=np.float32)


def scale_of(target: str, labels: npt.NDArray[Any]) -> Scale:
    """The scale of some training labels: mean and standard deviation of numbers, none for classes."""
    if target != "regression":
        return Scale()
    values = np.asarray(labels, dtype=np.float64)
    std = float(values.std())
    return Scale(float(values.mean()), std if std > 0 else 1.0)

"""Epochs as TensorBoard events."""

from __future__ import annotations

from pathlib import Path

from finetune.errors import RecipeError
from finetune.train.events import EpochEnded, Event


class TensorBoardLog:
    """A callback that writes losses, the metric, rates and drift to `folder`, each epoch at once.

    RecipeError when TensorBoard is not installed. Close it when the run is over.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise RecipeError(
                "train.tensorboard: TensorBoard is not installed; pip install 'finetune-recipes[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(str(folder))

    def __call__(self, event: Event) -> None:
        if not isinstance(event, EpochEnded):
            return
        record = event.record
        step = int(str(record["step"]))
        for key in ("train_loss", "validation_loss", "validation_metric", "rows_per_second"):
            self._writer.add_scalar(key, float(str(record[key])), step)
        for key in ("learning_rates", "drift"):
            values = record[key]
            assert isinstance(values, dict)
            for group, value in values.items():
                self._writer.add_scalar(f"{key}/{group}", float(value), step)
        self._writer.flush()

    def close(self) -> None:
        """End the log file and its writer's thread."""
        self._writer.close()

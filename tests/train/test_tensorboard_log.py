"""What TensorBoard reads back from a run's events."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
from train_samples import small_job, train

from finetune.errors import RecipeError
from finetune.train.tensorboard import TensorBoardLog


def test_every_epochs_numbers_can_be_read_back(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = TensorBoardLog(tmp_path / "events")
    result = train(small_job(), tmp_path / "checkpoints", emit=log)
    log.close()
    read = EventAccumulator(str(tmp_path / "events"))
    read.Reload()
    assert set(read.Tags()["scalars"]) == {
        "train_loss", "validation_loss", "validation_metric", "rows_per_second",
        "learning_rates/head", "learning_rates/block 1", "drift/head", "drift/block 1",
    }  # fmt: skip
    losses = read.Scalars("train_loss")
    assert [event.step for event in losses] == [record["step"] for record in result.history]
    assert [event.value for event in losses] == pytest.approx([record["train_loss"] for record in result.history])
    rates = [record["learning_rates"]["block 1"] for record in result.history if record["phase"] == 1]
    assert [event.value for event in read.Scalars("learning_rates/block 1")] == pytest.approx(rates)


def test_an_epoch_is_on_disk_before_the_run_ends(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log, seen = TensorBoardLog(tmp_path / "events"), []

    def watch(event: Any) -> None:
        log(event)
        read = EventAccumulator(str(tmp_path / "events"))
        read.Reload()
        seen.append(len(read.Scalars("train_loss")) if read.Tags()["scalars"] else 0)

    train(small_job(rows=4, transfer={"unfreeze": "head_only", "head_epochs": 2}), tmp_path / "checkpoints", emit=watch)
    log.close()
    assert seen == [0, 0, 1, 1, 2]  # the phase begins, then twice a step and an epoch


def test_a_missing_tensorboard_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith(("tensorboard", "torch.utils.tensorboard")):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RecipeError, match=r"^train\.tensorboard: .* pip install 'finetune-recipes\[tensorboard\]'$"):
        TensorBoardLog(tmp_path)

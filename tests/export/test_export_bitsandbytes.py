from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_encoders import Setting, judge

from finetune.errors import ExportError
from finetune.export import bnb
from finetune.export.choose import Yardstick
from finetune.export.kinds import EXPORTS

pytest.importorskip("bitsandbytes")


def yardstick(setting: Setting) -> Yardstick:
    return Yardstick(setting.encoder, setting.rows, setting.labels, judge(), EXPORTS["text"])


def test_row_is_measured_smaller_than_fp32_close_to_it_and_silent(
    setting: Setting, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    row: Any = bnb.measure_bitsandbytes(
        setting.model_folder, yardstick(setting), setting.logits, skip=["classifier"], cpu_name="Some Processor"
    )
    assert row["rows"] == len(setting.rows)
    assert row["size_bytes"] < (setting.model_folder / "model.safetensors").stat().st_size
    assert 0 < row["max_abs_diff"] < np.ptp(setting.logits)
    assert row["agreement"] == row["metric"] > 0.8  # the labels are torch's own answers
    assert row["latency_ms"]["1"] > 0 < row["throughput"]["32"]
    assert "measured on 60 of 60 validation rows" in row["note"]
    assert "memory saving" in row["note"]
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_head_keeps_its_precision(setting: Setting) -> None:
    _, size_with_head = bnb.load_bitsandbytes(setting.model_folder, skip=["classifier"])
    _, size_without = bnb.load_bitsandbytes(setting.model_folder, skip=[])
    assert size_without < size_with_head


def test_time_budget_limits_the_rows_and_the_note_says_so(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bnb, "BUDGET_SECONDS", 0.0)
    row: Any = bnb.measure_bitsandbytes(
        setting.model_folder, yardstick(setting), setting.logits, skip=["classifier"], cpu_name="Some Processor"
    )
    assert row["rows"] == 16
    assert "16 of 60" in row["note"]


def test_rows_that_were_measured_keep_their_labels_and_weights(setting: Setting) -> None:
    weights = np.arange(1.0, len(setting.labels) + 1)
    whole = replace(
        yardstick(setting),
        weights=weights,
        judge=judge(lambda logits, labels, counted: float((labels * counted).sum())),
    )
    numbers = np.array([3, 0, 2])
    some = whole.only(numbers)
    assert some.rows == [setting.rows[number] for number in numbers]
    assert some.score(setting.logits[numbers]) == float((setting.labels[numbers] * weights[numbers]).sum())
    assert whole.score(setting.logits) == float((setting.labels * weights).sum())


def test_folder_without_a_model_is_an_export_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="bitsandbytes cannot load the model in int8 on cpu"):
        bnb.load_bitsandbytes(tmp_path, skip=[])

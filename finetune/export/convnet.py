"""int8 for convolutional networks: the static candidates, by arithmetic and calibration method, and gentler ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import BundleError, ExportError
from finetune.export.calibrate import METHODS, collect, ranges
from finetune.export.choose import Trial, Workbench
from finetune.export.graph import weight_layers, weight_nodes
from finetune.export.onnx import ONE_FILE_BYTES
from finetune.export.parity import differences, predict_rows
from finetune.export.static import GATED_OPS, WEIGHTED_OPS, Arithmetic, arithmetics, quantize_static_int8
from finetune.preprocess import Encoder
from finetune.runtime import open_session, run_logits

SPARED_LAYERS = (1, 2, 3, 5, 8)
"""How many of the most sensitive layers are left in fp32, one step after another, until a form passes."""

MEASURED_LAYERS = 24
"""At most so many layers are looked at; a deeper network's are joined with their neighbours."""

LEAST_ROWS = 100
"""Training images that ranges are taken from, at least: from fewer, rare activations are missing."""

BLOCK = r"(.*\.\d+)(\.|$)"
"""A convnet's layer is the innermost numbered module: the block "blocks.3.1" of stage 3."""


@dataclass(frozen=True)
class Static:
    """A trial and what it was built from."""

    arithmetic: Arithmetic
    method: str
    trial: Trial


def is_convnet(fp32: Path) -> bool:
    """Whether convolutions do the work: more than one has a constant weight (a vision transformer cuts patches with one)."""
    import onnx

    graph = onnx.load(str(fp32), load_external_data=False).graph
    return len(weight_nodes(graph, ("Conv",))) > 1


def try_static(bench: Workbench, target: str, encoder: Encoder, calibration: Sequence[Any]) -> None:
    """Build and judge the static candidates for a processor kind; `calibration` are encoded training images.

    The first arithmetic is tried with every calibration method, the others with the one that agreed best with fp32.
    Where none passes the quality gates, gentler forms of the best one follow: with more and more of the most sensitive
    layers in fp32, up to half of them.
    """
    fp32 = bench.fp32
    if (reason := _impossible(fp32.size_bytes, len(calibration))) is not None:
        bench.give_up("static int8", reason)
        return
    bench.progress("int8: looking at calibration images")
    try:
        statistics = collect(fp32.path, (encoder.collate([row]) for row in calibration), bench.folder)
    except ExportError as error:
        bench.give_up("static int8", str(error))
        return
    found = {method: ranges(statistics, method) for method in METHODS}
    tried: list[Static] = []

    def attempt(arithmetic: Arithmetic, method: str, spared: tuple[str, ...] = (), what: str = "") -> bool:
        trial = bench.attempt(
            f"{arithmetic.name}, {method}{what}",
            lambda path: quantize_static_int8(fp32.path, path, arithmetic, found[method], statistics, spared),
            method=method,
            kernels=arithmetic.name + what,
        )
        if trial.form and not what:
            tried.append(Static(arithmetic, method, trial))
        return not trial.reason

    first, *others = arithmetics(target, _has_gates(fp32.path))
    for method in METHODS:
        attempt(first, method)
    method = _best(tried).method if tried else next(iter(METHODS))
    for arithmetic in others:
        attempt(arithmetic, method)
    if not bench.none_passes():
        return
    best = _best(tried)
    layers = joined(weight_layers(fp32.path, WEIGHTED_OPS, BLOCK), MEASURED_LAYERS)
    bench.progress("int8: looking for the most sensitive layers")

    def quantize_only(layer: str, path: Path) -> None:
        others = tuple(node for name, nodes in layers.items() if name != layer for node in nodes)
        quantize_static_int8(fp32.path, path, best.arithmetic, found[best.method], statistics, others)

    try:
        ranking = most_sensitive(bench, tuple(layers), quantize_only)
    except (ExportError, BundleError) as error:
        bench.give_up(f"{best.arithmetic.name}, some layers fp32", str(error))
        return
    for count in SPARED_LAYERS:
        if 2 * count > len(ranking):
            return
        chosen = tuple(node for layer in ranking[:count] for node in layers[layer])
        name = " and ".join(ranking[:count]) if count < 3 else f"the {count} most sensitive layers"
        if attempt(best.arithmetic, best.method, chosen, f", {name} fp32"):
            return


def _impossible(size_bytes: int, rows: int) -> str | None:
    """Why an fp32 file of this size cannot be quantised with so many calibration images; None where it can."""
    if size_bytes > ONE_FILE_BYTES:
        return "the fp32 file is larger than 2 GB, which the quantizer cannot hold"
    if rows < LEAST_ROWS:
        return f"its calibration needs at least {LEAST_ROWS} training images, and there are {rows}"
    return None


def most_sensitive(
    bench: Workbench, layers: tuple[str, ...], quantize_only: Callable[[str, Path], None], rows: int = 16
) -> list[str]:
    """The layers by how far the quantisation of each alone moves the logits of a few rows, the worst first."""
    yardstick = bench.yardstick
    sample = yardstick.sample(rows)
    reference = predict_rows(bench.fp32.predict, yardstick.encoder, sample, rows)
    path = bench.folder / "sensitivity.onnx"
    moved: dict[str, float] = {}
    for layer in layers:
        quantize_only(layer, path)
        session = open_session(path)
        logits = predict_rows(
            lambda batch, session=session: run_logits(session, batch),  # type: ignore[misc]
            yardstick.encoder,
            sample,
            rows,
        )
        moved[layer] = differences(reference, logits)["mean_abs_diff"]
    return sorted(layers, key=lambda layer: -moved[layer])


def joined(layers: dict[str, tuple[str, ...]], most: int) -> dict[str, tuple[str, ...]]:
    """At most `most` layers, neighbours joined in equal shares and named after the first and the last of them."""
    names = list(layers)
    size = -(-len(names) // most) if names else 1
    parts = [names[start : start + size] for start in range(0, len(names), size)]
    return {
        (part[0] if len(part) == 1 else f"{part[0]} to {part[-1]}"): tuple(n for name in part for n in layers[name])
        for part in parts
    }


def _best(tried: list[Static]) -> Static:
    """The one that agrees best with fp32; agreement counts every change, the metric can stay put by luck."""
    return min(tried, key=lambda one: (-one.trial.agreement, one.trial.drop))


def _has_gates(fp32: Path) -> bool:
    import onnx

    return any(node.op_type in GATED_OPS for node in onnx.load(str(fp32), load_external_data=False).graph.node)

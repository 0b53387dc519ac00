"""int8 for convolutional networks: the static candidates, by arithmetic and calibration method, and gentler ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import ExportError
from finetune.export.calibrate import METHODS, Range, Statistics, collect, ranges
from finetune.export.choose import Trial, Workbench
from finetune.export.graph import head_layers, weight_layers, weight_nodes
from finetune.export.onnx import ONE_FILE_BYTES
from finetune.export.parity import Batch
from finetune.export.refit import Refit
from finetune.export.static import GATED_OPS, WEIGHTED_OPS, Arithmetic, arithmetics, quantize_static_int8

SPARED_LAYERS = (1, 2, 4, 8)
"""How many of the noisiest layers are left in fp32, one step after another, until a form passes."""

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


def try_static(bench: Workbench, target: str, calibration: Iterable[Batch]) -> None:
    """Build and judge the static candidates for a processor kind; `calibration` are batches of one training image.

    The first arithmetic is tried with every calibration method, the others with the one that agreed best with fp32.
    Where none passes the quality gates, gentler forms of the best one follow: the head in fp32, then the layers with the
    most noise for their signal, more and more of them.
    """
    fp32 = bench.fp32
    if fp32.size_bytes > ONE_FILE_BYTES:
        bench.give_up("static int8", "the fp32 file is larger than 2 GB, which the quantizer cannot hold")
        return
    bench.progress("int8: looking at calibration images")
    try:
        statistics = collect(fp32.path, calibration, bench.folder)
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
    layers = weight_layers(fp32.path, WEIGHTED_OPS, BLOCK)
    head = tuple(node for layer in head_layers(layers) for node in layers[layer])
    if attempt(best.arithmetic, best.method, head, ", head fp32"):
        return
    ranking = noisiest(fp32.path, best, layers, statistics, found[best.method])
    for count in SPARED_LAYERS:
        if 2 * count > len(ranking):
            return
        chosen = tuple(node for layer in ranking[:count] for node in layers[layer])
        name = ", ".join(ranking[:count]) if count < 3 else f"the {count} noisiest layers"
        if attempt(best.arithmetic, best.method, chosen, f", {name} fp32"):
            return


def noisiest(
    fp32: Path,
    best: Static,
    layers: dict[str, tuple[str, ...]],
    statistics: dict[str, Statistics],
    found: dict[str, Range],
) -> list[str]:
    """Layers of a quantised form by noise over signal, the worst first; see `Refit.noise`."""
    import onnx

    assert best.trial.form is not None  # only built trials are kept
    source, proto = onnx.load(str(fp32)), onnx.load(str(best.trial.form.path))
    noise = Refit(source, proto).noise(statistics, found)
    worst = {layer: sum(noise.get(node, 0.0) for node in nodes) for layer, nodes in layers.items()}
    return sorted(worst, key=lambda layer: -worst[layer])


def _best(tried: list[Static]) -> Static:
    """The one that agrees best with fp32; agreement counts every change, the metric can stay put by luck."""
    return min(tried, key=lambda one: (-one.trial.agreement, one.trial.drop))


def _has_gates(fp32: Path) -> bool:
    import onnx

    return any(node.op_type in GATED_OPS for node in onnx.load(str(fp32), load_external_data=False).graph.node)

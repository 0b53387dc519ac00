"""int8 for encoders: the dynamic candidates of a processor, and gentler ones where none of them passes."""

from __future__ import annotations

from pathlib import Path

from finetune.errors import BundleError, ExportError
from finetune.export.choose import Form, Workbench, Yardstick
from finetune.export.graph import head_layers, weight_layers
from finetune.export.parity import differences, predict_rows
from finetune.export.quantize import Candidate, candidates, quantize_dynamic_int8, sparing
from finetune.runtime import open_session, run_logits


def try_dynamic(bench: Workbench, target: str) -> None:
    """Build and judge the dynamic candidates for a processor kind.

    Where none passes the quality gates, two gentler ones follow: the head in fp32, and the most sensitive layer in fp32.
    """
    fp32 = bench.fp32

    def attempt(candidate: Candidate) -> bool:
        trial = bench.attempt(candidate.name, lambda path: quantize_dynamic_int8(fp32.path, path, candidate))
        return trial.form is not None

    built = [candidate for candidate in candidates(target) if attempt(candidate)]
    if not bench.none_passes():
        return
    layers = weight_layers(fp32.path)
    attempt(sparing(built[0], head_layers(layers), "head"))
    if bench.trials[-1].reason and len(layers) > 1:
        bench.progress("int8: looking for the most sensitive layer")
        try:
            layer = most_sensitive_layer(fp32, built[0], bench.folder, bench.yardstick)
        except (ExportError, BundleError) as error:
            bench.give_up(f"{built[0].name}, one layer fp32", str(error))
        else:
            attempt(sparing(built[0], (layer,), layer))


def most_sensitive_layer(fp32: Form, candidate: Candidate, folder: Path, yardstick: Yardstick, rows: int = 16) -> str:
    """The layer whose quantisation alone moves the logits of a few rows most, on average.

    Embeddings stay fp32 here, so that each figure is the layer's own.
    """
    sample = yardstick.sample(rows)
    reference = predict_rows(fp32.predict, yardstick.encoder, sample, 1)
    layers = weight_layers(fp32.path)
    moved: dict[str, float] = {}
    for layer in layers:
        others = tuple(name for name in layers if name != layer)
        alone = Candidate(layer, candidate.weights, candidate.reduce_range, "fp32", others)
        path = folder / "sensitivity.onnx"
        quantize_dynamic_int8(fp32.path, path, alone)
        session = open_session(path)
        logits = predict_rows(lambda batch, session=session: run_logits(session, batch), yardstick.encoder, sample, 1)  # type: ignore[misc]
        moved[layer] = differences(reference, logits)["mean_abs_diff"]
    return max(moved, key=lambda layer: moved[layer])

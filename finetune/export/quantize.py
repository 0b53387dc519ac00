"""fp32 ONNX to dynamic int8 ONNX: the candidates worth trying on a processor, and how one is built.

Encoders (of texts; of images where attention does the work) are quantised dynamically: weights in advance, activations at run time from their own range, so no calibration
rows are needed. Every candidate quantises weights per channel (per tensor loses far more: docs/export.md).
Needs onnx and onnxruntime; imports no torch.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from finetune.errors import ExportError, nearest
from finetune.export.graph import MATRIX_OPS, mark_prepared, unheard, unmark_prepared, weight_layers
from finetune.export.onnx import save_onnx
from finetune.hardware import INT8_TARGETS


@dataclass(frozen=True)
class Candidate:
    """One way to quantise. Activations are always unsigned (u8), as ONNX's DynamicQuantizeLinear gives them."""

    name: str
    weights: Literal["s8", "u8"] = "s8"
    """Signed or unsigned 8-bit weights, one scale per output channel."""
    reduce_range: bool = False
    """7-bit weights: AVX2 and AVX-512 add pairs of u8·s8 products in 16 bits, which 8-bit weights overflow."""
    embeddings: Literal["s8", "fp32"] = "s8"
    """Embedding tables: signed 8-bit with one scale per row (token), or left as they are."""
    spared: tuple[str, ...] = ()
    """Layers (names from `weight_layers`) that stay fp32."""


def candidates(target: str) -> tuple[Candidate, ...]:
    """What to try for a processor kind of `finetune.hardware.INT8_TARGETS`; the usually best one first.

    avx2 and avx512 (without VNNI) saturate on u8·s8, so signed weights keep to 7 bits there; VNNI, AMX and Arm's dot
    product add in 32 bits and take all 8. Unsigned weights never saturate, and are slower on some processors.
    """
    if target not in INT8_TARGETS:
        raise ExportError(f"export.int8.cpu: unknown processor kind '{target}'{nearest(target, INT8_TARGETS)}")
    if target in ("avx2", "avx512"):
        return (
            Candidate("u8s8 per-channel reduce-range", reduce_range=True),
            Candidate("u8u8 per-channel", weights="u8"),
        )
    return (Candidate("u8s8 per-channel"), Candidate("u8u8 per-channel", weights="u8"))


def sparing(candidate: Candidate, layers: tuple[str, ...], what: str) -> Candidate:
    """The candidate with these layers left in fp32, and a name that says so."""
    return replace(candidate, name=f"{candidate.name}, {what} fp32", spared=candidate.spared + layers)


def quantize_dynamic_int8(fp32: Path, out: Path, candidate: Candidate) -> None:
    """Write the int8 form of `fp32` to `out`. ExportError if the graph cannot be quantised so."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    layers = weight_layers(fp32)
    if unknown := [layer for layer in candidate.spared if layer not in layers]:
        raise ExportError(f"{fp32}: there is no layer '{unknown[0]}' to leave in fp32{nearest(unknown[0], layers)}")
    proto = onnx.load(str(fp32))
    if candidate.embeddings == "s8":
        quantize_embeddings(proto)
    mark_prepared(proto)
    with tempfile.TemporaryDirectory(prefix=".int8-", dir=out.parent) as scratch:
        raw = Path(scratch) / "model.onnx"
        try:
            with unheard():
                quantize_dynamic(
                    proto,
                    str(raw),
                    op_types_to_quantize=list(MATRIX_OPS),
                    per_channel=True,
                    reduce_range=candidate.reduce_range,
                    weight_type=QuantType.QInt8 if candidate.weights == "s8" else QuantType.QUInt8,
                    nodes_to_exclude=[
                        name for layer in candidate.spared for node in layers[layer] for name in _spellings(node)
                    ],
                    extra_options={"MatMulConstBOnly": True},  # attention scores have no weights: both sides vary
                )
        except Exception as error:  # the quantizer raises bare Exception, ValueError and protobuf's own errors
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise ExportError(f"{fp32}: cannot be quantised as {candidate.name} ({reason})") from error
        quantized = onnx.load(str(raw))
    unmark_prepared(quantized)
    save_onnx(quantized, out)


def quantize_embeddings(proto: Any) -> int:
    """Replace embedding tables (V, H) by int8 tables with one scale per row, in place; returns how many.

    ONNX Runtime's own Gather quantisation has one scale for the whole table, which rare large rows spoil; with a scale
    per row the error of a row is at most 1/254 of its own largest element. The graph gathers the int8 rows, casts
    them, and multiplies by the gathered scales: standard operators on the few rows that are looked up.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = proto.graph
    tables = {tensor.name: tensor for tensor in graph.initializer}
    uses = [name for node in graph.node for name in node.input] + [value.name for value in graph.output]
    nodes: list[Any] = []
    done: list[str] = []
    for node in graph.node:
        table = tables.get(node.input[0]) if node.op_type == "Gather" else None
        axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
        if (
            table is None
            or axis
            or len(table.dims) != 2
            or table.data_type != TensorProto.FLOAT
            or uses.count(table.name) > 1
        ):
            nodes.append(node)
            continue
        weights = numpy_helper.to_array(table)
        largest = np.abs(weights).max(axis=1, keepdims=True)
        scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        rows = np.rint(weights / scales).astype(np.int8)
        name, ids, output = table.name, node.input[1], node.output[0]
        graph.initializer.append(numpy_helper.from_array(rows, f"{name}_int8"))
        graph.initializer.append(numpy_helper.from_array(scales, f"{name}_scale"))
        nodes += [
            helper.make_node("Gather", [f"{name}_int8", ids], [f"{output}_int8"], f"{node.name}/rows", axis=0),
            helper.make_node(
                "Cast", [f"{output}_int8"], [f"{output}_unscaled"], f"{node.name}/cast", to=TensorProto.FLOAT
            ),
            helper.make_node("Gather", [f"{name}_scale", ids], [f"{output}_scale"], f"{node.name}/scales", axis=0),
            helper.make_node("Mul", [f"{output}_unscaled", f"{output}_scale"], [output], f"{node.name}/scaled"),
        ]
        done.append(name)
    del graph.node[:]
    graph.node.extend(nodes)
    kept = [tensor for tensor in graph.initializer if tensor.name not in done]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return len(done)


def _spellings(node: str) -> tuple[str, str]:
    """A node's name, and the one it gets when the quantizer first rewrites Gemm as MatMul and Add."""
    return node, f"{node}_MatMul"

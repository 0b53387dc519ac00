"""fp32 ONNX to static int8 ONNX (QDQ) for convolutional networks.

Weights have a scale per output channel, activations a range per tensor that calibration found. Two things that plain
quantisation leaves undone decide how good a depthwise network is afterwards (docs/export.md has figures):

- Rounding a channel's weights moves the mean of its output. That is known from the mean inputs, and taken off the bias
  (Nagel et al. 2019, arXiv:1906.04721, §4.2; Finkelstein et al. 2019, arXiv:1906.03193).
- A convolution that is left in fp32 between quantised ones is quantised by ONNX Runtime after all, per tensor, when the
  session loads. An activation that is the identity keeps it from that.

Needs onnx and onnxruntime; imports no torch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from finetune.errors import ExportError, nearest
from finetune.export.calibrate import Range, Statistics
from finetune.export.graph import group_of, unheard, unmark_prepared
from finetune.export.onnx import save_onnx
from finetune.export.refit import Refit
from finetune.hardware import INT8_TARGETS

WEIGHTED_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
PLAIN_OPS = (*WEIGHTED_OPS, "Add", "Clip", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Flatten", "Reshape", "Squeeze", "Transpose", "Resize", "Pad")  # fmt: skip
GATED_OPS = ("Mul", "Sigmoid", "HardSigmoid")
"""SiLU, hard swish and squeeze-and-excitation: in 8 bits they are faster and lose more."""


@dataclass(frozen=True)
class Arithmetic:
    """How weights are stored and which operators are quantised; what a processor's kernels are chosen by."""

    name: str
    weights: Literal["s8", "u8"] = "s8"
    """Weights of dense convolutions and linear layers. Depthwise ones are always s8: ONNX Runtime has fast kernels for
    those only, and they add in 32 bits, so that all 8 bits can be used."""
    reduce_range: bool = False
    """7-bit signed weights: AVX2 and AVX-512 add pairs of u8·s8 products in 16 bits, which 8-bit weights overflow."""
    gated: bool = True
    """Whether `GATED_OPS` are quantised."""


def arithmetics(target: str, gated: bool) -> tuple[Arithmetic, ...]:
    """What to try for a processor kind of `finetune.hardware.INT8_TARGETS`; `gated` tells whether the graph has `GATED_OPS`.

    avx2 and avx512 (without VNNI) saturate on u8·s8, so dense weights are unsigned there, or signed with 7 bits; VNNI, AMX
    and Arm's dot product add in 32 bits and take signed ones with all 8.
    """
    if target not in INT8_TARGETS:
        raise ExportError(f"export.int8.cpu: unknown processor kind '{target}'{nearest(target, INT8_TARGETS)}")
    plain = _NARROW if target in ("avx2", "avx512") else (Arithmetic("u8s8 per-channel"),)
    careful = replace(plain[0], name=f"{plain[0].name}, gates fp32", gated=False)
    return (*plain, careful) if gated else plain


_NARROW = (
    Arithmetic("u8u8 per-channel, depthwise u8s8", weights="u8"),
    Arithmetic("u8s8 per-channel reduce-range", reduce_range=True),
)


def quantize_static_int8(
    fp32: Path,
    out: Path,
    arithmetic: Arithmetic,
    ranges: Mapping[str, Range],
    statistics: Mapping[str, Statistics],
    spared: tuple[str, ...] = (),
) -> None:
    """Write the int8 form of `fp32` to `out`; `spared` are names of nodes that stay fp32.

    `ranges` and `statistics` are of every float tensor. ExportError if the graph cannot be quantised.
    """
    import onnx

    source = onnx.shape_inference.infer_shapes(onnx.load(str(fp32)))
    try:
        with unheard():
            proto = _quantize(source, arithmetic, ranges, spared)
    except Exception as error:  # the quantizer raises bare Exception, ValueError, KeyError and protobuf's own errors
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ExportError(f"{fp32}: cannot be quantised as {arithmetic.name} ({reason})") from error
    _leave_outputs(source, proto)
    Refit(source, proto).correct(statistics)
    keep_float(proto, spared)
    unmark_prepared(proto)
    save_onnx(proto, out)


def _quantize(source: Any, arithmetic: Arithmetic, ranges: Mapping[str, Range], spared: tuple[str, ...]) -> Any:
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    found = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    signed = {"quant_type": QuantType.QInt8, "reduce_range": False, "axis": 0, "symmetric": True}
    depthwise = {name: [signed] for name in _depthwise_weights(source.graph)}
    ops = [*PLAIN_OPS, *(GATED_OPS if arithmetic.gated else ())]
    quantizer = QDQQuantizer(
        copy.deepcopy(source),
        True,  # per channel
        arithmetic.reduce_range,
        QuantType.QInt8 if arithmetic.weights == "s8" else QuantType.QUInt8,
        QuantType.QUInt8,
        TensorsData(CalibrationMethod.MinMax, found),
        [],
        list(spared),
        ops,
        {"TensorQuantOverrides": depthwise, "MatMulConstBOnly": True},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    return quantizer.model.model


def _depthwise_weights(graph: Any) -> list[str]:
    """Weights of convolutions that see one channel each; the other grouped ones are computed as dense ones are."""
    one = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 2 and tensor.dims[1] == 1}
    return [
        node.input[1] for node in graph.node if node.op_type == "Conv" and group_of(node) > 1 and node.input[1] in one
    ]


def _leave_outputs(source: Any, proto: Any) -> None:
    """Give the logits as they were computed: 256 levels would be too few for a number or a probability.

    Where the quantizer dropped a last Relu or Clip, because rounding into its range does the same, the levels stay.
    """
    graph = proto.graph
    kept = {node.name for node in graph.node}
    own = {name: node.name for node in source.graph.node for name in node.output}
    makers = {name: node for node in graph.node for name in node.output}
    for value in graph.output:
        last = makers.get(value.name)
        if last is None or last.op_type != "DequantizeLinear" or own[value.name] not in kept:
            continue
        first = makers[last.input[0]]
        if first.op_type != "QuantizeLinear":
            continue
        before = first.input[0]
        for node in (last, first):
            graph.node.remove(node)
        for node in graph.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == before:
                        names[index] = value.name


def keep_float(proto: Any, spared: tuple[str, ...]) -> None:
    """Keep ONNX Runtime from quantising these convolutions and linear layers while it loads the file.

    Its WeightBiasQuantization looks for Conv, ConvTranspose and Gemm with an fp32 weight between DequantizeLinear and
    QuantizeLinear, with nothing but Relu and Clip between, and gives the weight one scale for the whole tensor. A
    LeakyRelu of slope 1 changes no value, is fused into the convolution, and is not passed over.
    """
    from onnx import helper

    graph = proto.graph
    for index, node in reversed(list(enumerate(graph.node))):
        if node.name in spared and node.op_type in WEIGHTED_OPS:
            output = node.output[0]
            node.output[0] = f"{output}_float"
            guard = helper.make_node("LeakyRelu", [node.output[0]], [output], f"{node.name}/keep", alpha=1.0)
            graph.node.insert(index + 1, guard)

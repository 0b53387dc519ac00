"""What rounding a network's weights did to the means of its channels, taken off its biases. Needs numpy and onnx only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.export.calibrate import Statistics
from finetune.export.graph import group_of

Floats = NDArray[np.float64]
BIAS_LIMIT = 2**30
"""Quantised biases stay below half of what int32 holds, so that products can still be added to them."""


@dataclass(frozen=True)
class Rounded:
    """A node of the fp32 graph with its weight, and the DequantizeLinear nodes that give it in the QDQ graph."""

    node: Any
    exact: Floats
    weight: Any
    bias: Any


class Refit:
    """A QDQ graph beside the fp32 graph that it was made from; nodes are known by their names."""

    def __init__(self, source: Any, proto: Any) -> None:
        from onnx import numpy_helper

        self._arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in source.graph.initializer}
        self._nodes = {node.name: node for node in source.graph.node}
        self._proto = proto
        self._constants = {tensor.name: tensor for tensor in proto.graph.initializer}

    def correct(self, statistics: Mapping[str, Statistics]) -> None:
        """Take what rounding the weights adds to each channel's mean off its bias (Nagel et al. 2019, §4.2), in place."""
        for one in self._rounded():
            self._make_room(one)
            moved = outputs(one.node, one.exact - self._value(one), statistics[one.node.input[0]].means)
            wanted = self._arrays[one.node.input[2]] + moved
            whole = np.rint(wanted / self._constant(one.bias.input[1]))
            self._replace(one.bias.input[0], np.clip(whole, -(2**31) + 1, 2**31 - 1).astype(np.int32))

    def _rounded(self) -> Iterator[Rounded]:
        """The convolutions and linear layers whose weight and bias are quantised constants.

        Transposed convolutions are laid out otherwise, and MatMul has no bias: both stay as they are.
        """
        makers = {name: node for node in self._proto.graph.node for name in node.output}
        for node in self._proto.graph.node:
            before = self._nodes.get(node.name)
            if before is None or node.op_type not in ("Conv", "Gemm") or len(node.input) < 3:
                continue
            weight, bias = makers.get(node.input[1]), makers.get(node.input[2])
            if weight is None or bias is None or not {weight.input[0], bias.input[0]} <= self._constants.keys():
                continue
            yield Rounded(before, self._arrays[before.input[1]].astype(np.float64), weight, bias)

    def _make_room(self, one: Rounded) -> None:
        """Widen the step of channels whose weights are so small that their bias overflows int32 in that unit.

        Such channels are as good as dead, but their bias is not: folded batch normalisation leaves many of them.
        """
        scale, step = self._constant(one.weight.input[1]), self._constant(one.bias.input[1])
        wanted = np.abs(self._arrays[one.node.input[2]]) * 1.01 / BIAS_LIMIT
        factor = np.maximum(wanted / step, 1.0)
        if not scale.ndim or (factor == 1).all():
            return
        zero = self._constant(one.weight.input[2])
        shape = _along(one)
        widened = (scale * factor).astype(np.float32)
        kind = np.iinfo(self._stored(one.weight.input[0]).dtype)
        whole = np.rint(one.exact / widened.reshape(shape)) + zero.reshape(shape)
        kept = np.where((factor > 1).reshape(shape), whole, self._constant(one.weight.input[0]))
        self._replace(one.weight.input[1], widened)
        self._replace(one.weight.input[0], np.clip(kept, kind.min, kind.max).astype(kind.dtype))
        self._replace(one.bias.input[1], (step * factor).astype(np.float32))

    def _value(self, one: Rounded) -> Floats:
        """What the stored weight stands for."""
        quantized, scale, zero = (self._constant(name) for name in one.weight.input)
        shape = _along(one) if scale.ndim else ()
        return np.asarray((quantized - zero.reshape(shape)) * scale.reshape(shape))

    def _stored(self, name: str) -> NDArray[Any]:
        from onnx import numpy_helper

        return np.asarray(numpy_helper.to_array(self._constants[name]))

    def _constant(self, name: str) -> Floats:
        return self._stored(name).astype(np.float64)

    def _replace(self, name: str, values: NDArray[Any]) -> None:
        from onnx import numpy_helper

        self._constants[name].CopyFrom(numpy_helper.from_array(values, name))


def outputs(node: Any, weight: Floats, inputs: Floats) -> Floats:
    """Output channels (O,) of a Conv or Gemm without its bias, for one value per input channel (I,).

    The value stands everywhere: padding is not looked at.
    """
    if node.op_type == "Gemm":
        transposed = any(item.name == "transB" and item.i for item in node.attribute)
        return np.asarray((weight if transposed else weight.T) @ inputs)
    groups = group_of(node)
    taps = weight.sum(axis=tuple(range(2, weight.ndim)))  # (O, I / groups)
    per_group = taps.reshape(groups, -1, taps.shape[1]) * inputs.reshape(groups, 1, -1)
    return np.asarray(per_group.sum(axis=2).reshape(-1))


def _along(one: Rounded) -> tuple[int, ...]:
    """Shape with which a value per output channel is laid along the weight's own axis."""
    axis = next((item.i for item in one.weight.attribute if item.name == "axis"), 1)
    return tuple(-1 if index == axis else 1 for index in range(one.exact.ndim))

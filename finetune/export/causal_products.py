"""Products with constant matrices in an ONNX graph, and the nodes that compute them, and look up rows, from 8 bits.

Needs onnx and numpy only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Spared = Literal["none", "sensitive", "all"]

INT8_ACCURACY = 4
"""MatMulNBits' accuracy_level for products of int8 with int8. At the other levels it dequantises all weights at every call."""


@dataclass(frozen=True)
class Product:
    """A node that multiplies by a constant matrix."""

    node: Any
    weight: str
    """Name of the initializer."""
    outputs_first: bool
    """Stored (N, K) and transposed by the graph, or as it is multiplied, (K, N)."""
    bias: str | None


def weight_products(graph: Any) -> list[Product]:
    """The MatMul and Gemm nodes whose second factor is a constant or a transposed constant, in the order of the graph."""
    constants = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    turned = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Transpose"}
    found = []
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        flags = {item.name: item for item in node.attribute}
        if node.op_type == "Gemm" and not _is_plain(flags):
            continue
        name = node.input[1]
        stored = turned.get(name, name)
        if stored in constants:
            flipped = (stored != name) != bool(flags["transB"].i if "transB" in flags else 0)
            found.append(Product(node, stored, flipped, node.input[2] if len(node.input) > 2 else None))
    return found


def _is_plain(flags: dict[str, Any]) -> bool:
    """Whether a Gemm is x·W + b, W transposed or not."""
    return all(flags[name].f == 1 for name in ("alpha", "beta") if name in flags) and not (
        "transA" in flags and flags["transA"].i
    )


class Blocks:
    """MatMulNBits: weights (N, blocks, bytes) with scales (N, blocks); the middle of the unsigned range stands for zero."""

    def __init__(self, block: int, bits: int, fp32_products: Spared) -> None:
        self.block, self.bits, self.fp32_products = block, bits, fp32_products
        self.done: dict[str, tuple[int, int, int, bool]] = {}
        """Weight -> (outputs N, inputs K, bits, whether its products are with fp32)."""
        self.stored: list[Any] = []

    def store(self, name: str, weight: Floats, is_head: bool) -> None:
        """Quantise `weight` (N, K)."""
        from onnx import numpy_helper

        (outputs, inputs), spared = weight.shape, self.fp32_products
        fp32 = spared == "all" or (spared == "sensitive" and (is_head or inputs > outputs))
        bits = 8 if is_head or fp32 else self.bits
        packed, scales = block_quantized(weight, self.block, bits)
        self.stored.append(numpy_helper.from_array(packed, f"{name}_blocks"))
        self.stored.append(numpy_helper.from_array(scales, f"{name}_scales"))
        self.done[name] = (outputs, inputs, bits, fp32)

    def product(self, product: Product) -> list[Any]:
        """The product's nodes."""
        from onnx import helper

        name, node = product.weight, product.node
        outputs, inputs, bits, fp32 = self.done[name]
        if fp32:
            return _with_bias(product, lambda output: self._unpacked(node, name, output))
        return _with_bias(
            product,
            lambda output: [
                helper.make_node(
                    "MatMulNBits", [node.input[0], f"{name}_blocks", f"{name}_scales"], [output], node.name,
                    domain="com.microsoft", K=inputs, N=outputs, bits=bits, block_size=self.block,
                    accuracy_level=INT8_ACCURACY,
                )
            ],
        )  # fmt: skip

    def _unpacked(self, node: Any, name: str, output: str) -> list[Any]:
        """Product with constants that ONNX Runtime dequantises when it opens the file."""
        outputs, inputs, *_ = self.done[name]
        steps = _Steps(output, node.name, self.stored)
        whole = self._dequantized(steps, f"{name}_blocks", f"{name}_scales")
        flat = steps.add("Reshape", [whole, steps.constant(np.array([outputs, -1]))])
        turned = steps.add("Transpose", [self._without_padding(steps, flat, inputs)], perm=[1, 0])
        steps.add("MatMul", [node.input[0], turned], output=output)
        return steps.nodes

    def lookup(self, node: Any) -> list[Any]:
        """The rows of ids (B, S) as fp32 (B, S, K), from the same bytes that the products use."""
        table, ids, output, scope = node.input[0], node.input[1], node.output[0], node.name
        _, inputs, *_ = self.done[table]
        steps = _Steps(output, scope, self.stored)
        rows = steps.add("Gather", [f"{table}_blocks", ids], axis=0)
        scales = steps.add("Gather", [f"{table}_scales", ids], axis=0)
        whole = self._dequantized(steps, rows, scales)
        flat = steps.add("Reshape", [whole, steps.constant(np.array([0, 0, -1]))])
        steps.add("Identity", [self._without_padding(steps, flat, inputs)], output=output)
        return steps.nodes

    def _dequantized(self, steps: _Steps, rows: str, scales: str) -> str:
        """8-bit blocks (…, blocks, block) as fp32."""
        centred = steps.add("Sub", [steps.add("Cast", [rows], to=1), steps.constant(np.float32(128))])
        return steps.add("Mul", [centred, steps.add("Unsqueeze", [scales, steps.constant(np.array([-1]))])])

    def _without_padding(self, steps: _Steps, flat: str, inputs: int) -> str:
        """The last axis without what fills up its last block."""
        if inputs % self.block == 0:
            return flat
        return steps.add("Slice", [flat, *(steps.constant(np.array([end])) for end in (0, inputs, -1))])


class Dynamic:
    """DynamicQuantizeLinear and MatMulInteger: weights int8 (N, K), transposed when the file is opened, one scale per output."""

    def __init__(self, reduce_range: bool) -> None:
        self.reduce_range = reduce_range
        self.done: dict[str, None] = {}
        self.stored: list[Any] = []
        self._rounded: dict[str, list[str]] = {}

    def store(self, name: str, weight: Floats, is_head: bool) -> None:
        """Quantise `weight` (N, K) by rows, the head like the others."""
        from onnx import numpy_helper

        most = 64 if self.reduce_range else 127
        largest = np.abs(weight).max(axis=1, keepdims=True)
        scales = np.where(largest > 0, largest / most, 1).astype(np.float32)
        rows = np.rint(weight / scales).astype(np.int8)
        self.stored += [
            numpy_helper.from_array(rows, f"{name}_int8"),
            numpy_helper.from_array(scales, f"{name}_scales"),
        ]
        self.done[name] = None

    def product(self, product: Product) -> list[Any]:
        """The product's nodes."""

        def build(output: str) -> list[Any]:
            steps, name = _Steps(output, product.node.name, self.stored), product.weight
            x = product.node.input[0]
            if x not in self._rounded:  # q, k and v read the same x
                self._rounded[x] = steps.add_many("DynamicQuantizeLinear", [x], 3)
            rounded, scale, zero = self._rounded[x]
            turned = steps.add("Transpose", [f"{name}_int8"], perm=[1, 0])
            sums = steps.add("MatMulInteger", [rounded, turned, zero, steps.constant(np.int8(0))])
            per_output = steps.add("Reshape", [f"{name}_scales", steps.constant(np.array([-1]))])
            both = steps.add("Mul", [scale, per_output])
            steps.add("Mul", [steps.add("Cast", [sums], to=1), both], output=output)
            return steps.nodes

        return _with_bias(product, build)

    def lookup(self, node: Any) -> list[Any]:
        """The rows of the ids as fp32, from the same bytes that the product uses."""
        table, ids, output = node.input[0], node.input[1], node.output[0]
        steps = _Steps(output, node.name, self.stored)
        rows = steps.add("Cast", [steps.add("Gather", [f"{table}_int8", ids], axis=0)], to=1)
        steps.add("Mul", [rows, steps.add("Gather", [f"{table}_scales", ids], axis=0)], output=output)
        return steps.nodes


class _Steps:
    """Nodes in a row that end in one value, each with a name made from that value's."""

    def __init__(self, output: str, scope: str, stored: list[Any]) -> None:
        self.nodes: list[Any] = []
        self._output, self._scope, self._stored = output, scope, stored

    def add(self, kind: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        return self.add_many(kind, inputs, 1, [output] if output else None, **attributes)[0]

    def add_many(
        self, kind: str, inputs: list[str], count: int, outputs: list[str] | None = None, **attributes: Any
    ) -> list[str]:
        from onnx import helper

        at = len(self.nodes)
        outputs = outputs or [f"{self._output}_{kind}_{at}_{each}" for each in range(count)]
        self.nodes.append(helper.make_node(kind, inputs, outputs, f"{self._scope}/{kind}_{at}", **attributes))
        return outputs

    def constant(self, value: Any) -> str:
        from onnx import numpy_helper

        name = f"{self._output}_constant_{len(self._stored)}"
        self._stored.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def _with_bias(product: Product, build: Callable[[str], list[Any]]) -> list[Any]:
    """The product's nodes, and an Add where it was a Gemm with a bias."""
    from onnx import helper

    output = product.node.output[0]
    if product.bias is None:
        return build(output)
    bare = f"{output}_without_bias"
    added = helper.make_node("Add", [bare, product.bias], [output], f"{product.node.name}/bias")
    return [*build(bare), added]


def block_quantized(weight: Floats, block: int, bits: int) -> tuple[NDArray[np.uint8], Floats]:
    """Weights (N, K) as MatMulNBits wants them: bytes (N, blocks, block·bits/8) and scales (N, blocks).

    Values are rounded to multiples of their block's largest / (2^(bits-1) - 1), around the middle 2^(bits-1). The last block
    is filled up with zeros; of two 4-bit values in a byte, the first is the lower half.
    """
    outputs, inputs = weight.shape
    blocks = -(-inputs // block)
    padded = np.zeros((outputs, blocks * block), np.float32)
    padded[:, :inputs] = weight
    parts = padded.reshape(outputs, blocks, block)
    middle = 2 ** (bits - 1)
    largest = np.abs(parts).max(axis=2)
    scales = np.where(largest > 0, largest / (middle - 1), 1).astype(np.float32)
    rounded = (np.rint(parts / scales[:, :, None]) + middle).astype(np.uint8)
    if bits == 4:
        rounded = rounded[:, :, 0::2] | (rounded[:, :, 1::2] << 4)
    return rounded, scales

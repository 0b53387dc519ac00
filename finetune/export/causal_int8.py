"""8-bit forms of a causal language model's ONNX file, in which a tied embedding stays one table.

Two ways to quantise a product x·W:
blocks: W in 8 (or 4) bits with one scale per block of inputs, ONNX Runtime's MatMulNBits; x is rounded to 8 bits block by
    block too, or stays fp32. A step reads a quarter of the bytes, which is what a step takes its time for.
dynamic: W in int8 with one scale per output, x in uint8 with one scale for the whole tensor, found at run time. Faster for
    long prompts, but where a few channels of x are far larger than the others, they take the bits of all.
Embedding tables get the same 8 bits, and are dequantised in the few rows that are looked up. Needs onnx and numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finetune.errors import ExportError, nearest
from finetune.export.causal_products import Blocks, Dynamic, Spared, weight_products
from finetune.export.onnx import save_onnx
from finetune.export.quantize import quantize_embeddings
from finetune.hardware import INT8_TARGETS


@dataclass(frozen=True)
class CausalCandidate:
    """One way to quantise a causal language model."""

    name: str
    way: Literal["blocks", "dynamic"]
    bits: Literal[4, 8] = 8
    """Bits of a weight; with 4 the head keeps 8, and so does the embedding that is tied to it."""
    block: int = 32
    """For blocks: inputs per scale."""
    fp32_products: Spared = "none"
    """For blocks: where x is not rounded, but W dequantised when the file is opened. There only the file is smaller: a product
    takes fp32's time, and is exact but for the rounding of W. "sensitive" is where rounding x does most: the head, and products
    with more inputs than outputs, which end the feed-forward blocks and whose inputs have the largest outliers."""
    reduce_range: bool = False
    """For dynamic: 7-bit weights, which cannot overflow AVX2's and AVX-512's sums of pairs in 16 bits."""
    served: bool = True
    """False for a form that is measured for information only."""


def causal_candidates(target: str) -> tuple[CausalCandidate, ...]:
    """What to try for a processor kind of `finetune.hardware.INT8_TARGETS`; the usually best one first."""
    if target not in INT8_TARGETS:
        raise ExportError(f"export.int8.cpu: unknown processor kind '{target}'{nearest(target, INT8_TARGETS)}")
    narrow = target in ("avx2", "avx512")
    dynamic = "u8s8 per-channel reduce-range" if narrow else "u8s8 per-channel"
    return (
        CausalCandidate("8-bit blocks of 32", "blocks"),
        CausalCandidate("8-bit blocks of 32, fp32 products", "blocks", fp32_products="all"),
        CausalCandidate(dynamic, "dynamic", reduce_range=narrow),
        CausalCandidate("4-bit blocks of 32 (for information)", "blocks", bits=4, served=False),
    )


GENTLER = CausalCandidate("8-bit blocks of 32, sensitive products fp32", "blocks", fp32_products="sensitive")
"""What to try where the first candidate does not pass the quality gates."""


def quantize_causal(fp32: Path, out: Path, candidate: CausalCandidate) -> None:
    """Write the 8-bit form of a causal language model's `fp32` ONNX file to `out`. ExportError if it has no such products."""
    import onnx
    from onnx import numpy_helper

    proto = onnx.load(str(fp32))
    graph = proto.graph
    products = weight_products(graph)
    if not products:
        raise ExportError(f"{fp32}: has no products with constant matrices, so there is nothing to quantise")
    head = products[-1].weight
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    build = _WAYS[candidate.way](candidate)
    replaced: dict[int, list[Any]] = {}
    for product in products:
        if product.weight not in build.done:
            weight = numpy_helper.to_array(tensors[product.weight])
            build.store(product.weight, weight if product.outputs_first else weight.T, product.weight == head)
        replaced[id(product.node)] = build.product(product)
    nodes: list[Any] = []
    for node in graph.node:
        shared = node.op_type == "Gather" and node.input[0] in build.done
        nodes += replaced.get(id(node)) or (build.lookup(node) if shared else [node])
    _put(graph, nodes, build.stored)
    quantize_embeddings(proto)
    if candidate.way == "blocks":
        proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    save_onnx(proto, out)


_WAYS: dict[str, Callable[[CausalCandidate], Blocks | Dynamic]] = {
    "blocks": lambda candidate: Blocks(candidate.block, candidate.bits, candidate.fp32_products),
    "dynamic": lambda candidate: Dynamic(candidate.reduce_range),
}


def _put(graph: Any, nodes: Iterable[Any], stored: Iterable[Any]) -> None:
    """Set the graph's nodes, without those that nothing uses any more, and its constants."""
    wanted = {value.name for value in graph.output}
    kept: list[Any] = []
    for node in reversed(list(nodes)):
        if wanted & set(node.output):
            wanted |= set(node.input)
            kept.append(node)
    tensors = [tensor for tensor in (*graph.initializer, *stored) if tensor.name in wanted]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(tensors)

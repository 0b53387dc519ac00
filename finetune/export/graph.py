"""What an ONNX graph is made of, and how ONNX Runtime's quantizer is spoken to. Needs onnx only."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MATRIX_OPS = ("MatMul", "Gemm")
BLOCK = r"(.*?\.\d+)(\.|$)"
"""An encoder's block is the module up to the first number in its name: "bert.encoder.layer.0"."""


def weight_layers(fp32: Path, ops: Sequence[str] = MATRIX_OPS, block: str = BLOCK) -> dict[str, tuple[str, ...]]:
    """Layer name -> names of its nodes that carry a weight, input side first.

    A layer is what `block` finds in a node's scope ("bert.encoder.layer.0") or, outside the blocks, a module ("classifier").
    """
    import onnx

    graph = onnx.load(str(fp32), load_external_data=False).graph
    layers: dict[str, list[str]] = {}
    for node in weight_nodes(graph, ops):
        scope = node.name.rpartition("/")[0] or node.name
        found = re.match(block, scope)
        layers.setdefault(found.group(1) if found else scope, []).append(node.name)
    return {layer: tuple(nodes) for layer, nodes in layers.items()}


def weight_nodes(graph: Any, ops: Sequence[str]) -> list[Any]:
    """The nodes of these operators whose second input is a constant."""
    constants = {tensor.name for tensor in graph.initializer}
    return [node for node in graph.node if node.op_type in ops and node.input[1] in constants]


def head_layers(layers: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The layers after the last block: pooler, classifier."""
    names = list(layers)
    blocks = [index for index, name in enumerate(names) if re.search(r"\.\d+$", name)]
    return tuple(names[blocks[-1] + 1 :]) if blocks else tuple(names[-1:])


def group_of(node: Any) -> int:
    """Groups of a convolution; 1 for a dense one and for any other operator."""
    return next((int(item.i) for item in node.attribute if item.name == "group"), 1)


def mark_prepared(proto: Any) -> None:
    """Tell the quantizer that the graph needs no preparation: the exporter has folded and optimised it already.

    Otherwise it warns through the root logger, and thereby configures the logging of the whole process.
    """
    entry = proto.metadata_props.add()
    entry.key, entry.value = "onnx.quant.pre_process", "onnxruntime.quant"


def unmark_prepared(proto: Any) -> None:
    """Remove what the quantizer and its preparation wrote into the file's metadata."""
    kept = [item for item in proto.metadata_props if not item.key.startswith("onnx.")]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)


@contextmanager
def unheard() -> Iterator[None]:
    """Keep the quantizer's notes, which it writes to the root logger, from the user, and that logger as it was.

    Logging through a root logger without handlers gives it one for good. Other loggers are not touched: a filter on a
    logger is asked about what is logged to it directly, not about what is passed up to it.
    """
    root, silent = logging.getLogger(), logging.NullHandler()

    def drop(record: logging.LogRecord) -> bool:
        return False

    root.addHandler(silent)
    root.addFilter(drop)
    try:
        yield
    finally:
        root.removeFilter(drop)
        root.removeHandler(silent)

"""A causal language model as one ONNX file with a key/value cache: prompts with an empty past, and single steps.

Inputs: `input_ids` (B, S), `attention_mask` (B, P + S), `position_ids` (B, S), and for each layer i `past.{i}.key` and
`past.{i}.value` (B, H, P, D). Outputs: `logits` (B, S, V), and `present.{i}.key` and `present.{i}.value` (B, H, P + S, D),
which are the next call's past. P may be 0. Every weight is in the file once, a tied embedding too.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune.errors import ExportError
from finetune.export.onnx import LOGITS, eager_attention, evaluating_on_cpu, save_onnx, trace

NEEDED_INPUTS = ("input_ids", "attention_mask", "position_ids", "past_key_values")


class CachedForward(nn.Module):
    """A causal language model with its cache as plain tensors: the keys and values of each layer in turn."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Logits (B, S, V), then keys and values (B, H, P + S, D) of each layer; `past` has them for P tokens."""
        from transformers import DynamicCache

        # Without a config every layer keeps its whole past; a sliding window is then a matter of the mask alone.
        cache = DynamicCache(list(zip(past[::2], past[1::2])) or None)
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
        )
        layers: Any = output.past_key_values.layers
        return (output.logits, *(tensor for layer in layers for tensor in (layer.keys, layer.values)))


def export_cached(model: nn.Module, path: Path) -> None:
    """Write a transformers causal language model to `path` as ONNX with a key/value cache; see the module's docstring.

    The model comes back as it was. ExportError if it has no such cache or cannot be traced.
    """
    name = type(model).__name__
    lacking = [each for each in NEEDED_INPUTS if each not in inspect.signature(model.forward).parameters]
    if lacking:
        raise ExportError(
            f"{name} takes no {lacking[0]}, so it cannot be exported with a key/value cache; choose another backbone"
        )
    with evaluating_on_cpu(model), eager_attention(model):
        wrapped = CachedForward(model).eval()
        ids, mask, positions, past = _example(wrapped, name)
        tensors = [f"{layer}.{part}" for layer in range(len(past) // 2) for part in ("key", "value")]
        free = torch.export.Dim.DYNAMIC
        proto = trace(
            wrapped,
            name,
            args=(ids, mask, positions, past),
            input_names=["input_ids", "attention_mask", "position_ids", *(f"past.{each}" for each in tensors)],
            output_names=[LOGITS, *(f"present.{each}" for each in tensors)],
            # ONNX Runtime optimises the graph when it opens it; doing it here as well takes a third of the export's time, and
            # folds transposed weights into new constants, which would part a tied embedding from the head.
            optimize=False,
            dynamic_shapes=(
                {0: free, 1: free},
                {0: free, 1: free},
                {0: free, 1: free},
                [{0: free, 2: free}] * len(past),
            ),
        )
    _name_axes(proto, name)
    share_transposed(proto)
    save_onnx(proto, path)


def _example(wrapped: CachedForward, name: str) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Arguments to trace with: two rows of three tokens after five; sizes of which none is equal to another or 1."""
    rows, length, before = 2, 3, 5
    ids = torch.arange(rows * length).reshape(rows, length) + 1
    positions = torch.arange(length).expand(rows, length).contiguous()
    with torch.inference_mode():
        _, *present = wrapped(ids, torch.ones_like(ids), positions, [])
    if not present or any(not isinstance(each, Tensor) or each.dim() != 4 for each in present):
        raise ExportError(
            f"{name} has layers without keys and values, so it cannot be exported with a cache; choose another backbone"
        )
    generator = torch.Generator().manual_seed(0)
    past = [torch.randn(rows, each.shape[1], before, each.shape[3], generator=generator) for each in present]
    return ids, torch.ones(rows, before + length, dtype=torch.int64), positions + before, past


def _name_axes(proto: Any, name: str) -> None:
    """Call the dynamic axes batch, length, past and total; the exporter numbers them, each input's own."""
    fixed = []
    for value in (*proto.graph.input, *proto.graph.output):
        wanted = _AXES[value.name.split(".")[0]]
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim):
            if axis in wanted and dimension.dim_param:
                dimension.dim_param = wanted[axis]
            elif (axis in wanted) == bool(dimension.dim_value):
                fixed.append(f"axis {axis} of '{value.name}'")
    if fixed:
        raise ExportError(
            f"{name}: the exported graph does not keep {fixed[0]} as a key/value cache needs it; choose another backbone"
        )
    # Inner shapes carry the old names; ONNX Runtime infers them again when it opens the file.
    del proto.graph.value_info[:]


_AXES = {
    "input_ids": {0: "batch", 1: "length"},
    "attention_mask": {0: "batch", 1: "total"},
    "position_ids": {0: "batch", 1: "length"},
    "past": {0: "batch", 2: "past"},
    LOGITS: {0: "batch", 1: "length"},
    "present": {0: "batch", 2: "total"},
}


def share_transposed(proto: Any) -> int:
    """Replace matrices that are another one transposed by a Transpose of that one, in place; returns how many.

    The exporter folds the transposition of a tied embedding into a second copy of it when it is small. ONNX Runtime
    transposes it once, when it opens the file.
    """
    from onnx import helper, numpy_helper

    graph = proto.graph
    matrices = [tensor for tensor in graph.initializer if len(tensor.dims) == 2]
    tables = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    replaced: dict[str, str] = {}
    for table in (tensor for tensor in matrices if tensor.name in tables):
        for other in matrices:
            same = list(other.dims) == list(reversed(table.dims)) and other.name not in tables | set(replaced)
            if same and np.array_equal(numpy_helper.to_array(other), numpy_helper.to_array(table).T):
                replaced[other.name] = table.name
    for copy, table in replaced.items():
        graph.node.insert(0, helper.make_node("Transpose", [table], [copy], f"{table}/transposed", perm=[1, 0]))
    kept = [tensor for tensor in graph.initializer if tensor.name not in replaced]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return len(replaced)

"""A torch network as one ONNX file with a dynamic batch and, for texts, a dynamic length.

The file is exported with eager attention: written out as plain MatMul and Softmax it runs as fast in ONNX Runtime as
the fused forms or faster (docs/export.md has the ratios), and needs no operator newer than `OPSET`.
"""

from __future__ import annotations

import ast
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from finetune.errors import ExportError
from finetune.model.modes import evaluating

OPSET = 20
"""ONNX operator set of the file: the first with Gelu; every ONNX Runtime since 1.17 reads it."""

ONE_FILE_BYTES = 2_000_000_000
"""Weights up to this size lie inside the ONNX file; protobuf cannot hold more than 2 GiB, so larger ones lie beside it."""

LOGITS = "logits"

_THIRD_PARTY = r"(torch|onnxscript|onnx_ir|onnx|copyreg|transformers|timm)(\.|$)"


def export_onnx(
    model: nn.Module, examples: Mapping[str, NDArray[Any]], path: Path, *, axes: Mapping[int, tuple[str, int]]
) -> None:
    """Write `model` to `path` as ONNX: inputs named as in `examples`, output "logits" (batch, C).

    `axes` tells the dynamic axes of every input, the same for all: position -> (name, largest size); the others keep the
    size that they have in `examples`, real arrays of at least 2 along each dynamic axis, so that none is taken for a
    constant 1. The model comes back as it was: training mode of every module, attention implementation and device. The
    graph has passed onnx.checker. ExportError on failure.
    """
    shape = next(iter(examples.values())).shape
    least = tuple(2 if axis in axes else size for axis, size in enumerate(shape))
    if any(array.shape != shape for array in examples.values()) or any(
        axis >= len(shape) or shape[axis] < 2 for axis in axes
    ):
        raise ExportError(
            f"the example inputs have the shape {shape}; ONNX export needs equal shapes of at least {least}"
        )
    inputs = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in examples.items()}
    dynamic = {axis: torch.export.Dim(name, min=1, max=largest) for axis, (name, largest) in axes.items()}
    with evaluating_on_cpu(model), eager_attention(model):
        proto = trace(
            model,
            type(model).__name__,
            kwargs=inputs,
            input_names=list(inputs),
            output_names=[LOGITS],
            dynamic_shapes=dict.fromkeys(inputs, dynamic),
        )
    _require_signature(proto, tuple(inputs), axes, type(model).__name__)
    save_onnx(proto, path)


def trace(model: nn.Module, name: str, **arguments: Any) -> Any:
    """The ONNX model (protobuf) of `model` with `torch.onnx.export`'s arguments, tidied; ExportError names it as `name`."""
    with _silence():
        try:
            program = torch.onnx.export(model, opset_version=OPSET, dynamo=True, verbose=False, **arguments)
        except Exception as error:  # torch.export, its decompositions and onnxscript each raise classes of their own
            reason = _reason(error)
            raise ExportError(
                f"{name} cannot be exported to ONNX with torch {torch.__version__} ({reason}); "
                "choose a backbone whose forward pass torch.export can trace"
            ) from error
        if program is None:
            raise ExportError(f"{name}: torch.onnx.export gave no program")
        proto = program.model_proto
    _tidy(proto)
    return proto


def save_onnx(proto: Any, path: Path) -> None:
    """Write and check a model: one file, or with the weights beside it as `<name>.data` above `ONE_FILE_BYTES`."""
    import onnx

    weights = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if weights > ONE_FILE_BYTES:
            beside = {"save_as_external_data": True, "all_tensors_to_one_file": True, "location": f"{path.name}.data"}
            onnx.save_model(proto, path, **beside)
        else:
            onnx.save_model(proto, path)
        onnx.checker.check_model(str(path), full_check=False)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written ({error})") from error
    except onnx.checker.ValidationError as error:
        raise ExportError(f"{path}: the exported graph is not valid ONNX ({_reason(error)})") from error


@contextmanager
def evaluating_on_cpu(model: nn.Module) -> Iterator[None]:
    """Evaluation mode on the CPU inside; afterwards every module has its own mode and device again."""
    device = next(model.parameters()).device
    with evaluating(model):
        try:
            model.to("cpu")
            yield
        finally:
            model.to(device)


@contextmanager
def eager_attention(model: nn.Module) -> Iterator[None]:
    """Attention as plain matrix products inside, for transformers models; other modules have one form only."""
    change = getattr(model, "set_attn_implementation", None)
    before = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if not callable(change) or before is None:
        yield
        return
    try:
        change("eager")
        yield
    finally:
        change(before)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's notes about its own insides from the user; what fails is raised, not logged."""
    logger = logging.getLogger("torch.onnx")
    notes = [logger, logging.getLogger("torch.onnx._internal.exporter._registration"), logging.getLogger("onnxscript")]
    levels = [note.level for note in notes]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="# The axis name", category=UserWarning)  # the shared Dim is meant
        warnings.filterwarnings("ignore", module=_THIRD_PARTY)
        try:
            for note in notes:
                note.setLevel(logging.ERROR)
            yield
        finally:
            for note, level in zip(notes, levels):
                note.setLevel(level)


def _tidy(proto: Any) -> None:
    """Name nodes after the module they come from, and drop what the exporter left for debugging.

    Its metadata holds stack traces with this machine's paths. Value information that names an initializer holds the
    shape from before constant folding, which the int8 quantizer refuses ("Inferred shape and existing shape differ").
    """
    for index, node in enumerate(proto.graph.node):
        scope = _scope(node)
        node.name = f"{scope}/{node.op_type}_{index}" if scope else f"{node.op_type}_{index}"
        del node.metadata_props[:]
        node.doc_string = ""
    initializers = {tensor.name for tensor in proto.graph.initializer}
    kept = [value for value in proto.graph.value_info if value.name not in initializers]
    for value in (*kept, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del value.metadata_props[:]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]


def _scope(node: Any) -> str:
    """Dotted name of the innermost torch module that the node was traced in, such as "bert.encoder.layer.0.output"."""
    for item in node.metadata_props:
        if item.key == "pkg.torch.onnx.name_scopes":
            scopes = ast.literal_eval(item.value)
            return str(scopes[-2]) if len(scopes) >= 2 else ""  # the last one names the operator itself
    return ""


def _require_signature(proto: Any, inputs: tuple[str, ...], axes: Mapping[int, tuple[str, int]], name: str) -> None:
    """Every input kept its name and its dynamic axes, and the logits are the one output."""
    found = {value.name: value for value in proto.graph.input}
    if missing := [wanted for wanted in inputs if wanted not in found]:
        raise ExportError(
            f"{name}: the exported graph lacks the input '{missing[0]}'; leave it out of the preprocessing"
        )
    if outputs := [value.name for value in proto.graph.output if value.name != LOGITS]:
        raise ExportError(
            f"{name}: the exported graph also gives {outputs}; switch hidden states and attentions off in its config"
        )
    for wanted in inputs:
        dimensions = found[wanted].type.tensor_type.shape.dim
        if fixed := [axis for axis in axes if not dimensions[axis].dim_param]:
            names = " and ".join(axes[axis][0] for axis in fixed)
            raise ExportError(
                f"{name}: the exported graph fixes the {names} of '{wanted}', which must stay dynamic; "
                "choose a backbone whose forward pass does not depend on it"
            )


def _reason(error: BaseException) -> str:
    """The first telling line of an error; the exporter wraps causes in several screens of advice."""
    cause = error.__cause__ or error
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(cause)).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0][:200]}" if lines else type(cause).__name__

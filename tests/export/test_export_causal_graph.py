import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from exported_decoders import CONTEXT, VOCABULARY, ExportedDecoder, build_decoder, token_rows
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from finetune.errors import ExportError
from finetune.export.causal_graph import export_cached, share_transposed
from finetune.export.causal_measure import TorchDecoder, shape_gap
from finetune.runtime import CachedDecoder, open_session

STREAM = [token for row in token_rows() for token in row.ids]


def weights_of(path: Path) -> list[list[int]]:
    return [list(tensor.dims) for tensor in onnx.load(str(path)).graph.initializer if len(tensor.dims) == 2]


def test_one_file_reads_prompts_and_goes_on_from_any_cache_as_torch_does(decoder: ExportedDecoder) -> None:
    assert shape_gap(TorchDecoder(decoder.model), open_session(decoder.onnx), STREAM, CONTEXT) < 1e-5


def test_untied_model_has_an_embedding_and_a_head_and_reads_on_as_torch_does(untied: ExportedDecoder) -> None:
    assert shape_gap(TorchDecoder(untied.model), open_session(untied.onnx), STREAM, CONTEXT) < 1e-5
    assert len([dims for dims in weights_of(untied.onnx) if VOCABULARY in dims]) == 2


LIKE_LLAMA = [pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2", "gemma")]


@pytest.mark.parametrize("architecture", ["mistral", "gpt_neox", "opt", *LIKE_LLAMA])
def test_other_families_read_on_from_their_cache_as_torch_does(architecture: str, tmp_path: Path) -> None:
    model = build_decoder(architecture, layers=1)
    export_cached(model, tmp_path / "model.onnx")
    assert shape_gap(TorchDecoder(model), open_session(tmp_path / "model.onnx"), STREAM, CONTEXT) < 1e-4


def test_a_wrong_cache_shows_in_the_gap_over_shapes(llama: ExportedDecoder) -> None:
    class Forgetful:
        def __init__(self) -> None:
            self.session = open_session(llama.onnx)

        def get_inputs(self) -> Any:
            return self.session.get_inputs()

        def run(self, names: Any, feeds: dict[str, Any]) -> Any:
            spoilt = {name: array * 0 if name.startswith("past") else array for name, array in feeds.items()}
            return self.session.run(names, spoilt)

    assert shape_gap(TorchDecoder(llama.model), Forgetful(), STREAM, CONTEXT) > 1e-2


def test_tied_embedding_is_on_disk_once_and_the_file_is_as_large_as_the_safetensors(decoder: ExportedDecoder) -> None:
    tables = [dims for dims in weights_of(decoder.onnx) if VOCABULARY in dims]
    assert tables == [[VOCABULARY, 32]]
    safetensors = (decoder.model_folder / "model.safetensors").stat().st_size
    assert 0.98 < decoder.onnx.stat().st_size / safetensors < 1.2  # a second table would add two thirds
    assert [path.name for path in decoder.onnx.parent.iterdir()] == ["model.onnx"]


def test_transposed_copy_of_a_table_becomes_a_transpose_of_it(tmp_path: Path) -> None:
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["x"]),
            helper.make_node("MatMul", ["x", "copy"], ["head"]),
            helper.make_node("MatMul", ["head", "other"], ["logits"]),
        ],
        "tied",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        [
            numpy_helper.from_array(array, name)
            for name, array in {"table": table, "copy": table.T.copy(), "other": table + 1}.items()
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert share_transposed(proto) == 1
    assert {tensor.name for tensor in proto.graph.initializer} == {"table", "other"}
    onnx.save(proto, str(tmp_path / "m.onnx"))
    (logits,) = open_session(tmp_path / "m.onnx").run(None, {"ids": np.array([2, 0])})
    assert np.array_equal(logits, table[[2, 0]] @ table.T @ (table + 1))


def test_inputs_and_outputs_have_the_names_and_dynamic_axes_of_a_cache(llama: ExportedDecoder) -> None:
    graph = onnx.load(str(llama.onnx)).graph
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    cache = {
        f"{when}.{layer}.{part}": ["batch", 2, axis, 8]
        for when, axis in (("past", "past"), ("present", "total"))
        for layer in (0, 1)
        for part in ("key", "value")
    }
    texts = {
        "input_ids": ["batch", "length"],
        "attention_mask": ["batch", "total"],
        "position_ids": ["batch", "length"],
    }
    assert shapes == texts | cache | {"logits": ["batch", "length", VOCABULARY]}


def test_file_holds_no_path_of_the_machine_that_exported_it(decoder: ExportedDecoder) -> None:
    content = decoder.onnx.read_bytes()
    assert b".py" not in content
    assert b"site-packages" not in content


def test_export_is_silent_and_leaves_the_network_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = build_decoder("gpt2", layers=1).train()
    model.transformer.wte.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    attention = model.config._attn_implementation
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        export_cached(model, tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert model.config._attn_implementation == attention
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert CachedDecoder(open_session(tmp_path / "m.onnx")).layers == 1


def test_network_without_a_cache_is_refused_by_name(tmp_path: Path) -> None:
    class Recurrent(nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return input_ids

    with pytest.raises(ExportError, match="Recurrent takes no position_ids"):
        export_cached(Recurrent(), tmp_path / "m.onnx")

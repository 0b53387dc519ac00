import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_encoders import Setting

from finetune.errors import ExportError
from finetune.export.graph import head_layers, weight_layers
from finetune.export.parity import predict_rows
from finetune.export.quantize import (
    Candidate,
    candidates,
    quantize_dynamic_int8,
    quantize_embeddings,
    sparing,
)
from finetune.hardware import INT8_TARGETS
from finetune.runtime import open_session, run_logits

AVX2 = candidates("avx2")[0]


def weights_by_type(path: Path) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for tensor in onnx.load(str(path)).graph.initializer:
        if len(tensor.dims) == 2:
            found.setdefault(tensor.data_type, set()).add(tensor.name)
    return found


def test_signed_weights_keep_to_seven_bits_exactly_where_the_processor_saturates() -> None:
    for target in INT8_TARGETS:
        tried = candidates(target)
        assert {c.reduce_range for c in tried if c.weights == "s8"} == {target in ("avx2", "avx512")}
        assert not any(c.reduce_range for c in tried if c.weights == "u8")
        assert {c.weights for c in tried} == {"s8", "u8"}
        assert len({c.name for c in tried}) == len(tried)


def test_unknown_processor_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ExportError, match="'vnn'; did you mean 'vnni'"):
        candidates("vnn")


def test_layers_are_blocks_then_the_modules_of_the_head(setting: Setting) -> None:
    layers = weight_layers(setting.onnx)
    assert list(layers) == ["bert.encoder.layer.0", "bert.encoder.layer.1", "bert.pooler.dense", "classifier"]
    assert [len(nodes) for nodes in layers.values()] == [6, 6, 1, 1]
    assert head_layers(layers) == ("bert.pooler.dense", "classifier")


def test_every_weight_matrix_and_embedding_table_becomes_8_bit(setting: Setting, tmp_path: Path) -> None:
    quantize_dynamic_int8(setting.onnx, tmp_path / "int8.onnx", AVX2)
    found = weights_by_type(tmp_path / "int8.onnx")
    assert len(found[TensorProto.INT8]) == 14 + 3
    assert all(name.endswith("_scale") or "token_type" in name for name in found.get(TensorProto.FLOAT, set()))
    assert (tmp_path / "int8.onnx").stat().st_size < 0.5 * setting.onnx.stat().st_size


def test_reduce_range_keeps_weights_to_seven_bits(setting: Setting, tmp_path: Path) -> None:
    largest = {}
    for name, candidate in {"seven": AVX2, "eight": replace(AVX2, reduce_range=False)}.items():
        quantize_dynamic_int8(setting.onnx, tmp_path / "int8.onnx", replace(candidate, embeddings="fp32"))
        graph = onnx.load(str(tmp_path / "int8.onnx")).graph
        arrays = [
            numpy_helper.to_array(t) for t in graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 2
        ]
        largest[name] = max(int(np.abs(array.astype(int)).max()) for array in arrays)
    assert largest == {"seven": 64, "eight": 127}


def test_weights_have_one_scale_per_output_channel(setting: Setting, tmp_path: Path) -> None:
    quantize_dynamic_int8(setting.onnx, tmp_path / "int8.onnx", AVX2)
    scales = [
        t
        for t in onnx.load(str(tmp_path / "int8.onnx")).graph.initializer
        if t.name.endswith("_scale") and len(t.dims) == 1
    ]
    assert {int(np.prod(scale.dims)) for scale in scales} == {32, 64, 3}


def test_int8_answers_stay_close_to_fp32(setting: Setting, tmp_path: Path) -> None:
    for candidate in (*candidates("avx2"), *candidates("vnni")):
        quantize_dynamic_int8(setting.onnx, tmp_path / "int8.onnx", candidate)
        session = open_session(tmp_path / "int8.onnx")
        logits = predict_rows(lambda batch, s=session: run_logits(s, batch), setting.encoder, setting.rows, 1)
        error = np.abs(logits - setting.logits).mean() / setting.logits.std()
        assert 0 < error < 0.15


def test_spared_layers_stay_fp32_also_where_the_quantizer_rewrites_gemm(setting: Setting, tmp_path: Path) -> None:
    layers = weight_layers(setting.onnx)
    careful = sparing(AVX2, head_layers(layers), "head")
    assert careful.name == f"{AVX2.name}, head fp32"
    quantize_dynamic_int8(setting.onnx, tmp_path / "int8.onnx", careful)
    found = weights_by_type(tmp_path / "int8.onnx")
    assert {"bert.pooler.dense.weight", "classifier.weight"} <= found[TensorProto.FLOAT]
    assert len(found[TensorProto.INT8]) == 12 + 3


def test_sparing_everything_gives_fp32_answers(setting: Setting, tmp_path: Path) -> None:
    everything = Candidate("none", embeddings="fp32", spared=tuple(weight_layers(setting.onnx)))
    quantize_dynamic_int8(setting.onnx, tmp_path / "same.onnx", everything)
    batch = setting.encoder.collate(setting.rows[:4])
    same = run_logits(open_session(tmp_path / "same.onnx"), batch)
    assert np.allclose(same, run_logits(open_session(setting.onnx), batch), atol=1e-5)


def test_unknown_layer_is_refused_by_name(setting: Setting, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no layer 'clasifier'.*did you mean 'classifier'"):
        quantize_dynamic_int8(setting.onnx, tmp_path / "int8.onnx", sparing(AVX2, ("clasifier",), "head"))


def test_quantising_logs_nothing_and_leaves_no_scratch_files(
    setting: Setting, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handlers = list(logging.getLogger().handlers)
    quantize_dynamic_int8(setting.onnx, tmp_path / "int8.onnx", AVX2)
    assert caplog.records == []
    assert logging.getLogger().handlers == handlers
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"]
    assert not list(onnx.load(str(tmp_path / "int8.onnx")).metadata_props)


def lookup_model(table: np.ndarray, axis: int = 0, twice: bool = False) -> onnx.ModelProto:
    nodes = [helper.make_node("Gather", ["table", "ids"], ["out"], "lookup", axis=axis)]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", "h"])]
    if twice:
        nodes.append(helper.make_node("Identity", ["table"], ["copy"], "tied"))
        outputs.append(helper.make_tensor_value_info("copy", TensorProto.FLOAT, ["v", "h"]))
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    graph = helper.make_graph(nodes, "g", [ids], outputs, [numpy_helper.from_array(table, "table")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_embedding_rows_are_exact_to_half_a_step_of_their_own_scale(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    table = (generator.normal(size=(50, 8)) * np.geomspace(1e-4, 1e3, 50)[:, None]).astype(np.float32)
    table[7] = 0  # a padding row
    proto = lookup_model(table)
    assert quantize_embeddings(proto) == 1
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, str(tmp_path / "m.onnx"))
    (found,) = open_session(tmp_path / "m.onnx").run(None, {"ids": np.arange(50)})
    step = np.abs(table).max(axis=1, keepdims=True) / 127
    assert (np.abs(found - table) <= step * 0.5001).all()
    assert not found[7].any()


@pytest.mark.parametrize("options", [{"axis": 1}, {"twice": True}])
def test_tables_used_otherwise_are_left_alone(options: dict[str, int]) -> None:
    proto = lookup_model(np.ones((4, 4), np.float32), **options)
    before = proto.SerializeToString()
    assert quantize_embeddings(proto) == 0
    assert proto.SerializeToString() == before

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_convnets import ENCODER, Exported

from finetune.errors import ExportError
from finetune.export import static
from finetune.export.calibrate import Statistics, ranges
from finetune.export.convnet import BLOCK, joined
from finetune.export.graph import group_of, weight_layers
from finetune.export.parity import predict_rows
from finetune.export.refit import outputs
from finetune.export.static import WEIGHTED_OPS, Arithmetic, arithmetics, quantize_static_int8
from finetune.hardware import INT8_TARGETS
from finetune.runtime import open_session, run_logits

METHOD = "percentile 99.99"
AVX2 = arithmetics("avx2", gated=False)[0]


def quantized(convnet: Exported, path: Path, arithmetic: Arithmetic = AVX2, spared: tuple[str, ...] = ()) -> np.ndarray:
    """The logits of the int8 form, which is left at `path`."""
    found = ranges(convnet.statistics, METHOD)
    quantize_static_int8(convnet.path, path, arithmetic, found, convnet.statistics, spared)
    session = open_session(path)
    return predict_rows(lambda batch: run_logits(session, batch), ENCODER, convnet.rows, 16)


def nodes_of(path: Path) -> list[str]:
    return [node.name for node in onnx.load(str(path)).graph.node if node.op_type in WEIGHTED_OPS]


def stored_weights(path: Path) -> dict[str, np.ndarray]:
    """Name of each Conv or Gemm -> its 8-bit weight."""
    graph = onnx.load(str(path)).graph
    makers = {name: node for node in graph.node for name in node.output}
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type in WEIGHTED_OPS and node.input[1] in makers:
            found[node.name] = arrays[makers[node.input[1]].input[0]]
    return found


def as_loaded(path: Path, folder: Path) -> list[str]:
    """Operators of the graph after ONNX Runtime has optimised it."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(str(folder / "optimised.onnx")).graph.node]


def test_dense_weights_are_unsigned_or_of_seven_bits_exactly_where_the_processor_saturates() -> None:
    for target in INT8_TARGETS:
        tried = arithmetics(target, gated=False)
        narrow = target in ("avx2", "avx512")
        assert all(one.weights == "u8" or one.reduce_range == narrow for one in tried)
        assert {one.gated for one in tried} == {True}
        assert not arithmetics(target, gated=True)[-1].gated
    with pytest.raises(ExportError, match="'vnn'; did you mean 'vnni'"):
        arithmetics("vnn", gated=False)


def test_depthwise_weights_are_signed_with_all_bits_and_the_others_as_asked(convnet: Exported, tmp_path: Path) -> None:
    groups = {node.name: group_of(node) for node in onnx.load(str(convnet.path)).graph.node}
    for arithmetic in arithmetics("avx2", gated=False):
        quantized(convnet, tmp_path / "int8.onnx", arithmetic)
        weights = stored_weights(tmp_path / "int8.onnx")
        assert len(weights) == 8
        for name, weight in weights.items():
            depthwise = groups[name] > 1
            assert weight.dtype == (
                np.int8 if depthwise else np.dtype(f"{'u' if arithmetic.weights == 'u8' else ''}int8")
            )
            if weight.dtype == np.int8:
                assert np.abs(weight.astype(int)).max() == (64 if arithmetic.reduce_range and not depthwise else 127)


def test_int8_answers_stay_close_to_fp32_and_all_convolutions_run_in_8_bits(convnet: Exported, tmp_path: Path) -> None:
    logits = quantized(convnet, tmp_path / "int8.onnx")
    error = np.abs(logits - convnet.logits).mean() / convnet.logits.std()
    assert 0 < error < 0.05
    assert (logits.argmax(axis=1) == convnet.labels).mean() > 0.9
    operators = as_loaded(tmp_path / "int8.onnx", tmp_path)
    assert operators.count("QLinearConv") == 7
    assert "Conv" not in operators


def test_mean_of_each_logit_is_kept_because_biases_take_up_the_rounding(
    convnet: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gap(logits: np.ndarray) -> float:
        return float(np.abs((logits - convnet.logits).mean(axis=0)).mean())

    coarse = Arithmetic("u8s8 per-channel reduce-range", reduce_range=True)
    corrected = quantized(convnet, tmp_path / "corrected.onnx", coarse)
    monkeypatch.setattr(static.Refit, "correct", lambda self, statistics: None)
    plain = quantized(convnet, tmp_path / "plain.onnx", coarse)
    assert gap(corrected) < 0.6 * gap(plain)


def test_sparing_everything_gives_fp32_answers(convnet: Exported, tmp_path: Path) -> None:
    everything = tuple(nodes_of(convnet.path))
    logits = quantized(convnet, tmp_path / "same.onnx", spared=everything)
    assert np.abs(logits - convnet.logits).max() < 0.05 * convnet.logits.std()  # the additions between are in 8 bits
    assert not stored_weights(tmp_path / "same.onnx")


def test_a_spared_convolution_between_quantised_ones_is_run_in_fp32(convnet: Exported, tmp_path: Path) -> None:
    (depthwise, *_) = [name for name in nodes_of(convnet.path) if name.startswith("blocks.0.bn2")]
    quantized(convnet, tmp_path / "int8.onnx", spared=(depthwise,))
    operators = as_loaded(tmp_path / "int8.onnx", tmp_path)
    assert operators.count("QLinearConv") == 6
    assert operators.count("Conv") + operators.count("FusedConv") == 1


def test_spared_convolutions_would_be_quantised_while_loading_without_the_guard(
    convnet: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, ONNX Runtime has stopped doing so, and `keep_float` may go."""
    (depthwise, *_) = [name for name in nodes_of(convnet.path) if name.startswith("blocks.0.bn2")]
    monkeypatch.setattr(static, "keep_float", lambda proto, spared: None)
    quantized(convnet, tmp_path / "int8.onnx", spared=(depthwise,))
    assert as_loaded(tmp_path / "int8.onnx", tmp_path).count("QLinearConv") == 7


def test_logits_are_not_rounded_to_256_levels(convnet: Exported, tmp_path: Path) -> None:
    quantized(convnet, tmp_path / "int8.onnx")
    graph = onnx.load(str(tmp_path / "int8.onnx")).graph
    (last,) = [node for node in graph.node if "logits" in node.output]
    assert last.op_type == "Gemm"


def test_static_int8_is_the_same_whatever_shares_the_batch(convnet: Exported, tmp_path: Path) -> None:
    together = quantized(convnet, tmp_path / "int8.onnx")
    session = open_session(tmp_path / "int8.onnx")
    alone = predict_rows(lambda batch: run_logits(session, batch), ENCODER, convnet.rows, 1)
    assert np.abs(together - alone).max() < 1e-4


def test_quantising_twice_gives_the_same_bytes(convnet: Exported, tmp_path: Path) -> None:
    for name in ("a", "b"):
        quantized(convnet, tmp_path / f"{name}.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_quantising_logs_nothing_and_leaves_the_root_logger_alone(
    convnet: Exported, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as in a process that has not set logging up
    quantized(convnet, tmp_path / "int8.onnx")
    assert logging.getLogger().handlers == []
    assert logging.getLogger().filters == []
    assert caplog.records == []
    assert not list(onnx.load(str(tmp_path / "int8.onnx")).metadata_props)


def test_channel_with_tiny_weights_keeps_its_bias(tmp_path: Path) -> None:
    """Folded batch normalisation leaves channels that give a constant; int32 cannot hold it in units of their weights.

    The network ends with a Relu, which must not be lost either.
    """
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(3, 2, 1, 1)).astype(np.float32)
    weight[1] *= 1e-12
    bias = np.array([0.5, 2.0, -1.0], np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv"),
        helper.make_node("Relu", ["y"], ["logits"], "act"),
    ]
    shape = ["batch", 2, 4, 4]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(tmp_path / "m.onnx")
    )
    x = generator.normal(size=(8, 2, 4, 4)).astype(np.float32)
    exact = open_session(tmp_path / "m.onnx").run(None, {"x": x})[0]
    found = {name: Statistics() for name in ("x", "y", "logits")}
    for name, array in {"x": x, "logits": exact, "y": exact}.items():
        found[name].add(array.reshape(1, *array.shape[1:2], -1))
    for arithmetic in arithmetics("avx2", gated=False):
        quantize_static_int8(tmp_path / "m.onnx", tmp_path / "q.onnx", arithmetic, ranges(found, "min-max"), found)
        rounded = open_session(tmp_path / "q.onnx").run(None, {"x": x})[0]
        assert np.abs(rounded - exact).max() < 0.1
        assert rounded[:, 1] == pytest.approx(2.0, abs=0.02)


def test_layers_are_the_innermost_blocks(convnet: Exported) -> None:
    layers = weight_layers(convnet.path, WEIGHTED_OPS, BLOCK)
    assert [name for name in layers if name.startswith("blocks")] == ["blocks.0", "blocks.1"]
    assert list(layers)[-1] == "head"
    assert sum(len(nodes) for nodes in layers.values()) == 8


def test_many_layers_are_joined_with_their_neighbours() -> None:
    layers = {f"l{index}": (f"n{index}",) for index in range(10)}
    assert joined(layers, 10) == layers
    assert joined(layers, 4) == {
        "l0 to l2": ("n0", "n1", "n2"),
        "l3 to l5": ("n3", "n4", "n5"),
        "l6 to l8": ("n6", "n7", "n8"),
        "l9": ("n9",),
    }


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_mean_outputs_equal_those_of_a_constant_picture(groups: int) -> None:
    import torch

    generator = np.random.default_rng(groups)
    weight, inputs = generator.normal(size=(12, 6 // groups, 3, 3)), generator.normal(size=6)
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=groups)
    picture = torch.from_numpy(np.broadcast_to(inputs[None, :, None, None], (1, 6, 3, 3)).copy())
    expected = torch.nn.functional.conv2d(picture, torch.from_numpy(weight), groups=groups).numpy().ravel()
    assert outputs(node, weight, inputs) == pytest.approx(expected)


@pytest.mark.parametrize("transposed", [0, 1])
def test_mean_outputs_of_a_linear_layer(transposed: int) -> None:
    matrix, inputs = np.arange(6.0).reshape(2, 3), np.array([1.0, -2.0, 0.5])
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=transposed)
    assert outputs(node, matrix if transposed else matrix.T, inputs) == pytest.approx(matrix @ inputs)

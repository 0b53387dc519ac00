from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from finetune.errors import BundleError
from finetune.hardware import cpu
from finetune.runtime import open_session, run_logits


def write_sum(path, outputs=("logits",)):
    """logits = float(input_ids) + float(attention_mask), as int64 (B, T) to float (B, T)."""
    nodes = [
        helper.make_node("Add", ["input_ids", "attention_mask"], ["sum"]),
        *(helper.make_node("Cast", ["sum"], [name], to=TensorProto.DOUBLE) for name in outputs),
    ]
    arrays = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "t"]) for name in ("input_ids", "attention_mask")
    ]
    results = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["b", "t"]) for name in outputs]
    onnx.save(
        helper.make_model(
            helper.make_graph(nodes, "sum", arrays, results), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
        ),
        path,
    )
    return path


@pytest.fixture
def batch():
    ids = np.array([[5, 7, 9]])
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def test_only_declared_inputs_are_fed_and_logits_are_float32(tmp_path, batch):
    logits = run_logits(open_session(write_sum(tmp_path / "m.onnx")), batch)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, [[6, 8, 10]])


def test_the_output_named_logits_is_taken_wherever_it_stands(tmp_path, batch):
    session = open_session(write_sum(tmp_path / "m.onnx", outputs=("hidden", "logits")))
    seen = []

    class Spy:
        get_inputs, get_outputs = session.get_inputs, session.get_outputs

        def run(self, names, feeds):
            seen.append(names)
            return session.run(names, feeds)

    run_logits(Spy(), batch)
    assert seen == [["logits"]]


def test_a_missing_input_is_named(tmp_path, batch):
    session = open_session(write_sum(tmp_path / "m.onnx"))
    del batch["attention_mask"]
    with pytest.raises(BundleError, match="wants the input 'attention_mask'"):
        run_logits(session, batch)


def test_sessions_use_the_cores_they_may_and_do_not_spin(tmp_path):
    path = write_sum(tmp_path / "m.onnx")
    options = open_session(path).get_session_options()
    assert options.intra_op_num_threads == cpu().cores
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.enable_mem_pattern is False
    assert open_session(path, threads=3).get_session_options().intra_op_num_threads == 3
    assert open_session(path).get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize("content", [b"", b"junk", None])
def test_a_file_that_is_no_model_is_one_sentence(tmp_path, content):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx: ") as caught:
        open_session(path)
    assert "\n" not in str(caught.value)


def test_threads_must_be_at_least_one(tmp_path):
    with pytest.raises(BundleError, match="threads is 0"):
        open_session(write_sum(tmp_path / "m.onnx"), threads=0)


def test_pixels_are_float32_and_another_type_is_one_sentence(tmp_path):
    path = tmp_path / "pixels.onnx"
    node = helper.make_node("ReduceMean", ["pixel_values"], ["logits"], keepdims=0)
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, 2, 2])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "mean", [pixels], [logits])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    session = open_session(path)
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
    assert run_logits(session, {"pixel_values": values}) == pytest.approx(11.5)
    with pytest.raises(BundleError, match=r"pixel_values float64 \(2, 3, 2, 2\)") as caught:
        run_logits(session, {"pixel_values": values.astype(np.float64)})
    assert "\n" not in str(caught.value)
    with pytest.raises(BundleError, match=r"pixel_values float32 \(2, 3, 2, 1\)"):
        run_logits(session, {"pixel_values": values[..., :1]})

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exported_decoders import VOCABULARY, ExportedDecoder
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper

from finetune.errors import ExportError
from finetune.export.causal_int8 import (
    GENTLER,
    CausalCandidate,
    causal_candidates,
    quantize_causal,
)
from finetune.export.causal_measure import answers_of, logit_gaps, same_choice
from finetune.export.causal_products import block_quantized, weight_products
from finetune.hardware import INT8_TARGETS
from finetune.runtime import CachedDecoder, open_session

CANDIDATES = [*causal_candidates("avx2"), GENTLER]
EIGHT = [candidate for candidate in CANDIDATES if candidate.bits == 8]


def opened(source: Path, out: Path, candidate: CausalCandidate) -> CachedDecoder:
    quantize_causal(source, out, candidate)
    return CachedDecoder(open_session(out))


def nodes_of(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(str(path)).graph.node]


@pytest.mark.parametrize("candidate", EIGHT, ids=lambda each: each.name)
def test_8_bit_forms_answer_as_fp32_nearly_always_and_have_a_quarter_of_the_weights(
    candidate: CausalCandidate, decoder: ExportedDecoder, tmp_path: Path
) -> None:
    fp32 = answers_of(CachedDecoder(open_session(decoder.onnx)), decoder.rows, keep_logits=True)
    found = answers_of(opened(decoder.onnx, tmp_path / "m.onnx", candidate), decoder.rows, keep_logits=True)
    size = float(np.abs(np.concatenate(fp32.logits)).mean())
    assert 0 < logit_gaps(fp32, found)["mean_abs_diff"] < 0.1 * size
    assert same_choice(fp32, found) > 0.7
    assert (tmp_path / "m.onnx").stat().st_size < 0.42 * decoder.onnx.stat().st_size


@pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda each: each.name)
def test_tied_embedding_stays_one_table_of_bytes(
    candidate: CausalCandidate, decoder: ExportedDecoder, tmp_path: Path
) -> None:
    quantize_causal(decoder.onnx, tmp_path / "m.onnx", candidate)
    tensors = onnx.load(str(tmp_path / "m.onnx")).graph.initializer
    tables = [tensor for tensor in tensors if VOCABULARY in tensor.dims and np.prod(tensor.dims) > VOCABULARY]
    assert [tensor.data_type in (TensorProto.INT8, TensorProto.UINT8) for tensor in tables] == [True]


@pytest.mark.parametrize("candidate", EIGHT, ids=lambda each: each.name)
def test_untied_embedding_and_head_are_both_quantised(
    candidate: CausalCandidate, untied: ExportedDecoder, tmp_path: Path
) -> None:
    quantize_causal(untied.onnx, tmp_path / "m.onnx", candidate)
    assert (tmp_path / "m.onnx").stat().st_size < 0.42 * untied.onnx.stat().st_size
    tensors = onnx.load(str(tmp_path / "m.onnx")).graph.initializer
    assert not any(VOCABULARY in tensor.dims and 32 in tensor.dims and tensor.data_type == 1 for tensor in tensors)


def test_only_the_head_and_products_with_more_inputs_than_outputs_are_spared(
    llama: ExportedDecoder, tmp_path: Path
) -> None:
    for candidate in (CANDIDATES[0], GENTLER):
        quantize_causal(llama.onnx, tmp_path / f"{candidate.fp32_products}.onnx", candidate)
    with_int8 = nodes_of(tmp_path / "none.onnx").count("MatMulNBits")
    assert with_int8 == 2 * 7 + 1  # query, key, value, output, gate, up and down in two blocks, and the head
    # Down is the one that narrows, beside key and value: the tiny model has fewer heads for them.
    assert nodes_of(tmp_path / "sensitive.onnx").count("MatMulNBits") == with_int8 - 2 * 3 - 1


def test_fp32_products_run_without_a_quantised_operator(llama: ExportedDecoder, tmp_path: Path) -> None:
    quantize_causal(llama.onnx, tmp_path / "m.onnx", CANDIDATES[1])
    assert CANDIDATES[1].fp32_products == "all"
    assert not {"MatMulNBits", "MatMulInteger"} & set(nodes_of(tmp_path / "m.onnx"))


def little_model(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """ids -> table -> Gemm with a bias -> Gemm with transposed weights -> table transposed; 40 inputs fill no block of 32."""
    generator = np.random.default_rng(0)
    table, first, second = (generator.normal(size=shape).astype(np.float32) for shape in ((50, 40), (40, 24), (40, 24)))
    bias = generator.normal(size=24).astype(np.float32)
    named = {"table": table, "first": first, "second": second, "bias": bias}
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["x"], "embed"),
            helper.make_node("Reshape", ["x", "flat"], ["rows"], "rows"),
            helper.make_node("Gemm", ["rows", "first", "bias"], ["y"], "first"),
            helper.make_node("Gemm", ["y", "second"], ["z"], "second", transB=1),
            helper.make_node("Transpose", ["table"], ["head"], perm=[1, 0]),
            helper.make_node("MatMul", ["z", "head"], ["logits"], "head"),
        ],
        "little",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "t"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["m", 50])],
        [
            *(numpy_helper.from_array(array, name) for name, array in named.items()),
            numpy_helper.from_array(np.array([-1, 40]), "flat"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))
    return table, first, second, bias


@pytest.mark.parametrize("candidate", [*CANDIDATES, CausalCandidate("16", "blocks", block=16)], ids=lambda c: c.name)
def test_weights_in_every_layout_and_unfilled_blocks_give_nearly_the_exact_products(
    candidate: CausalCandidate, tmp_path: Path
) -> None:
    table, first, second, bias = little_model(tmp_path / "fp32.onnx")
    assert [p.outputs_first for p in weight_products(onnx.load(str(tmp_path / "fp32.onnx")).graph)] == [
        False,
        True,
        True,
    ]
    quantize_causal(tmp_path / "fp32.onnx", tmp_path / "m.onnx", candidate)
    ids = np.array([[3, 49, 0], [7, 7, 21]])
    (logits,) = open_session(tmp_path / "m.onnx").run(None, {"ids": ids})
    exact = ((table[ids.ravel()] @ first + bias) @ second.T) @ table.T
    rounded = {4: 0.25, 8: 0.03}[candidate.bits]
    assert np.abs(logits - exact).max() < rounded * np.abs(exact).max()


@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 40)), elements=st.floats(-9, 9, width=32)),
    st.sampled_from([16, 32]),
    st.sampled_from([4, 8]),
)
def test_a_rounded_weight_is_within_half_a_step_of_its_own(weight: np.ndarray, block: int, bits: Any) -> None:
    packed, scales = block_quantized(weight, block, bits)
    blocks = -(-weight.shape[1] // block)
    assert packed.shape == (len(weight), blocks, block * bits // 8)
    assert scales.shape == (len(weight), blocks)
    whole = packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(weight), blocks, block)
    back = ((whole.astype(np.float32) - 2 ** (bits - 1)) * scales[:, :, None]).reshape(len(weight), -1)
    steps = np.repeat(scales, block, axis=1)
    assert (np.abs(back[:, : weight.shape[1]] - weight) <= 0.501 * steps[:, : weight.shape[1]]).all()
    assert (back[:, weight.shape[1] :] == 0).all()


@pytest.mark.parametrize("target", INT8_TARGETS)
def test_weights_keep_to_7_bits_where_pairs_of_products_are_added_in_16(target: str) -> None:
    dynamic = [candidate for candidate in causal_candidates(target) if candidate.way == "dynamic"]
    assert [candidate.reduce_range for candidate in dynamic] == [target in ("avx2", "avx512")]
    assert [candidate.bits for candidate in causal_candidates(target) if not candidate.served] == [4]


def test_unknown_processor_kind_is_refused_with_the_nearest() -> None:
    with pytest.raises(ExportError, match="did you mean 'avx512'"):
        causal_candidates("avx51")


def test_graph_without_constant_matrices_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])], "none",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, ir_version=10), str(tmp_path / "fp32.onnx"))
    with pytest.raises(ExportError, match="nothing to quantise"):
        quantize_causal(tmp_path / "fp32.onnx", tmp_path / "m.onnx", CANDIDATES[0])

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tiny_language import write_reciter

from finetune.errors import BundleError
from finetune.hardware import cpu
from finetune.preprocess.language import Sequence
from finetune.runtime import CachedDecoder, open_session, run_logits


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


SCRIPT = [7, 3, 5, 1, 9, 2, 8, 4, 6, 0, 7, 7]


@pytest.fixture(scope="module")
def reciter(tmp_path_factory):
    path = write_reciter(tmp_path_factory.mktemp("decoder") / "m.onnx", SCRIPT, vocabulary=10, stubborn=0.25)
    return CachedDecoder(open_session(path))


def test_a_prompt_is_read_and_gone_on_from_token_by_token(reciter):
    assert (reciter.layers, reciter.vocabulary) == (1, 10)
    ids = np.array([[1, 2, 3], [4, 5, 6]])
    logits, cache = reciter.prefill(ids)
    assert logits.shape == (2, 10)
    assert logits.dtype == np.float32
    for place in range(3, 8):
        assert logits.argmax(axis=1).tolist() == [SCRIPT[place - 1]] * 2
        # The positions that were read are in the cache: 0 + 1 + … of them push the last token.
        assert logits[:, -1] == pytest.approx(0.25 * sum(range(place)) + (8 if SCRIPT[place - 1] == 9 else -0.9))
        logits, cache = reciter.step(np.array([0, 0]), cache)
    assert cache.mask.shape == (2, 8)
    assert cache.positions.tolist() == [8, 8]


def test_rows_of_different_length_are_read_as_if_each_were_alone(reciter):
    ids = np.array([[1, 2, 0, 0], [1, 2, 3, 4], [1, 0, 0, 0]])
    lengths = np.array([2, 4, 1])
    logits, cache = reciter.prefill(ids, lengths)
    after, _ = reciter.step(np.array([5, 5, 5]), cache)
    for row, length in enumerate(lengths):
        alone, own = reciter.prefill(ids[row : row + 1, :length])
        np.testing.assert_array_equal(logits[row], alone[0])
        np.testing.assert_array_equal(after[row], reciter.step(np.array([5]), own)[0][0])


def test_a_cache_can_be_gone_on_from_twice(reciter):
    _, cache = reciter.prefill(np.array([[1, 2]]))
    first, _ = reciter.step(np.array([3]), cache)
    reciter.step(np.array([4]), reciter.step(np.array([3]), cache)[1])
    np.testing.assert_array_equal(reciter.step(np.array([3]), cache)[0], first)


def test_a_long_prompt_is_read_in_pieces_with_the_same_result(reciter, monkeypatch):
    ids, lengths = np.tile(np.arange(8), (3, 1)), np.array([8, 3, 4])
    logits, cache = reciter.prefill(ids, lengths)
    monkeypatch.setattr("finetune.runtime.PREFILL_TOKENS", 3)
    pieced, own = reciter.prefill(ids, lengths)
    np.testing.assert_array_equal(pieced, logits)
    np.testing.assert_array_equal(own.mask, cache.mask)
    after, other = (reciter.step(np.array([1, 1, 1]), each)[0] for each in (cache, own))
    np.testing.assert_array_equal(other, after)


@pytest.mark.parametrize("ids", [np.zeros((0, 3)), np.zeros((2, 0)), np.zeros((1, 2))])
def test_a_prompt_without_tokens_is_refused(reciter, ids):
    with pytest.raises(BundleError, match="at least one token"):
        reciter.prefill(ids.astype(np.int64), np.zeros(len(ids), np.int64) if ids.shape == (1, 2) else None)


def test_more_tokens_than_the_file_can_place_are_one_sentence(reciter):
    with pytest.raises(BundleError, match="cannot read 13 tokens after 0: ") as caught:
        reciter.prefill(np.ones((1, 13), np.int64))
    assert "\n" not in str(caught.value)


def test_a_file_without_a_cache_is_no_decoder(tmp_path):
    with pytest.raises(BundleError, match="no language model with a key/value cache"):
        CachedDecoder(open_session(write_sum(tmp_path / "m.onnx")))


@settings(max_examples=25)
@given(data=st.data())
def test_tallies_count_what_was_learned_and_add_up_over_packed_documents(data):
    counts = data.draw(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=4))
    decoder = Fixed(np.random.default_rng(data.draw(st.integers(0, 9))).normal(size=(10, 10)).astype(np.float32))
    random = np.random.default_rng(len(counts))
    documents = [
        [Sequence(ids := random.integers(0, 10, n).tolist(), [*ids[1:], -100], [0] * n) for n in row] for row in counts
    ]
    packed = [
        Sequence(
            [token for each in row for token in each.ids],
            [token for each in row for token in each.targets],
            [number for number, each in enumerate(row) for _ in each.ids],
        )
        for row in documents
    ]
    found = decoder.tallies(packed, Padding(), batch_size=data.draw(st.integers(1, 3)))
    for tally, row in zip(found, documents):
        pairs = [(a, b) for each in row for a, b in zip(each.ids, each.targets) if b != -100]
        odds = {a: np.exp(decoder.table[a].astype(float)) for a, _ in pairs}
        assert tally[0] == pytest.approx(-sum(np.log(odds[a][b] / odds[a].sum()) for a, b in pairs), abs=1e-9)
        assert tally[1:].tolist() == [len(pairs), sum(odds[a].argmax() == b for a, b in pairs)]


class Padding:
    """The part of a LanguageEncoder that pads; 9 stands where nothing does."""

    def collate(self, rows):
        assert all(set(row.segments) <= {0} for row in rows)
        width = max(len(row.ids) for row in rows)
        ids = np.array([row.ids + [9] * (width - len(row.ids)) for row in rows])
        mask = np.array([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows])
        return {"input_ids": ids, "attention_mask": mask, "position_ids": np.tile(np.arange(width), (len(rows), 1))}

    def targets(self, rows):
        width = max(len(row.ids) for row in rows)
        return np.array([row.targets + [-100] * (width - len(row.ids)) for row in rows])


class Fixed(CachedDecoder):
    """A decoder whose logits are a row of a table for each token."""

    def __init__(self, table):
        self.table, self.vocabulary = table, len(table)

    def _empty(self, rows):
        return None

    def _read(self, ids, mask, cache):
        return self.table[ids], None


def test_a_batch_is_no_larger_than_its_logits_may_be(monkeypatch):
    decoder = Fixed(np.zeros((10, 10), np.float32))
    monkeypatch.setattr("finetune.runtime.TALLY_NUMBERS", 2 * 10 * 4)
    widths = []
    monkeypatch.setattr(Fixed, "_read", lambda self, ids, *_: (widths.append(ids.shape), (self.table[ids], None))[1])
    rows = [Sequence([1] * n, [1] * n, [0] * n) for n in (4, 50, 2, 4, 2, 2)]
    tallies = decoder.tallies(rows, Padding(), batch_size=8)
    assert widths == [(3, 2), (2, 4), (1, 50)]
    assert tallies[:, 1].tolist() == [4, 50, 2, 4, 2, 2]
    np.testing.assert_allclose(tallies[:, 0], tallies[:, 1] * np.log(10))

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.errors import BundleError, DataError
from finetune.serve import Prediction, Predictor

TEXTS = [
    "ball goal",
    "money",
    "the vote the vote the vote the vote the vote the vote",
    "",
    "unheard of words",
    "bank ball vote",
]


@pytest.fixture(scope="module")
def predictor(bundle) -> Predictor:
    return Predictor(bundle, threads=1)


def probabilities(predictions: list[Prediction]) -> np.ndarray:
    return np.array([list(p.probabilities.values()) for p in predictions])


def test_labels_and_probabilities_are_what_the_weights_say(predictor):
    """Mean over [CLS] ball goal [SEP] of (0, 0, 4) and (0, 0, 3) is (0, 0, 7/4)."""
    (answer,) = predictor.predict("Ball GOAL")
    expected = np.exp([0, 0, 1.75]) / np.exp([0, 0, 1.75]).sum()
    assert answer.label == "sport"
    assert list(answer.probabilities) == ["business", "politics", "sport"]
    np.testing.assert_allclose(list(answer.probabilities.values()), expected, rtol=1e-6)
    assert answer.score == answer.probabilities["sport"]


def test_one_text_and_many_are_answered_alike_and_in_order(predictor):
    together = predictor.predict(TEXTS, batch_size=4)
    assert [p.label for p in together[:3]] == ["sport", "business", "politics"]
    alone = [predictor.predict(text)[0] for text in TEXTS]
    np.testing.assert_allclose(probabilities(together), probabilities(alone), atol=1e-6)


def test_the_order_of_answers_is_the_order_of_texts_for_any_batch_size(predictor):
    expected = probabilities(predictor.predict(TEXTS * 5, batch_size=1))
    for batch_size in (2, 7, 64):
        np.testing.assert_allclose(probabilities(predictor.predict(TEXTS * 5, batch_size)), expected, atol=1e-6)
        np.testing.assert_allclose(
            probabilities(list(predictor.stream(iter(TEXTS * 5), batch_size))), expected, atol=1e-6
        )


def test_no_texts_give_no_predictions(predictor):
    assert predictor.predict([]) == []
    assert list(predictor.stream([])) == []
    assert predictor.logits([]).shape == (0, 3)


def test_the_temperature_softens_probabilities_but_not_logits(make_bundle, predictor):
    soft = Predictor(make_bundle(temperature=2.0), threads=1)
    np.testing.assert_array_equal(soft.logits(["money"]), predictor.logits(["money"]))
    halved = np.exp(predictor.logits(["money"])[0] / 2)
    np.testing.assert_allclose(probabilities(soft.predict("money"))[0], halved / halved.sum(), rtol=1e-6)


def test_rows_run_one_by_one_when_the_model_is_not_batch_invariant(make_bundle):
    """The leaky model's answers move with their neighbours; the manifest's word decides whether that shows."""
    honest = Predictor(make_bundle(leaky=True, batch_invariant=False), threads=1)
    alone = np.concatenate([honest.logits([text]) for text in TEXTS])
    np.testing.assert_array_equal(honest.logits(TEXTS, batch_size=32), alone)
    np.testing.assert_array_equal(
        probabilities(list(honest.stream(TEXTS))), probabilities(honest.predict(TEXTS, batch_size=3))
    )
    batched = Predictor(make_bundle(leaky=True, batch_invariant=True), threads=1)
    assert np.abs(batched.logits(TEXTS, batch_size=32) - alone).max() > 0.1


def test_a_stream_is_read_one_batch_ahead_and_no_further(predictor):
    taken = []

    def source():
        for index in range(10**9):
            taken.append(index)
            yield "ball"

    stream = predictor.stream(source(), batch_size=8)
    assert taken == []
    assert next(stream).label == "sport"
    assert len(taken) == 8
    for _ in range(8):
        next(stream)
    assert len(taken) == 16


def test_int8_is_opened_by_name_and_run_as_the_report_measured_it(make_bundle):
    path = make_bundle(int8=True, leaky=True)
    full, small = Predictor(path, which="onnx", threads=1), Predictor(path, which="int8", threads=1)
    np.testing.assert_allclose(small.logits(["ball"]), full.logits(["ball"]) / 2, rtol=1e-6)
    alone = np.concatenate([small.logits([text]) for text in TEXTS])
    np.testing.assert_array_equal(small.logits(TEXTS), alone)


def test_the_served_file_is_the_one_that_the_manifest_names(make_bundle):
    path = make_bundle(int8=True, served="onnx/model.int8.onnx", batch_invariant=False)
    np.testing.assert_array_equal(Predictor(path).logits(["ball"]), Predictor(path, which="int8").logits(["ball"]))


@pytest.mark.parametrize(
    ("which", "words"), [("int8", "has no onnx/model.int8.onnx"), ("torch", "must be one of served, onnx, int8")]
)
def test_a_form_that_is_not_there_is_refused(bundle, which, words):
    with pytest.raises(BundleError, match=words):
        Predictor(bundle, which=which)


def test_one_predictor_serves_many_threads(predictor):
    jobs = [[text] * (1 + index % 5) for index, text in enumerate(TEXTS * 20)]
    expected = [predictor.logits(job) for job in jobs]
    with ThreadPoolExecutor(12) as pool:
        for ours, theirs in zip(pool.map(predictor.logits, jobs), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_hashes_are_checked_before_a_session_opens_the_file(make_bundle, monkeypatch):
    path = make_bundle()
    with (path / "onnx/model.onnx").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    monkeypatch.setattr("finetune.serve.predictor.open_session", lambda *_: pytest.fail("a session was opened"))
    with pytest.raises(BundleError, match=r"'onnx/model\.onnx' was changed"):
        Predictor(path)


def test_verify_false_skips_the_hashes(make_bundle):
    path = make_bundle()
    (path / "report.json").write_text("{}")
    with pytest.raises(BundleError, match=r"'report\.json' was changed"):
        Predictor(path)
    assert Predictor(path, verify=False).predict("money")[0].label == "business"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: p.predict(["a", None]), "text 1 is of type NoneType"),
        (lambda p: p.predict(["\udfff"]), "half of a surrogate pair"),
        (lambda p: p.predict(["a"], batch_size=0), "batch_size is 0"),
        (lambda p: p.stream(["a"], batch_size=-1), "batch_size is -1"),
        (lambda p: p.stream("a"), "not one text"),
    ],
)
def test_bad_arguments_end_in_one_sentence(predictor, call, words):
    with pytest.raises(DataError, match=words):
        call(predictor)


def test_a_model_of_another_size_than_the_labels_is_refused(make_bundle):
    with pytest.raises(BundleError, match=r"gave numbers of shape \(1, 3\) for 1 texts and 2 labels"):
        Predictor(make_bundle(labels=["a", "b"])).predict("ball")


def test_an_input_that_preprocessing_does_not_make_is_refused_at_opening(make_bundle, reseal):
    path = make_bundle()
    document = json.loads((path / "preprocess.json").read_text())
    document["text"]["inputs"] = ["input_ids"]
    (path / "preprocess.json").write_text(json.dumps(document))
    reseal(path)
    with pytest.raises(BundleError, match="wants the input 'attention_mask'"):
        Predictor(path)


@pytest.mark.parametrize("file", ["tokenizer.json", "onnx/model.onnx"])
def test_a_sealed_but_unreadable_file_is_named(make_bundle, reseal, file):
    path = make_bundle()
    (path / file).write_bytes(b"junk")
    reseal(path)
    with pytest.raises(BundleError, match=file.replace(".", r"\.")):
        Predictor(path)


@settings(deadline=None, max_examples=60)
@given(texts=st.lists(st.text(max_size=60), max_size=6))
def test_any_texts_get_probabilities_that_add_up(predictor, texts):
    predictions = predictor.predict(texts)
    assert len(predictions) == len(texts)
    for prediction in predictions:
        assert sum(prediction.probabilities.values()) == pytest.approx(1)
        assert prediction.score == max(prediction.probabilities.values()) == prediction.probabilities[prediction.label]


def test_labels_and_manifest_are_there_to_read(predictor):
    assert predictor.labels == ("business", "politics", "sport")
    assert predictor.manifest["name"] == "tiny"


def test_serving_imports_neither_torch_nor_transformers_and_needs_no_pyarrow(bundle):
    program = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'datasets', 'pyarrow', 'sklearn', 'onnx', 'pandas'):\n"
        "    sys.modules[name] = None  # importing it would raise\n"
        "from finetune.serve import Predictor\n"
        "print(Predictor(sys.argv[1]).predict('ball')[0].label)\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'transformers') and sys.modules[name]])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(bundle)], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["sport", "[]"]

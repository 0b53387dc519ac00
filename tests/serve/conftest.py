"""Real, tiny bundles: an ONNX classifier that sums one weight vector per word, and one that weighs a picture's colours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_language import CONTEXT, shared_bundle, write_language_bundle, write_reciter
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from finetune.bundle import publish, seal, start, write_json, write_preprocessing
from finetune.preprocess import ImagePreprocess, TextPreprocess
from finetune.serve import Generator

TEXT = TextPreprocess(12, ("input_ids", "attention_mask"), pad_token_id=0)
IMAGE = ImagePreprocess(
    crop=(8, 6), resize=(10, 8), resize_mode="squash", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), max_pixels=40_000
)
TARGET_LABELS = {
    "single_label": ["business", "politics", "sport"],
    "multi_label": ["business", "politics", "sport"],
    "regression": [],
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "ball", "goal", "bank", "money", "the", "vote"]
LABELS = ["business", "politics", "sport"]
WEIGHTS = {
    "ball": (0, 0, 4),
    "goal": (0, 0, 3),
    "bank": (3, 1, 0),
    "money": (4, 0, 0),
    "vote": (0, 5, 0),
    "the": (0.1, 0.2, 0.1),
}


def write_tokenizer(path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=50)  # must be overridden
    tokenizer.save(str(path))


def write_onnx(path: Path, *, leaky: bool = False, scale: float = 1.0, outputs: int = 3) -> None:
    """Mean of the masked words' weights. A leaky model adds the mean over the batch: neighbours change an answer."""
    table = np.zeros((len(WORDS), len(LABELS)), dtype=np.float32)
    for word, weights in WEIGHTS.items():
        table[WORDS.index(word)] = np.multiply(weights, scale)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide_mask"]),
        helper.make_node("Mul", ["words", "wide_mask"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "length_axis"], ["sums"], keepdims=0),
        helper.make_node("ReduceSum", ["wide_mask", "length_axis"], ["counts"], keepdims=0),
        helper.make_node("Div", ["sums", "counts"], ["means"]),
        helper.make_node("ReduceMean", ["means"], ["batch_mean"], axes=[0], keepdims=1),
        helper.make_node("Add" if leaky else "Identity", ["means", "batch_mean"] if leaky else ["means"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "embedding_bag",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", outputs])],
        [
            numpy_helper.from_array(table[:, :outputs], "table"),
            numpy_helper.from_array(np.array([-1]), "last"),
            numpy_helper.from_array(np.array([1]), "length_axis"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def write_image_onnx(path: Path, *, leaky: bool = False, outputs: int = 3) -> None:
    """A picture's mean colour times a square matrix: the first output grows with red, the second with green."""
    height, width = IMAGE.size
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixel_values"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["colours"]),
        helper.make_node("Gemm", ["colours", "weights", "bias"], ["own"]),
        helper.make_node("ReduceMean", ["own"], ["batch_mean"], axes=[0], keepdims=1),
        helper.make_node("Add" if leaky else "Identity", ["own", "batch_mean"] if leaky else ["own"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mean_colour",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, height, width])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", outputs])],
        [
            numpy_helper.from_array(np.eye(3, dtype=np.float32)[:, :outputs], "weights"),
            numpy_helper.from_array(np.array([0.0, 0.1, 0.2], dtype=np.float32)[:outputs], "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory) -> Callable[..., Path]:
    """make_bundle(batch_invariant=…, leaky=…, …) -> path of a new bundle of texts, or of images with image=True."""

    def make(
        *,
        image: bool = False,
        target: str = "single_label",
        batch_invariant: bool = True,
        leaky: bool = False,
        int8: bool = False,
        temperature: float = 1.0,
        interval: float | None = None,
        labels: list[str] | None = None,
        **facts,
    ) -> Path:
        labels = TARGET_LABELS[target] if labels is None else labels
        outputs = 1 if target == "regression" else len(LABELS)
        path = tmp_path_factory.mktemp("exports") / "run"
        partial = start(path)
        (partial / "onnx").mkdir()
        if image:
            write_image_onnx(partial / "onnx/model.onnx", leaky=leaky, outputs=outputs)
        else:
            write_onnx(partial / "onnx/model.onnx", leaky=leaky, outputs=outputs)
            write_tokenizer(partial / "tokenizer.json")
        if int8:
            write_onnx(partial / "onnx/model.int8.onnx", leaky=leaky, scale=0.5)
        write_json(partial / "labels.json", labels)
        write_preprocessing(
            partial,
            task=f"{'image' if image else 'text'}_classification",
            target=target,
            preprocess=IMAGE if image else TEXT,
            temperature=temperature,
            interval=interval,
        )
        write_json(
            partial / "report.json",
            {"format": 1, "export": {"onnx": {"batch_invariant": True}, "int8": {"batch_invariant": False}}},
        )
        seal(partial, {"name": "tiny", "served": "onnx/model.onnx", "batch_invariant": batch_invariant} | facts)
        publish(partial, path)
        return path

    return make


@pytest.fixture(scope="session")
def bundle(make_bundle) -> Path:
    return make_bundle()


@pytest.fixture(scope="session")
def image_bundle(make_bundle) -> Path:
    return make_bundle(image=True)


@pytest.fixture(scope="session")
def reseal() -> Callable[[Path], None]:
    """Seal an edited bundle again, as somebody would who makes one by hand."""

    def again(path: Path) -> None:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        seal(path, {key: value for key, value in manifest.items() if key not in ("format", "files")})

    return again


@pytest.fixture(scope="session")
def language_bundle(tmp_path_factory) -> Path:
    """A bundle of a briefly trained tiny GPT-2; tests must not change it."""
    return shared_bundle(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def make_language_bundle(language_bundle, tmp_path_factory) -> Callable[..., Path]:
    """make_language_bundle(onnx_file=…, chat=…, …) -> path of a new bundle."""

    def make(*, onnx_file: Path | None = None, **settings) -> Path:
        path = tmp_path_factory.mktemp("language") / "run"
        return write_language_bundle(
            path, language_bundle.with_name("backbone"), onnx_file or language_bundle / "onnx/model.onnx", **settings
        )

    return make


@pytest.fixture(scope="session")
def reciting(make_language_bundle, language_bundle, tmp_path_factory) -> Callable[..., Generator]:
    """reciting(text) -> a generator that answers the prompt "Go" with that text and an end token, whatever it is asked."""

    def make(text: str, **settings) -> Generator:
        own = Generator(language_bundle)
        start = len(own.prompt_ids("Go")) - 1
        script = [*[0] * start, *own.prompt_ids(text), 0]
        path = tmp_path_factory.mktemp("reciter") / "m.onnx"
        write_reciter(path, [*script, *[0] * (CONTEXT - len(script))], vocabulary=300, **settings)
        return Generator(make_language_bundle(onnx_file=path))

    return make

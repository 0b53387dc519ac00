"""A tiny text classifier with its tokenizer and a tiny convnet, and their exported files, shared by all export tests: an export takes seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from exported_decoders import ExportedDecoder, exported
from tiny_convnets import ENCODER, Exported, depthwise_net, pictures
from tiny_encoders import MAX_LENGTH, WORDS, Setting, build
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from finetune.export import image, text
from finetune.export.calibrate import collect
from finetune.export.onnx import evaluating_on_cpu, export_onnx
from finetune.export.parity import predict_rows
from finetune.export.stages import torch_predict
from finetune.preprocess import Encoded, TextEncoder, TextPreprocess


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="session")
def encoder(tokenizer_file: Path) -> TextEncoder:
    return TextEncoder(tokenizer_file, TextPreprocess(MAX_LENGTH, ("input_ids", "attention_mask"), pad_token_id=0))


@pytest.fixture(scope="session")
def rows(encoder: TextEncoder) -> list[Encoded]:
    generator = np.random.default_rng(0)
    lengths = generator.integers(0, 40, size=60)
    return encoder.encode([" ".join(generator.choice(WORDS, size=length)) for length in lengths])


@pytest.fixture(scope="session")
def setting(encoder: TextEncoder, rows: list[Encoded], tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("bert")
    model = build("bert")
    model.save_pretrained(folder / "model")  # type: ignore[operator]
    with evaluating_on_cpu(model):
        logits = predict_rows(torch_predict(model), encoder, rows, 16)
    path = folder / "onnx" / "model.onnx"
    export_onnx(model, encoder.collate(rows[:2]), path, axes=text.axes(encoder))
    return Setting(model, folder / "model", encoder, rows, logits.argmax(axis=1), logits, path)


@pytest.fixture(scope="session")
def convnet(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("convnet")
    model, rows = depthwise_net(), ENCODER.encode(pictures(48))
    export_onnx(model, image.example(ENCODER, rows), folder / "model.onnx", axes=image.axes(ENCODER))
    calibration = (ENCODER.collate([row]) for row in pictures(40, seed=1))
    statistics = collect(folder / "model.onnx", calibration, folder)
    logits = predict_rows(torch_predict(model), ENCODER, rows, 16)
    return Exported(model, folder / "model.onnx", statistics, rows, logits, logits.argmax(axis=1))


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> ExportedDecoder:
    return exported("gpt2", tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ExportedDecoder:
    return exported("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def untied(tmp_path_factory: pytest.TempPathFactory) -> ExportedDecoder:
    """A Llama with an embedding and a head of their own."""
    return exported("llama", tmp_path_factory.mktemp("untied"), tied=False)


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def decoder(request: pytest.FixtureRequest) -> ExportedDecoder:
    """One of the two, with its embedding tied to its head."""
    found: ExportedDecoder = request.getfixturevalue(request.param)
    return found

"""Tiny random encoders of several architectures, and what the export tests share of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from finetune.export.judge import Judge
from finetune.preprocess import Encoded, TextEncoder

WORDS = [f"w{index}" for index in range(1200)]
MAX_LENGTH = 24
LABELS = 3


def build(architecture: str) -> nn.Module:
    """A random classifier with 3 labels whose answers differ between texts."""
    import transformers as hf

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    common = {
        "vocab_size": len(WORDS) + 4,
        "max_position_embeddings": 40,
        "num_labels": LABELS,
        "initializer_range": 0.1,
    }
    marks = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    configs: dict[str, Callable[[], hf.PreTrainedConfig]] = {
        "bert": lambda: hf.BertConfig(**size, **common),
        "distilbert": lambda: hf.DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, **common),
        "roberta": lambda: hf.RobertaConfig(pad_token_id=0, type_vocab_size=1, **size, **common),
        "modernbert": lambda: hf.ModernBertConfig(pad_token_id=0, **marks, **size, **common),
    }
    torch.manual_seed(0)
    model: nn.Module = hf.AutoModelForSequenceClassification.from_config(configs[architecture]())
    return model.eval()


@dataclass(frozen=True)
class Setting:
    """A tiny trained-like classifier, validation rows that it labels itself, and its ONNX file."""

    model: nn.Module
    model_folder: Path
    encoder: TextEncoder
    rows: list[Encoded]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    onnx: Path


def accuracy(
    logits: NDArray[np.float32], labels: NDArray[np.int64], weights: NDArray[np.float64] | None = None
) -> float:
    return float(np.average(logits.argmax(axis=1) == labels, weights=weights))


def same_label(reference: NDArray[np.float32], other: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    return float((reference.argmax(axis=1) == other.argmax(axis=1)).mean())


def judge(score: Callable[..., float] = accuracy, higher_is_better: bool = True, metric: str = "accuracy") -> Judge:
    """Accuracy and equal labels, or another score in its place."""
    sign = 1 if higher_is_better else -1
    return Judge(metric, score, higher_is_better, same_label, lambda before, after, labels: sign * (before - after))

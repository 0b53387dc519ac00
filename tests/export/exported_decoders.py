"""Tiny random causal language models of several architectures, and what the export tests share of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.export.causal_graph import export_cached
from finetune.export.causal_measure import TorchDecoder, answers_of
from finetune.model.quiet import quiet_transformers
from finetune.preprocess.language import IGNORED, Sequence

VOCABULARY = 3000
"""Large enough that the embedding outweighs the graph around it, as in a real model."""
CONTEXT = 256


def build_decoder(architecture: str, *, tied: bool = True, layers: int = 2) -> Any:
    """A random model whose next tokens differ between texts."""
    import transformers as hf

    common = {
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": tied,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 1,
    }
    size = {
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": CONTEXT,
    }
    grouped = {**size, "num_key_value_heads": 2}
    configs: dict[str, Callable[[], Any]] = {
        "gpt2": lambda: hf.GPT2Config(n_positions=CONTEXT, n_embd=32, n_layer=layers, n_head=2, **common),
        "llama": lambda: hf.LlamaConfig(**grouped, **common),
        "qwen2": lambda: hf.Qwen2Config(**grouped, **common),
        "mistral": lambda: hf.MistralConfig(sliding_window=6, **grouped, **common),
        "gemma": lambda: hf.GemmaConfig(head_dim=8, **grouped, **{**common, "initializer_range": 0.1}, pad_token_id=0),
        "gpt_neox": lambda: hf.GPTNeoXConfig(**size, **common),
        "opt": lambda: hf.OPTConfig(
            hidden_size=32, num_hidden_layers=layers, num_attention_heads=4, ffn_dim=48, word_embed_proj_dim=32,
            max_position_embeddings=CONTEXT, vocab_size=VOCABULARY, tie_word_embeddings=tied, init_std=0.2,
            pad_token_id=0, bos_token_id=1, eos_token_id=1,
        ),
    }  # fmt: skip
    torch.manual_seed(0)
    return hf.AutoModelForCausalLM.from_config(configs[architecture]()).eval()


def token_rows(count: int = 12) -> list[Sequence]:
    """Sequences of 2 to 40 random tokens; each fourth is a prompt and an answer, of which only the answer is learned."""
    generator = np.random.default_rng(0)
    rows = []
    for number, length in enumerate(generator.integers(2, 41, size=count)):
        ids = generator.integers(2, VOCABULARY, size=length).tolist()
        targets = [*ids[1:], IGNORED]
        if number % 4 == 3:
            targets[: length // 2 - 1] = [IGNORED] * max(0, length // 2 - 1)
        rows.append(Sequence(ids, targets, [0] * int(length), (number,)))
    return rows


@dataclass(frozen=True)
class ExportedDecoder:
    """A tiny model, saved and exported, with torch's answers to its texts."""

    model: Any
    model_folder: Path
    onnx: Path
    rows: list[Sequence]
    tallies: NDArray[np.float64]


def exported(architecture: str, folder: Path, *, tied: bool = True) -> ExportedDecoder:
    """A saved model and its ONNX file in `folder`."""
    model = build_decoder(architecture, tied=tied)
    with quiet_transformers():
        model.save_pretrained(folder / "model")
    path, rows = folder / "onnx" / "model.onnx", token_rows()
    export_cached(model, path)
    return ExportedDecoder(model, folder / "model", path, rows, answers_of(TorchDecoder(model), rows).tallies)

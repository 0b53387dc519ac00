"""Tiny random language models of real architectures, saved as hub-style folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tiny_models import save

VOCABULARY = 100
POSITIONS = 64
BLOCKS = 3
WIDTH = 32

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}


@dataclass(frozen=True)
class Tiny:
    """A language model, and what its layer groups must be.

    first, head: names of the parameters in those two groups, all of them; linear: last names of its blocks' linear layers.
    """

    config: Callable[[], Any]
    first: set[str]
    head: set[str]
    linear: set[str]


def gpt2(**changes: Any) -> Any:
    return hf.GPT2Config(
        **{
            "vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": BLOCKS, "n_head": 4, "n_positions": POSITIONS,
            "bos_token_id": 2, "eos_token_id": 2, **changes,
        }
    )  # fmt: skip


def opt(**changes: Any) -> Any:
    return hf.OPTConfig(
        **{
            "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "num_attention_heads": 4,
            "ffn_dim": 48, "max_position_embeddings": POSITIONS, "word_embed_proj_dim": WIDTH, "pad_token_id": 1,
            "bos_token_id": 2, "eos_token_id": 2, **changes,
        }
    )  # fmt: skip


GPT2_EMBEDDINGS = {"transformer.wte.weight", "transformer.wpe.weight"}
GPT2_NORM = {"transformer.ln_f.weight", "transformer.ln_f.bias"}
GPT2_LINEAR = {"c_attn", "c_proj", "c_fc"}
LLAMA_LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
TOKENS, NORM = {"model.embed_tokens.weight"}, {"model.norm.weight"}
NEOX_NORM = {"gpt_neox.final_layer_norm.weight", "gpt_neox.final_layer_norm.bias"}
NEOX_LINEAR = {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}
OPT_EMBEDDINGS = {"model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight"}
OPT_NORM = {"model.decoder.final_layer_norm.weight", "model.decoder.final_layer_norm.bias"}
OPT_LINEAR = {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}
OUTPUT = {"lm_head.weight"}

# fmt: off
LANGUAGE_MODELS: dict[str, Tiny] = {
    "gpt2": Tiny(gpt2, GPT2_EMBEDDINGS, GPT2_NORM, GPT2_LINEAR),
    "gpt2 untied": Tiny(lambda: gpt2(tie_word_embeddings=False), GPT2_EMBEDDINGS, GPT2_NORM | OUTPUT, GPT2_LINEAR),
    # Like SmolLM2: tied, and with fewer keys than queries.
    "llama tied": Tiny(
        lambda: hf.LlamaConfig(**SHAPE, num_key_value_heads=2, tie_word_embeddings=True), TOKENS, NORM, LLAMA_LINEAR
    ),
    "llama": Tiny(
        lambda: hf.LlamaConfig(**SHAPE, num_key_value_heads=2, tie_word_embeddings=False), TOKENS, NORM | OUTPUT, LLAMA_LINEAR
    ),
    "qwen2": Tiny(lambda: hf.Qwen2Config(**SHAPE, num_key_value_heads=2, tie_word_embeddings=True), TOKENS, NORM, LLAMA_LINEAR),
    "mistral": Tiny(lambda: hf.MistralConfig(**SHAPE, num_key_value_heads=2), TOKENS, NORM | OUTPUT, LLAMA_LINEAR),
    "gemma": Tiny(lambda: hf.GemmaConfig(**{**SHAPE, "pad_token_id": 0}, num_key_value_heads=1, head_dim=8), TOKENS, NORM, LLAMA_LINEAR),
    "gpt-neox": Tiny(
        lambda: hf.GPTNeoXConfig(**SHAPE, tie_word_embeddings=False), {"gpt_neox.embed_in.weight"},
        NEOX_NORM | OUTPUT, NEOX_LINEAR,
    ),
    "gpt-neox tied": Tiny(
        lambda: hf.GPTNeoXConfig(**SHAPE, tie_word_embeddings=True), {"gpt_neox.embed_in.weight"}, NEOX_NORM, NEOX_LINEAR
    ),
    "opt": Tiny(opt, OPT_EMBEDDINGS, OPT_NORM, OPT_LINEAR),
    "opt untied": Tiny(lambda: opt(tie_word_embeddings=False), OPT_EMBEDDINGS, OPT_NORM | OUTPUT, OPT_LINEAR),
}
# fmt: on


def save_language_model(folder: Path, name: str, *, seed: int = 7) -> Path:
    """A random checkpoint of one of the architectures above."""
    return save(folder, hf.AutoModelForCausalLM, LANGUAGE_MODELS[name].config(), seed=seed)


def some_ids(rows: int = 2, length: int = 9, *, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))

"""Tiny causal language models with random weights, one of each way that transformers counts positions or keeps its cache."""

from __future__ import annotations

from typing import Any

import torch
import transformers

VOCABULARY = 120
CONTEXT = 96

_SIZES = {
    "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
_LLAMA = {**_SIZES, "intermediate_size": 48, "num_key_value_heads": 2}
_GPT2 = {
    "n_positions": CONTEXT,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "vocab_size": VOCABULARY,
    "initializer_range": 0.3,
}
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {**_GPT2, **_NO_DROPOUT, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}),
    "llama": ("Llama", _LLAMA),
    "llama-tied": ("Llama", {**_LLAMA, "tie_word_embeddings": True}),
    "mistral-sliding": ("Mistral", {**_LLAMA, "sliding_window": 8}),
    "qwen2": ("Qwen2", _LLAMA),
    "gemma": ("Gemma", {**_LLAMA, "head_dim": 8}),
    "gpt-neox": ("GPTNeoX", {**_SIZES, "intermediate_size": 48}),
    "opt": ("OPT", {**_SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3}),
}


def tiny_decoder(kind: str, seed: int = 0) -> Any:
    """One of KINDS in evaluation mode, the same for the same seed."""
    name, settings = KINDS[kind]
    model = {"GPT2": "GPT2LMHeadModel"}.get(name, f"{name}ForCausalLM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return getattr(transformers, model)(getattr(transformers, f"{name}Config")(**settings)).eval()


def some_prompts(lengths: tuple[int, ...], seed: int = 0) -> list[list[int]]:
    """Random ids above the special one."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]

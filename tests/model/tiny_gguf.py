"""GGUF files of tiny networks, written as llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quantize
from tokenizers import pre_tokenizers

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = [("Ġ", "Ġ"), ("h", "a"), ("ha", "r"), ("Ġ", "1"), ("1", "2")]
TOKENS = [*SPECIAL, *LETTERS, *(left + right for left, right in MERGES)]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
)
BLOCKS, WIDTH, HEADS = 2, 32, 4


def a_network(*, tied: bool = True) -> Any:
    config = hf.LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=WIDTH, num_hidden_layers=BLOCKS, num_attention_heads=HEADS,
        num_key_value_heads=2, intermediate_size=64, max_position_embeddings=96, tie_word_embeddings=tied,
        bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return hf.LlamaForCausalLM(config).eval()


def write_gguf(
    file: Path, network: Any | None = None, *, pre: str | None = "smollm", tokens: list[str] | None = None,
    leave_out: str = "", quantised: bool = False, **metadata: Any,
) -> Path:  # fmt: skip
    """`network` (one with tied weights if None) as a GGUF file; further metadata by name, with `__` for a dot."""
    network = network or a_network()
    config, writer = network.config, GGUFWriter(file, "llama")
    writer.add_name("Tiny")
    writer.add_license("apache-2.0")
    writer.add_languages(["en", "fr"])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    _add_tokenizer(writer, tokens or TOKENS, pre)
    for name, value in metadata.items():
        add = {int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool, str: writer.add_string}
        add[type(value)](name.replace("__", "."), value)
    for name, array in _tensors(network).items():
        if name != leave_out:
            small = quantised and array.ndim == 2
            data = quantize(array, GGMLQuantizationType.Q8_0) if small else array
            writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType.Q8_0 if small else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_tokenizer(writer: GGUFWriter, tokens: list[str], pre: str | None) -> None:
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def _tensors(network: Any) -> dict[str, np.ndarray]:
    config, body = network.config, network.model
    found = {"token_embd": body.embed_tokens.weight, "output_norm": body.norm.weight}
    if not config.tie_word_embeddings:
        found["output"] = network.lm_head.weight
    for i, block in enumerate(body.layers):
        attention, mlp = block.self_attn, block.mlp
        found |= {
            f"blk.{i}.attn_norm": block.input_layernorm.weight,
            f"blk.{i}.ffn_norm": block.post_attention_layernorm.weight,
            f"blk.{i}.attn_q": _interleaved(attention.q_proj.weight, config.num_attention_heads),
            f"blk.{i}.attn_k": _interleaved(attention.k_proj.weight, config.num_key_value_heads),
            f"blk.{i}.attn_v": attention.v_proj.weight,
            f"blk.{i}.attn_output": attention.o_proj.weight,
            f"blk.{i}.ffn_gate": mlp.gate_proj.weight,
            f"blk.{i}.ffn_up": mlp.up_proj.weight,
            f"blk.{i}.ffn_down": mlp.down_proj.weight,
        }
    return {f"{name}.weight": tensor.detach().contiguous().numpy() for name, tensor in found.items()}


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp rotates neighbouring numbers, transformers those half a head apart."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)

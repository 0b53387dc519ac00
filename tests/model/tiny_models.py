"""Tiny random networks of real architectures, saved as hub-style folders of pretrained bodies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from finetune.model.backbone import TransferModel, load_backbone
from finetune.model.quiet import quiet_transformers

VOCABULARY = 60
POSITIONS = 40
LABELS = ("harbour", "kitchen", "orchard")
BLOCKS = 3

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": POSITIONS,
}


@dataclass(frozen=True)
class Tiny:
    """An architecture, and what its layer groups must be.

    blocks: how many groups lie between embeddings and head; first, head: parts of names that those two groups must
    hold; unused: parts of names of parameters that take no part in classifying a text.
    """

    config: Callable[[], Any]
    head: tuple[str, ...]
    first: tuple[str, ...] = ("word_embeddings.weight",)
    blocks: int = BLOCKS
    unused: tuple[str, ...] = ()
    pad_token_id: int = 0


# fmt: off
ARCHITECTURES: dict[str, Tiny] = {
    "bert": Tiny(lambda: hf.BertConfig(**SHAPE), ("pooler.dense.weight", "classifier.weight")),
    "distilbert": Tiny(
        lambda: hf.DistilBertConfig(
            vocab_size=VOCABULARY, dim=16, n_layers=BLOCKS, n_heads=2, hidden_dim=24, max_position_embeddings=POSITIONS
        ),
        ("pre_classifier.weight", "classifier.weight"),
    ),
    "roberta": Tiny(
        lambda: hf.RobertaConfig(**SHAPE), ("classifier.dense.weight", "classifier.out_proj.weight"), pad_token_id=1
    ),
    "xlm-roberta": Tiny(
        lambda: hf.XLMRobertaConfig(**SHAPE), ("classifier.dense.weight", "classifier.out_proj.weight"), pad_token_id=1
    ),
    "camembert": Tiny(lambda: hf.CamembertConfig(**SHAPE), ("classifier.out_proj.weight",), pad_token_id=1),
    "albert": Tiny(
        lambda: hf.AlbertConfig(**SHAPE, embedding_size=8),
        ("pooler.weight", "classifier.weight"),
        ("word_embeddings.weight", "embedding_hidden_mapping_in.weight"),
        blocks=1,
    ),
    "electra": Tiny(
        lambda: hf.ElectraConfig(**SHAPE, embedding_size=8),
        ("classifier.dense.weight", "classifier.out_proj.weight"),
        ("word_embeddings.weight", "embeddings_project.weight"),
    ),
    "deberta-v2": Tiny(
        lambda: hf.DebertaV2Config(
            **SHAPE, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8, share_att_key=True,
            norm_rel_ebd="layer_norm", position_biased_input=False,
        ),
        ("pooler.dense.weight", "classifier.weight"),
        ("word_embeddings.weight", "rel_embeddings.weight", "encoder.LayerNorm.weight"),
    ),
    "modernbert": Tiny(
        lambda: hf.ModernBertConfig(
            **SHAPE, pad_token_id=0, bos_token_id=1, cls_token_id=1, eos_token_id=2, sep_token_id=2, local_attention=8
        ),
        ("final_norm.weight", "head.dense.weight", "classifier.weight"),
        ("tok_embeddings.weight",),
    ),
    "mpnet": Tiny(
        lambda: hf.MPNetConfig(**SHAPE),
        ("classifier.dense.weight", "classifier.out_proj.weight"),
        ("word_embeddings.weight", "relative_attention_bias.weight"),
        pad_token_id=1,
    ),
    "gpt2": Tiny(
        lambda: hf.GPT2Config(
            vocab_size=VOCABULARY, n_embd=16, n_layer=BLOCKS, n_head=2, n_positions=POSITIONS,
            bos_token_id=59, eos_token_id=59,
        ),
        ("ln_f.weight", "score.weight"),
        ("wte.weight", "wpe.weight"),
        pad_token_id=59,
    ),
    "llama": Tiny(
        lambda: hf.LlamaConfig(**SHAPE, num_key_value_heads=2, bos_token_id=1, eos_token_id=2),
        ("model.norm.weight", "score.weight"),
        ("embed_tokens.weight",),
        pad_token_id=2,
    ),
    "xlnet": Tiny(
        lambda: hf.XLNetConfig(vocab_size=VOCABULARY, d_model=16, n_layer=BLOCKS, n_head=2, d_inner=24),
        ("sequence_summary.summary.weight", "logits_proj.weight"),
        ("word_embedding.weight",),
        # Read for permuted prediction and for pairs of texts only.
        unused=("mask_emb", "r_s_bias", "seg_embed"),
        pad_token_id=5,
    ),
    # Blocks spread over four parallel lists, blocks whose forward method is called past the hooks, and two stacks.
    "xlm": Tiny(
        lambda: hf.XLMConfig(
            vocab_size=VOCABULARY, emb_dim=16, n_layers=BLOCKS, n_heads=2, max_position_embeddings=POSITIONS
        ),
        ("sequence_summary.summary.weight",),
        ("transformer.embeddings.weight",),
        pad_token_id=2,
    ),
    "squeezebert": Tiny(
        lambda: hf.SqueezeBertConfig(
            **SHAPE, embedding_size=16, q_groups=1, k_groups=1, v_groups=1, post_attention_groups=1,
            intermediate_groups=1, output_groups=1,
        ),
        ("pooler.dense.weight", "classifier.weight"),
    ),
    "bart": Tiny(
        lambda: hf.BartConfig(
            vocab_size=VOCABULARY, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=POSITIONS,
        ),
        ("classification_head.dense.weight", "classification_head.out_proj.weight"),
        ("shared.weight",),
        blocks=4,
        pad_token_id=1,
    ),
}
# fmt: on


def save_body(folder: Path, name: str, *, seed: int = 7) -> Path:
    """The pretrained body of an architecture, as a checkpoint."""
    return save(folder, hf.AutoModel, ARCHITECTURES[name].config(), seed=seed)


def save(folder: Path, auto: Any, config: Any, *, seed: int = 7) -> Path:
    """A random checkpoint of any head."""
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(seed)
        auto.from_config(config).save_pretrained(folder)
    return folder


def load(folder: Path, *, name: str = "bert", **changes: Any) -> TransferModel:
    """`load_backbone` with the arguments that most tests share."""
    arguments: dict[str, Any] = {
        "labels": LABELS,
        "auto_class": "AutoModelForSequenceClassification",
        "problem_type": "single_label_classification",
        "outputs": len(LABELS),
        "dropout": None,
        "seed": 0,
        "pad_token_id": ARCHITECTURES[name].pad_token_id,
    }
    return load_backbone(folder, **{**arguments, **changes})


def a_batch(name: str, rows: int = 2, length: int = 9) -> dict[str, torch.Tensor]:
    """Ids without padding; the last token ends the text, which encoder-decoders require."""
    ids = torch.randint(6, 50, (rows, length), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = 2
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

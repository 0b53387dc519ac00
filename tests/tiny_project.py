"""A small real encoder and a small learnable data set, for tests that run the whole pipeline without a network."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

TOPICS = {
    "harbour": ["ship", "tide", "anchor", "cargo", "crane", "pilot", "quay", "buoy"],
    "kitchen": ["stove", "flour", "knife", "butter", "onion", "pan", "oven", "spice"],
    "orchard": ["apple", "branch", "ladder", "blossom", "pear", "basket", "frost", "bee"],
}
COMMON = ["the", "old", "near", "a", "with", "we", "saw", "today", "again", "and", "small", "there"]


def make_rows(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """(text, label) rows whose labels follow from their words; every text is different."""
    rng = random.Random(seed)
    rows: list[tuple[str, str]] = []
    for i in range(count):
        label = list(TOPICS)[i % len(TOPICS)]
        words = rng.choices(COMMON, k=rng.randint(1, 8)) + rng.choices(TOPICS[label], k=6)
        rng.shuffle(words)
        rows.append((" ".join([*words, f"number {i}"]), label))
    return rows


def write_csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    """A CSV file with the columns text and label."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(rows)
    return path


def write_backbone(folder: Path, kind: str = "bert") -> Path:
    """A hub-style folder with a tiny randomly initialised BERT or DistilBERT and a WordPiece tokenizer."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = list("abcdefghijklmnopqrstuvwxyz0123456789")
    words = sorted({w for group in TOPICS.values() for w in group} | set(COMMON) | {"number"})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters, *("##" + c for c in letters)]
    ids = {word: i for i, word in enumerate(dict.fromkeys(vocabulary))}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    fast = transformers.BertTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64,
        pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip
    shape: dict[str, Any] = {"vocab_size": len(ids), "max_position_embeddings": 64, "initializer_range": 0.2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "distilbert":
            model: Any = transformers.DistilBertModel(
                transformers.DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, **shape)
            )
            fast.model_input_names = ["input_ids", "attention_mask"]
        else:
            model = transformers.BertModel(
                transformers.BertConfig(
                    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, **shape
                )
            )
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A tiny encoder\n", encoding="utf-8")
    return folder


RECIPE = """\
name: tiny
task: text_classification
seed: 3
backbone: {{name: {backbone}}}
data:
  source: {data}
  max_length: 24
transfer: {{unfreeze: gradual, step: 1, head_epochs: 1, epochs: 4, learning_rate: 1.0e-2, decay: 0.9}}
train: {{batch_size: 8}}
export: {{int8: {{max_drop: 0.9, min_agreement: 0.0}}}}
license:
  use: research
  data: {{id: cc0-1.0, reason: "made up by the test itself"}}
"""


def write_recipe(folder: Path, backbone: Path, data: Path) -> Path:
    """The recipe that the pipeline tests start from."""
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(backbone=backbone, data=data), encoding="utf-8")
    return path

"""Small real language models and what they learn: GPT-2 and Llama of two blocks, with and without adapters, on made-up documents."""

from __future__ import annotations

import atexit
import itertools
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from train_samples import small_plan
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from finetune.model.adapters import Adapter
from finetune.model.backbone import TransferModel
from finetune.model.causal import load_causal_lm
from finetune.preprocess import IGNORED, LanguageEncoder, LanguagePreprocess
from finetune.preprocess.language import Sequence as Tokens
from finetune.recipe import L2SPSettings, TrainSettings
from finetune.tasks import TASKS
from finetune.train.blocks import BlockExamples
from finetune.train.job import Job, Rows

VOCABULARY = 40
CONTEXT = 64
ENDS = {"bos_token_id": 1, "eos_token_id": 1}


def bare(
    kind: str = "gpt2", *, dropout: float = 0.1, layers: int = 2, width: int = 32, vocabulary: int = VOCABULARY, seed: int = 0
) -> PreTrainedModel:  # fmt: skip
    """A network from its configuration; GPT-2 ties its embeddings to its head, Llama does not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "gpt2":
            return GPT2LMHeadModel(
                GPT2Config(
                    vocab_size=vocabulary,
                    n_embd=width,
                    n_layer=layers,
                    n_head=2,
                    n_positions=CONTEXT,
                    resid_pdrop=dropout,
                    embd_pdrop=dropout,
                    attn_pdrop=dropout,
                    **ENDS,
                )
            ).eval()
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=layers,
                num_attention_heads=2,
                max_position_embeddings=CONTEXT,
                attention_dropout=dropout,
                **ENDS,
            )
        ).eval()


@cache
def saved(kind: str, dropout: float, layers: int, width: int, vocabulary: int) -> Path:
    """The folder of a network, written once."""
    folder = Path(mkdtemp(prefix="language-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    module = bare(kind, dropout=dropout, layers=layers, width=width, vocabulary=vocabulary)
    # Not save_pretrained, which writes in the first of many processes alone.
    module.config.to_json_file(folder / "config.json", use_diff=False)
    tied = {"lm_head.weight"} if kind == "gpt2" else set()
    tensors = {name: tensor for name, tensor in module.state_dict().items() if name not in tied}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def language_model(
    kind: str = "gpt2", *, adapter: Literal["none", "lora", "dora"] = "none", dropout: float = 0.1, layers: int = 2, width: int = 32,
    vocabulary: int = VOCABULARY, seed: int = 0,
) -> TransferModel:  # fmt: skip
    """The network and its layer groups: embeddings, blocks, head; with an adapter the blocks' adapters alone."""
    settings = Adapter(adapter, rank=4, alpha=8, dropout=dropout / 2)
    return load_causal_lm(saved(kind, dropout, layers, width, vocabulary), seed=seed, adapter=settings)


@cache
def encoder() -> LanguageEncoder:
    """Of words that are numbers; only what it does with sequences matters here."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        Tokenizer(models.WordLevel({str(i): i for i in range(VOCABULARY)}, unk_token="0")).save(str(file))
        return LanguageEncoder(file, LanguagePreprocess(max_length=CONTEXT, pad_token_id=0, eos_token_ids=(1,)))


def document(rng: np.random.Generator, length: int, row: int = 0, *, prompt: int = 0) -> Tokens:
    """Each token is three times the one before, but for a little noise; the first `prompt` targets are not learned."""
    ids = [int(rng.integers(2, VOCABULARY))]
    while len(ids) < length:
        ids.append((3 * ids[-1] + int(rng.integers(2))) % VOCABULARY)
    targets = [IGNORED] * min(prompt, length) + [*ids[1:], IGNORED][prompt:]
    return Tokens(ids, targets, [0] * length, (row,))


def documents(count: int, *, seed: int = 0) -> list[Tokens]:
    """From 2 to 14 tokens each. Of every fifth nothing is learned, of every third not the first three tokens."""
    rng = np.random.default_rng(seed)
    return [
        document(rng, int(rng.integers(2, 15)), row, prompt=99 if row % 5 == 4 else 3 * (row % 3 == 2))
        for row in range(count)
    ]


def packed(rows: Sequence[Tokens], at_once: int = 3) -> list[Tokens]:
    """Every few documents in one sequence, as a segment each."""
    return [
        Tokens(
            [token for row in part for token in row.ids],
            [target for row in part for target in row.targets],
            [number for number, row in enumerate(part) for _ in row.ids],
            tuple(row for one in part for row in one.rows),
        )
        for part in (rows[i : i + at_once] for i in range(0, len(rows), at_once))
    ]


def rows_of(sequences: Sequence[Tokens]) -> Rows:
    return Rows(sequences, [len(row.ids) for row in sequences], encoder().targets(sequences))


def mean_loss(tallies: np.ndarray, _labels: np.ndarray) -> float:
    """Nats per token."""
    return float(tallies[:, 0].sum() / tallies[:, 1].sum())


def perplexity(tallies: np.ndarray, labels: np.ndarray) -> float:
    return float(np.exp(mean_loss(tallies, labels)))


def language_job(
    kind: str = "gpt2", *, adapter: Literal["none", "lora", "dora"] = "none", rows: Sequence[Tokens] | None = None, dropout: float = 0.1,
    layers: int = 2, transfer: dict[str, Any] | None = None, l2sp: L2SPSettings | None = None, seed: int = 0,
    model: TransferModel | None = None, **train: Any,
) -> Job:  # fmt: skip
    """By default two phases, of the head and then of the block below it too, with two epochs of six steps each."""
    settings = TrainSettings(**{"batch_size": 4, "eval_batch_size": 8, **train})
    model = model or language_model(kind, adapter=adapter, dropout=dropout, layers=layers)
    examples = BlockExamples(documents(22) if rows is None else rows, encoder())
    return Job(
        model=model,
        plan=small_plan(settings, len(model.groups), **{"head_epochs": 2, **(transfer or {})}),
        train=examples,
        plain=examples,
        validation=rows_of(documents(11, seed=1)),
        collate=encoder().collate,
        task=TASKS["causal_lm"],
        settings=settings,
        l2sp=l2sp or L2SPSettings(),
        class_weights=None,
        score=perplexity,
        validation_loss=mean_loss,
        higher_is_better=False,
        seed=seed,
    )


def improving(job: Job) -> Job:
    """The same job with a metric by which each epoch is better than the one before, so that the last weights are kept."""
    counter = itertools.count()
    return replace(job, score=lambda _tallies, _labels: -float(next(counter)))

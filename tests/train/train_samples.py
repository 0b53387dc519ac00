"""Small real jobs: a two-layer BERT from its configuration, rows of random tokens, and a plan of phases."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

from finetune.model.backbone import TransferModel
from finetune.model.groups import find_layer_groups
from finetune.recipe import L2SPSettings, TrainSettings, TransferSettings
from finetune.tasks import TASKS
from finetune.train.checkpoint import CheckpointFolder
from finetune.train.device import deterministic, make_accelerator
from finetune.train.events import Event
from finetune.train.job import Collate, EncodedExamples, Job, Result, Rows
from finetune.train.loop import fit
from finetune.transfer.plan import Plan, build_plan

LABELS = 3
VOCABULARY = 100
# Time is no part of a run's identity.
CLOCKS = {"seconds", "rows_per_second"}


def environment(**changes: str) -> dict[str, str]:
    """For a process of its own that imports this module."""
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **changes}


def small_model(*, dropout: float = 0.1, layers: int = 2, seed: int = 0, outputs: int = LABELS) -> TransferModel:
    """A BERT with `layers` blocks of width 32; its layer groups are embeddings, the blocks, head."""
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=32, num_labels=outputs, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = BertForSequenceClassification(config).eval()
    groups = find_layer_groups(module, module.base_model, lambda: module(input_ids=torch.arange(1, 5)[None]))
    fresh = frozenset(name for name, _ in module.named_parameters() if name.startswith("classifier."))
    return TransferModel(module, groups, fresh, type(module).__name__)


def small_rows(count: int, *, seed: int = 0) -> Rows:
    """Rows of 3 to 12 tokens; the label is the first token modulo 3, so there is something to learn."""
    rng = np.random.default_rng(seed)
    inputs = [rng.integers(1, VOCABULARY, size=rng.integers(3, 13)).tolist() for _ in range(count)]
    return Rows(inputs, [len(row) for row in inputs], np.array([row[0] % LABELS for row in inputs], dtype=np.int64))


def collate(rows: Sequence[Any]) -> dict[str, np.ndarray]:
    width = max(len(row) for row in rows)
    ids = np.array([[*row, *[0] * (width - len(row))] for row in rows], dtype=np.int64)
    return {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}


def encoded(rows: Rows, collate: Collate) -> EncodedExamples:
    return EncodedExamples(rows.inputs, rows.lengths, rows.labels, collate)


def collated_by(job: Job, collate: Collate) -> Job:
    """The job with another way to make batches, of training rows and of validation rows."""
    assert isinstance(job.train, EncodedExamples)
    examples = replace(job.train, collate=collate)
    return replace(job, train=examples, plain=examples, collate=collate)


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits.argmax(1) == labels).mean())


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    shares = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return float(-np.log(shares[np.arange(len(labels)), labels] / shares.sum(1)).mean())


def small_plan(train: TrainSettings, groups: int, **transfer: Any) -> Plan:
    return build_plan(TransferSettings(**{"learning_rate": 1e-2, "depth": 2, "epochs": 2, **transfer}), train, groups)


def small_job(
    *,
    rows: int = 22,
    dropout: float = 0.1,
    transfer: dict[str, Any] | None = None,
    l2sp: L2SPSettings | None = None,
    class_weights: np.ndarray | None = None,
    row_weights: np.ndarray | None = None,
    seed: int = 0,
    **train: Any,
) -> Job:
    """By default two phases, of the head and then of the last block too, with two epochs of six steps each."""
    settings = TrainSettings(**{"batch_size": 4, "eval_batch_size": 8, **train})
    model = small_model(dropout=dropout)
    examples = encoded(small_rows(rows), collate)
    return Job(
        model=model,
        plan=small_plan(settings, len(model.groups), **{"head_epochs": 2, **(transfer or {})}),
        train=examples,
        plain=examples,
        validation=small_rows(11, seed=1),
        collate=collate,
        task=TASKS["text_classification"],
        settings=settings,
        l2sp=l2sp or L2SPSettings(),
        class_weights=class_weights,
        score=accuracy,
        validation_loss=cross_entropy,
        higher_is_better=True,
        seed=seed,
        row_weights=row_weights,
    )


def rising(job: Job) -> Job:
    """The same job with a metric by which each epoch is better than the one before, so that the last weights are kept."""
    counter = itertools.count()
    return replace(job, score=lambda _logits, _labels: float(next(counter)))


def largest_difference(one: torch.nn.Module, other: torch.nn.Module) -> float:
    """Between two networks' parameters."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def timeless(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records without what the clock says."""
    return [{key: value for key, value in record.items() if key not in CLOCKS} for record in records]


def precision_of(job: Job) -> str:
    """What a job asks for, but never what the hardware happens to have."""
    return "fp32" if job.settings.precision == "auto" else job.settings.precision


def train(
    job: Job,
    folder: Path,
    *,
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
    key: dict[str, object] | None = None,
    events: list[Event] | None = None,
    emit: Callable[[Event], None] = lambda _: None,
) -> Result:
    """Run a job as the pipeline does, on the CPU; events go to the list, or to `emit`."""
    accelerator = make_accelerator(precision=precision_of(job), device="cpu")
    checkpoints = CheckpointFolder(folder, key or {"recipe": "r", "data": "d"})
    tell = emit if events is None else events.append
    with deterministic(job.seed):
        return fit(job, accelerator, checkpoints, resume=resume, emit=tell, stop=stop)

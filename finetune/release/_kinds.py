"""What the card says differently by modality and target: plain words in two dicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune.recipe.task_names import MODALITY_AND_TARGET


@dataclass(frozen=True)
class Modality:
    """Words for one kind of input."""

    one: str
    many: str
    a: str
    """With its article, for the snippets' comments and the summary."""
    identical: str
    """What the audit calls exact duplicates."""
    pipeline_tag: str
    tags: tuple[str, ...] = ()
    row: str = "row"
    """What the model is measured on, one by one."""
    named: str = ""
    """The kind of input in a title, where it is not called as one of them is."""


@dataclass(frozen=True)
class Target:
    """Words for one kind of answer."""

    model: str
    """What the model is: a {modality} …."""
    named: str
    """The task in a title."""
    loss: str
    agreement: str
    """Heading of the share of rows on which two forms agree."""
    weak: str
    """What a reader should make of answers without calibration."""
    tags: tuple[str, ...] = ()
    accuracy: str = "Accuracy"
    """What the metric called `accuracy` counts."""


MODALITIES = {
    "text": Modality("text", "texts", "a text", "identical texts", "text-classification"),
    "image": Modality("image", "images", "an image", "images with the same pixels", "image-classification"),
    "language": Modality(
        "document",
        "documents",
        "a language",
        "identical documents",
        "text-generation",
        row="sequence",
        named="language",
    ),
}
TARGETS = {
    "single_label": Target(
        "classifier with {labels} labels",
        "classification",
        "Loss, cross-entropy",
        "Same label as PyTorch",
        "treat the scores as a ranking, not as probabilities",
    ),
    "multi_label": Target(
        "classifier that gives any number of {labels} labels",
        "multi-label classification",
        "Loss, binary cross-entropy",
        "Same decisions as PyTorch",
        "treat the scores as a ranking, not as probabilities",
        ("multi-label-classification",),
    ),
    "regression": Target(
        "regression model that answers with a number",
        "regression",
        "Mean squared error",
        "Same number as PyTorch, within 5 % of the spread",
        "nothing is known about how far off an answer may be",
        ("regression",),
    ),
    "next_token": Target(
        "model that continues texts",
        "modelling",
        "Loss, cross-entropy per token (nats)",
        "Same next token as PyTorch",
        "the probability of a token says how usual it is in texts like the training texts, not whether what it says is true",
        ("causal-lm",),
        "Next-token accuracy",
    ),
}


def kind_of(report: Mapping[str, Any]) -> tuple[str, str]:
    """Modality and target of a report, always keys of MODALITIES and TARGETS."""
    run = report["run"]
    modality, target = MODALITY_AND_TARGET.get(str(run.get("task")), ("text", "single_label"))
    given = (str(run.get("modality") or modality), str(run.get("target") or target))
    return given if given[0] in MODALITIES and given[1] in TARGETS else (modality, target)


def modality_of(report: Mapping[str, Any]) -> Modality:
    """The words for the report's inputs."""
    return MODALITIES[kind_of(report)[0]]


def target_of(report: Mapping[str, Any]) -> Target:
    """The words for the report's answers."""
    return TARGETS[kind_of(report)[1]]


def is_timm(report: Mapping[str, Any]) -> bool:
    """Whether the model's folder is in timm's format: an image model whose architecture is no class of transformers."""
    architecture = str(report["backbone"]["architecture"])
    wrapped = architecture.startswith("TimmWrapper") or not architecture.endswith("ForImageClassification")
    return kind_of(report)[0] == "image" and wrapped

"""What the recipe's `task` means in two words, modality and target, and what follows from each. Plain data, no torch."""

from __future__ import annotations

from typing import Literal, get_args

Task = Literal[
    "text_classification",
    "text_multi_label_classification",
    "text_regression",
    "image_classification",
    "image_multi_label_classification",
    "image_regression",
    "causal_lm",
]

MODALITY_AND_TARGET: dict[str, tuple[str, str]] = {
    "text_classification": ("text", "single_label"),
    "text_multi_label_classification": ("text", "multi_label"),
    "text_regression": ("text", "regression"),
    "image_classification": ("image", "single_label"),
    "image_multi_label_classification": ("image", "multi_label"),
    "image_regression": ("image", "regression"),
    "causal_lm": ("language", "next_token"),
}
assert set(MODALITY_AND_TARGET) == set(get_args(Task))

METRICS: dict[str, tuple[str, ...]] = {
    "single_label": (
        "accuracy",
        "balanced_accuracy",
        "f1_macro",
        "f1_micro",
        "precision_macro",
        "precision_micro",
        "recall_macro",
        "recall_micro",
        "loss",
    ),
    "multi_label": (
        "f1_micro",
        "f1_macro",
        "precision_micro",
        "precision_macro",
        "recall_micro",
        "recall_macro",
        "exact_match",
        "label_accuracy",
        "average_precision_macro",
        "loss",
    ),
    "regression": ("mae", "rmse", "r2", "pearson", "spearman", "loss"),
    "next_token": ("perplexity", "accuracy", "loss"),
}
"""Built-in metrics of each target; none of them needs a network."""

DEFAULT_METRIC = {
    "single_label": "accuracy",
    "multi_label": "f1_micro",
    "regression": "mae",
    "next_token": "perplexity",
}
"""Chooses the best weights when the recipe names no metric."""

DEFAULT_METRICS: dict[str, tuple[str, ...]] = {
    "single_label": ("accuracy", "f1_macro", "f1_micro", "precision_macro", "recall_macro"),
    "multi_label": ("f1_micro", "f1_macro", "exact_match", "label_accuracy", "average_precision_macro"),
    "regression": ("mae", "rmse", "r2", "pearson", "spearman"),
    "next_token": ("perplexity", "accuracy"),
}
"""Reported when the recipe names no metrics."""

# Keys that mean something for some modalities, or for some targets, only. A recipe that sets one elsewhere is refused.
MODALITY_KEYS: dict[tuple[str, ...], tuple[str, ...]] = {
        ("text", "language"): ("export.bitsandbytes", "train.bucket_by_length", "data.text_column", "data.max_length", "data.audit.near_duplicate_similarity"),
    ("image",): (
        "backbone.architecture", "backbone.rename", "backbone.drop_path",
        "data.image_column", "data.image_root", "data.image_size", "data.image_crop", "data.unreadable", "data.max_pixels", "data.audit.image_distance",
        "train.augment", "train.workers", "train.memory_format", "transfer.batchnorm", "evaluation.gradcam", "export.int8.calibration_rows",
    ),
    ("language",): (
        "data.prompt_column", "data.answer_column", "data.messages_column", "data.packing", "data.overlong",
        "transfer.adapter", "train.gradient_checkpointing", "train.memory", "evaluation.general", "evaluation.generation", "evaluation.memorisation",
        "export.prompt_tokens",
    ),
    ("text", "image"): ("head.dropout", "data.label_column", "data.splits.stratify", "data.audit.conflicts", "data.stratify_by", "data.weight_column", "data.weight_map", "evaluation.samples", "evaluation.calibration"),
}  # fmt: skip
TARGET_KEYS: dict[str, tuple[str, ...]] = {
    "data.label_columns": ("multi_label",),
    "data.label_separator": ("multi_label",),
    "data.label_map": ("single_label", "multi_label"),
    "data.labels": ("single_label", "multi_label"),
    "train.class_weights": ("single_label", "multi_label"),
    "train.label_smoothing": ("single_label", "multi_label"),
    "evaluation.calibration_bins": ("single_label", "multi_label"),
}

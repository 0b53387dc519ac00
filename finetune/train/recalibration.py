"""The end of a run for BatchNorm: statistics re-estimated if the recipe says so, and what came of it, for the report."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import closing
from typing import Any

import numpy as np
from accelerate import Accelerator

from finetune.errors import TrainingError
from finetune.model.groups import LayerGroup
from finetune.train.events import Callback, Notice
from finetune.train.job import Job
from finetune.train.loader import batches_ahead
from finetune.train.measure import synchronise, validation_answers
from finetune.train.phase import fingerprint
from finetune.train.predict import WITHOUT_NOISE, to_tensors
from finetune.transfer import batchnorm

# Rows whose statistics are averaged: enough that a mean over them is far steadier than the running average it replaces.
MOST_ROWS = 2048
# Keeps the choice of those rows apart from other uses of the same seed.
STREAM = 1


def settle_batchnorm(
    job: Job, accelerator: Accelerator, trained: Collection[str], best: Mapping[str, float], emit: Callback
) -> dict[str, Any]:
    """Recalibrate BatchNorm under the final weights if the policy asks for it; returns report["transfer"]["batchnorm"].

    trained: names of the layer groups that trained in any phase; best: metric and loss of the final weights so far.
    """
    module, groups = job.model.module, job.model.groups.groups
    ever = [group for group in groups if group.name in trained]
    never = [group for group in groups if group.name not in trained]
    counts = {
        "trained_groups": len(batchnorm.batchnorms(module, ever)),
        "frozen_groups": len(batchnorm.batchnorms(module, never)),
    }
    measured: dict[str, float] | None = None
    if job.batchnorm == "recalibrate" and counts["trained_groups"]:
        measured = {**recalibrate(job, accelerator, ever), **_compared(job, accelerator, best)}
        emit(
            Notice(
                "recalibrated BatchNorm on {rows:,} training rows: validation metric {metric_before:.4g} before, {metric_after:.4g} "
                "after; loss {loss_before:.4g} before, {loss_after:.4g} after".format(**measured),
                dict(measured),
            )
        )
    elif job.batchnorm == "recalibrate":
        emit(
            Notice("transfer.batchnorm: recalibrate had nothing to do, since no layer group that trained has BatchNorm")
        )
    return {"policy": job.batchnorm, "layers": counts, "recalibration": measured}


def recalibrate(job: Job, accelerator: Accelerator, groups: Collection[LayerGroup]) -> dict[str, int]:
    """Estimate the statistics of the BatchNorm layers of some groups anew, on training rows without noise.

    Every process computes all of it. Returns the rows and batches used. TrainingError when anything else changed.
    """
    module, device = job.model.module, accelerator.device
    rng = np.random.default_rng([job.seed, STREAM])
    rows = rng.permutation(len(job.plain.labels))[:MOST_ROWS]
    # Batches of one size, since their means weigh alike: the few rows that do not fit are left out.
    count = -(-len(rows) // job.settings.eval_batch_size)
    size = len(rows) // count
    wanted = [(rows[i * size : (i + 1) * size].tolist(), WITHOUT_NOISE) for i in range(count)]
    layers, before = batchnorm.batchnorms(module, groups), fingerprint(module)
    with closing(batches_ahead(job.plain, wanted, job.workers)) as batches:
        batchnorm.recalibrate(module, list(layers.values()), (to_tensors(inputs, device) for inputs, _ in batches))
    synchronise(accelerator, batchnorm.statistics(module, groups))
    after = fingerprint(module)
    strayed = [name for name in before if before[name] != after[name] and name.rpartition(".")[0] not in layers]
    if strayed:
        raise TrainingError(
            f"recalibration of BatchNorm changed '{strayed[0]}', which it must not; this is a defect, please report it"
        )
    return {"rows": size * count, "batches": count}


def _compared(job: Job, accelerator: Accelerator, best: Mapping[str, float]) -> dict[str, float]:
    """Metric and loss of the validation rows before, as they were told, and after, as they are."""
    logits, labels = validation_answers(job, accelerator), job.validation.labels
    if not np.isfinite(logits).all():
        raise TrainingError(
            "the validation logits are not finite after BatchNorm was recalibrated; set transfer.batchnorm to train or freeze"
        )
    return {
        "metric_before": best["metric"],
        "metric_after": job.score(logits, labels),
        "loss_before": best["loss"],
        "loss_after": job.validation_loss(logits, labels),
    }

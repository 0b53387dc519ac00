"""From trained weights to a bundle: evaluate, export, judge, write. One process does this alone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from finetune import assembly
from finetune import bundle as files
from finetune.data import Split, TextData, prepare_text
from finetune.environment import describe_environment
from finetune.errors import BundleError
from finetune.evaluation.baselines import majority_baseline, tfidf_baseline
from finetune.evaluation.calibration import calibration_report
from finetune.evaluation.metrics import evaluate_classification, higher_is_better, score
from finetune.export import ExportResult, export_all
from finetune.model.quiet import quiet_transformers
from finetune.preflight import Checked, find_data
from finetune.preprocess import Encoded, TextEncoder
from finetune.recipe import Recipe
from finetune.result import Report
from finetune.serve import Predictor
from finetune.startup import Setup
from finetune.tasks import TASKS
from finetune.train.events import Callback, Notice
from finetune.train.job import Result
from finetune.train.predict import in_order, predict_logits
from finetune.watch import Watch


def deliver(
    recipe: Recipe, checked: Checked, data: TextData, setup: Setup, trained: Result,
    device: torch.device, processes: int, watch: Watch, *, overwrite: bool,
) -> Report:  # fmt: skip
    """Turn the network that training left behind into a published bundle; GateError if it is worse than allowed."""
    module, encoder = setup.model.module, setup.encoder
    partial = files.start(checked.workspace.bundle)
    with watch.stage("evaluation", "validation rows, in full precision"):
        validation = _logits(module, encoder, setup.validation, device, recipe.train.eval_batch_size)
        test_rows = encoder.encode(data.test.texts)
    with watch.stage("export", "ONNX and int8, each measured against torch") as say:
        assembly.write_model(partial, setup.model, setup.tokenizer, encoder.settings, data.labels)
        exported = _export(recipe, module.to("cpu"), encoder, setup.validation, data, validation, partial, watch)
        say(str(exported.report["served_reason"]))
    with watch.stage("evaluation", "the test split, once"):
        test = _logits(module, encoder, test_rows, device, recipe.train.eval_batch_size)
        calibration = _calibrate(recipe, data, validation, test)
        files.write_preprocessing(partial, encoder.settings, calibration["temperature"] if calibration else 1.0)
        report: dict[str, Any] = {
            "format": 1,
            "run": assembly.describe_run(recipe, data.fingerprint),
            "environment": describe_environment(str(device), processes),
            "recipe": recipe.model_dump(mode="json"),
            "backbone": assembly.describe_backbone(recipe, checked, setup.folder, setup.model),
            "data": assembly.describe_data(recipe, checked, data, setup.train),
            "audit": data.audit,
            "transfer": assembly.describe_transfer(recipe, setup.model, trained.phases),
            "history": trained.history,
            "metrics": {"primary": recipe.evaluation.metric, "test": _measure(recipe, data, test, data.test)},
            "calibration": calibration,
            "baselines": _baselines(recipe, data) if recipe.evaluation.baselines else None,
            "export": exported.report,
            "license": checked.license,
        }
        report["metrics"] |= _measure_forms(recipe, data, report, validation, exported, partial)
    with watch.stage("report", "card, report and manifest"):
        timings = {"audit": data.audit["seconds"], **watch.timings, "total": watch.elapsed()}
        report["timings_s"] = {stage: round(seconds, 3) for stage, seconds in timings.items()}
        assembly.write_provenance(partial, recipe, report, assembly.collect_upstream(checked, setup.folder))
        assembly.finish_bundle(partial, recipe, report)
        files.publish(partial, checked.workspace.bundle, overwrite=overwrite)
    return Report(checked.workspace.bundle, report)


def export_bundle(
    recipe: Recipe, before: Mapping[str, Any], partial: Path, callbacks: Sequence[Callback]
) -> dict[str, Any]:
    """Build and measure the forms of `partial`, a copy of a bundle, again; returns its new report.

    BundleError if the recipe's data are no longer those of the run, since the forms are compared on them.
    """
    import transformers

    watch = Watch(callbacks, lambda: False)
    with watch.stage("data", recipe.data.source):
        data = prepare_text(recipe.data, *find_data(recipe), recipe.seed)
        if data.fingerprint != before["run"]["data_fingerprint"]:
            raise BundleError(
                f"{recipe.data.source}: the data have changed since this bundle was made, so its forms cannot be compared "
                "on them; restore the data, or run the recipe again"
            )
    opened = files.Bundle.open(partial, verify=False)
    encoder = TextEncoder(partial / files.TOKENIZER, opened.preprocess)
    with quiet_transformers():
        auto = getattr(transformers, TASKS[recipe.task].auto_class)
        module = auto.from_pretrained(
            partial / files.MODEL_FOLDER, local_files_only=True, trust_remote_code=False
        ).eval()
    rows = encoder.encode(data.validation.texts)
    shutil.rmtree((partial / files.ONNX).parent)
    with watch.stage("export", "ONNX and int8, each measured against torch") as say:
        validation = _logits(module, encoder, rows, torch.device("cpu"), recipe.train.eval_batch_size)
        exported = _export(recipe, module, encoder, rows, data, validation, partial, watch)
        say(str(exported.report["served_reason"]))
    report = {**before, "recipe": recipe.model_dump(mode="json"), "export": exported.report}
    report["run"] = {**before["run"], "recipe_hash": assembly.describe_run(recipe, data.fingerprint)["recipe_hash"]}
    with watch.stage("evaluation", "the served form"):
        report["metrics"] = before["metrics"] | _measure_forms(recipe, data, report, validation, exported, partial)
    return report


def _export(
    recipe: Recipe, module: nn.Module, encoder: TextEncoder, rows: list[Encoded], data: TextData,
    validation: np.ndarray, partial: Path, watch: Watch,
) -> ExportResult:  # fmt: skip
    metric, settings = recipe.evaluation.metric, recipe.export
    return export_all(
        module,
        partial,
        rows,
        data.validation.labels,
        encoder,
        torch_logits=validation,
        metric=metric,
        score=lambda logits, labels: score(metric, logits, labels),
        higher_is_better=higher_is_better(metric),
        tolerance=settings.tolerance,
        max_drop=settings.max_drop,
        int8_mode=settings.int8.mode,
        int8_cpu=settings.int8.cpu,
        int8_max_drop=settings.int8.max_drop,
        int8_min_agreement=settings.int8.min_agreement,
        bitsandbytes=settings.bitsandbytes,
        model_folder=partial / files.MODEL_FOLDER,
        progress=lambda text: watch.tell(Notice(text)),
    )


def _measure_forms(
    recipe: Recipe,
    data: TextData,
    report: Mapping[str, Any],
    validation: np.ndarray,
    exported: ExportResult,
    partial: Path,
) -> dict[str, Any]:
    """Each form on validation, and the served one on test, answering as it will in service: through a Predictor."""
    files.seal(partial, assembly.manifest_facts(recipe, report))
    served = Predictor(partial, verify=False).logits(data.test.texts)
    logits = {"torch": validation, **exported.logits}
    return {
        "test_served": _measure(recipe, data, served, data.test),
        "validation": {
            form: _measure(recipe, data, logits[form], data.validation) if form in logits else None
            for form in ("torch", "onnx", "int8")
        },
    }


def _measure(recipe: Recipe, data: TextData, logits: np.ndarray, split: Split) -> dict[str, Any]:
    return evaluate_classification(logits, split.labels, data.labels, _metrics(recipe), seed=recipe.seed)


def _metrics(recipe: Recipe) -> tuple[str, ...]:
    return tuple(dict.fromkeys([recipe.evaluation.metric, *recipe.evaluation.metrics]))


def _calibrate(recipe: Recipe, data: TextData, validation: np.ndarray, test: np.ndarray) -> dict[str, Any] | None:
    if not recipe.evaluation.calibration:
        return None
    return calibration_report(
        validation, data.validation.labels, test, data.test.labels, recipe.evaluation.calibration_bins
    )


def _baselines(recipe: Recipe, data: TextData) -> dict[str, Any]:
    train, test, metrics = data.train, data.test, _metrics(recipe)
    return {
        "majority": majority_baseline(train.labels, test.labels, data.labels, metrics),
        "tfidf_logreg": tfidf_baseline(train.texts, train.labels, test.texts, test.labels, metrics, recipe.seed),
    }


def _logits(
    module: nn.Module, encoder: TextEncoder, rows: list[Encoded], device: torch.device, batch_size: int
) -> np.ndarray:
    """Logits (N, C) in fp32."""
    lengths = [len(row.ids) for row in rows]
    return in_order(
        predict_logits(module.to(device), rows, lengths, encoder.collate, batch_size=batch_size, device=device)
    )

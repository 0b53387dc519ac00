"""From trained weights to a bundle: evaluate, export, judge, write. One process does this alone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from finetune import assembly
from finetune import bundle as files
from finetune.data import LabelledData, Split, prepare_data
from finetune.environment import describe_environment
from finetune.errors import BundleError
from finetune.evaluation import EVALUATIONS, Evaluation, baselines
from finetune.explain.samples import collect_samples
from finetune.export import ExportPlan, ExportResult, export_all, judge_by
from finetune.modality import MODALITIES, Setup
from finetune.model.quiet import quiet_transformers
from finetune.preflight import Checked, find_data
from finetune.preprocess import Encoder
from finetune.recipe import Recipe
from finetune.release.shown_data import with_samples
from finetune.result import Report
from finetune.serve import Predictor
from finetune.tasks import TASKS
from finetune.train.events import Callback, Notice
from finetune.train.job import Result
from finetune.train.predict import in_order, predict_logits
from finetune.watch import Watch


@dataclass(frozen=True)
class Scales:
    """The rows of a run and the metrics that every form of its model is weighed with."""

    recipe: Recipe
    data: LabelledData

    @property
    def judge(self) -> Evaluation:
        """How answers of the recipe's target are judged."""
        return EVALUATIONS[TASKS[self.recipe.task].target.name]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metric that chooses, then those that are reported, each once."""
        return tuple(dict.fromkeys([self.recipe.evaluation.metric, *self.recipe.evaluation.metrics]))

    def measure(self, logits: np.ndarray, split: Split) -> dict[str, Any]:
        """All that the report says about the logits of a split."""
        return self.judge.evaluate(logits, split.labels, self.data.labels, self.metrics, seed=self.recipe.seed)

    def calibrate(self, validation: np.ndarray, test: np.ndarray) -> dict[str, Any] | None:
        """report["calibration"]: fitted on validation rows, measured on test rows."""
        if not self.recipe.evaluation.calibration:
            return None
        bins = self.recipe.evaluation.calibration_bins
        return self.judge.calibrate(validation, self.data.validation.labels, test, self.data.test.labels, bins)


def deliver(
    recipe: Recipe, checked: Checked, data: LabelledData, setup: Setup, trained: Result,
    device: torch.device, processes: int, watch: Watch, *, overwrite: bool,
) -> Report:  # fmt: skip
    """Turn the network that training left behind into a published bundle; GateError if it is worse than allowed."""
    module, encoder, scales = setup.model.module, setup.encoder, Scales(recipe, data)
    partial = files.start(checked.workspace.bundle)
    with watch.stage("evaluation", "validation rows, in full precision"):
        validation = _logits(module, encoder, setup.validation.inputs, device, recipe)
        test_rows = encoder.encode(data.test.inputs)
    with watch.stage("export", "ONNX and int8, each measured against torch") as say:
        assembly.write_model(partial, recipe, setup, data.labels)
        rows = setup.validation.inputs
        exported = _export(scales, module.to("cpu"), encoder, rows, setup.calibration, validation, partial, watch)
        say(str(exported.report["served_reason"]))
    with watch.stage("evaluation", "the test split, once"):
        test = _logits(module, encoder, test_rows, device, recipe)
        calibration = scales.calibrate(validation, test)
        assembly.write_preprocessing(partial, recipe, encoder, calibration)
        report: dict[str, Any] = {
            "format": 1,
            "run": assembly.describe_run(recipe, data.fingerprint),
            "environment": describe_environment(str(device), processes),
            "recipe": recipe.model_dump(mode="json"),
            "backbone": assembly.describe_backbone(recipe, checked, setup),
            "data": assembly.describe_data(recipe, checked, data, setup),
            "audit": data.audit,
            "transfer": assembly.describe_transfer(recipe, setup.model, trained),
            "history": trained.history,
            "metrics": {"primary": recipe.evaluation.metric, "test": scales.measure(test, data.test)},
            "calibration": calibration,
            "baselines": _baselines(scales) if recipe.evaluation.baselines else None,
            "samples": _samples(scales, setup, test, calibration, partial),
            "export": exported.report,
        }
        report["license"] = with_samples(checked.license, report["samples"])
        report["metrics"] |= _measure_forms(scales, report, validation, exported, partial)
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

    watch, task = Watch(callbacks, lambda: False), TASKS[recipe.task]
    with watch.stage("data", recipe.data.source):
        data = prepare_data(task, recipe.data, *find_data(recipe), recipe.seed)
        if data.fingerprint != before["run"]["data_fingerprint"]:
            raise BundleError(
                f"{recipe.data.source}: the data have changed since this bundle was made, so its forms cannot be compared "
                "on them; restore the data, or run the recipe again"
            )
    encoder = files.Bundle.open(partial, verify=False).encoder()
    with quiet_transformers():
        auto = getattr(transformers, task.auto_class)
        module = auto.from_pretrained(
            partial / files.MODEL_FOLDER, local_files_only=True, trust_remote_code=False
        ).eval()
    scales, rows = Scales(recipe, data), encoder.encode(data.validation.inputs)
    calibration_rows = MODALITIES[task.modality].calibration_rows(recipe, data, encoder)
    shutil.rmtree((partial / files.ONNX).parent)
    with watch.stage("export", "ONNX and int8, each measured against torch") as say:
        validation = _logits(module, encoder, rows, torch.device("cpu"), recipe)
        exported = _export(scales, module, encoder, rows, calibration_rows, validation, partial, watch)
        say(str(exported.report["served_reason"]))
    report = {**before, "recipe": recipe.model_dump(mode="json"), "export": exported.report}
    report["run"] = {**before["run"], "recipe_hash": assembly.describe_run(recipe, data.fingerprint)["recipe_hash"]}
    with watch.stage("evaluation", "the served form"):
        report["metrics"] = before["metrics"] | _measure_forms(scales, report, validation, exported, partial)
    return report


def _export(
    scales: Scales, module: nn.Module, encoder: Encoder, rows: Sequence[Any], calibration_rows: Sequence[Any],
    validation: np.ndarray, partial: Path, watch: Watch,
) -> ExportResult:  # fmt: skip
    """The ONNX and int8 forms in `partial`, measured on validation rows."""
    recipe, labels = scales.recipe, scales.data.validation.labels
    settings, task = recipe.export, TASKS[recipe.task]
    plan = ExportPlan(
        tolerance=settings.tolerance,
        max_drop=settings.max_drop,
        int8_mode=settings.int8.mode,
        int8_cpu=settings.int8.cpu,
        int8_max_drop=settings.int8.max_drop,
        int8_min_agreement=settings.int8.min_agreement,
        calibration_rows=settings.int8.calibration_rows,
        bitsandbytes=settings.bitsandbytes,
    )
    return export_all(
        module, partial, rows, labels, encoder,
        kind=MODALITIES[task.modality].export, plan=plan, judge=judge_by(task.target.name, recipe.evaluation.metric, labels),
        torch_logits=validation, model_folder=partial / files.MODEL_FOLDER, training_rows=calibration_rows,
        progress=lambda text: watch.tell(Notice(text)),
    )  # fmt: skip


def _measure_forms(
    scales: Scales, report: Mapping[str, Any], validation: np.ndarray, exported: ExportResult, partial: Path
) -> dict[str, Any]:
    """Each form on validation, and the served one on test, answering as it will in service: through a Predictor."""
    data = scales.data
    files.seal(partial, assembly.manifest_facts(scales.recipe, report))
    served = Predictor(partial, verify=False).logits(data.test.inputs)
    logits = {"torch": validation, **exported.logits}
    return {
        "test_served": scales.measure(served, data.test),
        "validation": {
            form: scales.measure(logits[form], data.validation) if form in logits else None
            for form in ("torch", "onnx", "int8")
        },
    }


def _baselines(scales: Scales) -> dict[str, Any]:
    recipe = scales.recipe
    task, limit = TASKS[recipe.task], recipe.data.max_pixels
    return baselines(task, scales.data, scales.metrics, recipe.seed, max_pixels=limit)


def _samples(
    scales: Scales, setup: Setup, test: np.ndarray, calibration: Mapping[str, Any] | None, partial: Path
) -> dict[str, Any]:
    """report["samples"]: the hardest test rows, with pictures where the inputs are pictures."""
    recipe, data = scales.recipe, scales.data
    task = TASKS[recipe.task]
    picture, heat = MODALITIES[task.modality].pictures(setup)
    return collect_samples(
        partial, data.test, test / (calibration or {}).get("temperature", 1.0),
        scales.judge.hardness(test, data.test.labels), recipe.evaluation.samples,
        target=task.target.name, labels=data.labels, picture=picture, heat=heat, gradcam=recipe.evaluation.gradcam,
    )  # fmt: skip


def _logits(
    module: nn.Module, encoder: Encoder, rows: Sequence[Any], device: torch.device, recipe: Recipe
) -> np.ndarray:
    """Logits (N, C) in fp32."""
    lengths, size = [encoder.size_of(row) for row in rows], recipe.train.eval_batch_size
    return in_order(predict_logits(module.to(device), rows, lengths, encoder.collate, batch_size=size, device=device))

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
from finetune.data import LabelledData, prepare_data
from finetune.environment import describe_environment
from finetune.errors import BundleError
from finetune.evaluation import EVALUATIONS, Evaluation
from finetune.export import ExportPlan, ExportRequest, ExportResult, judge_by
from finetune.modality import MODALITIES, Setup
from finetune.modality.spec import Finished, Modality
from finetune.model.quiet import quiet_transformers
from finetune.preflight import Checked, find_data
from finetune.preprocess import Encoder
from finetune.recipe import Recipe
from finetune.release.shown_data import passages_shown, with_samples
from finetune.result import Report
from finetune.tasks import TASKS, TaskSpec
from finetune.train.events import Callback
from finetune.train.job import Result, Rows
from finetune.train.predict import in_order, predict_answers
from finetune.watch import Watch


@dataclass(frozen=True)
class Scales:
    """The rows of a run and the metrics that every form of its model is weighed with."""

    recipe: Recipe
    data: LabelledData

    @property
    def task(self) -> TaskSpec:
        """The recipe's entry of TASKS."""
        return TASKS[self.recipe.task]

    @property
    def modality(self) -> Modality:
        """The entry of MODALITIES of its inputs."""
        return MODALITIES[self.task.modality]

    @property
    def judge(self) -> Evaluation:
        """How answers of the recipe's target are judged."""
        return EVALUATIONS[self.task.target.name]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metric that chooses, then those that are reported, each once."""
        return tuple(dict.fromkeys([self.recipe.evaluation.metric, *self.recipe.evaluation.metrics]))

    def measure(self, answers: np.ndarray, rows: Rows) -> dict[str, Any]:
        """All that the report says about the answers to some rows."""
        answers = self.modality.by_input(answers, rows)
        names, seed = self.data.labels, self.recipe.seed
        return self.judge.evaluate(answers, rows.labels, names, self.metrics, seed=seed, weights=rows.weights)

    def calibrate(self, validation: np.ndarray, test: np.ndarray) -> dict[str, Any] | None:
        """report["calibration"]: fitted on validation rows, measured on test rows."""
        if self.judge.calibrate is None or not self.recipe.evaluation.calibration:
            return None
        ours, theirs = self.data.validation, self.data.test
        bins = self.recipe.evaluation.calibration_bins
        return self.judge.calibrate(
            validation,
            ours.labels,
            test,
            theirs.labels,
            bins,
            validation_weights=ours.weights,
            test_weights=theirs.weights,
        )


def deliver(
    recipe: Recipe, checked: Checked, data: LabelledData, setup: Setup, trained: Result,
    device: torch.device, processes: int, watch: Watch, *, overwrite: bool,
) -> Report:  # fmt: skip
    """Turn the network that training left behind into a published bundle; GateError if it is worse than allowed."""
    encoder, scales = setup.encoder, Scales(recipe, data)
    partial = files.start(checked.workspace.bundle)
    transfer = assembly.describe_transfer(recipe, setup.model, trained)
    module = scales.modality.finish(recipe, setup, partial)
    with watch.stage("evaluation", "validation rows, in full precision"):
        validation = _answers(scales, module, encoder, setup.validation, device)
        test_rows = scales.modality.rows(recipe, encoder, data.test)
    with watch.stage("export", "ONNX and int8, each measured against torch") as say:
        assembly.write_model(partial, recipe, setup, module, data.labels)
        module.to("cpu")
        exported = _export(scales, module, encoder, setup.validation, setup.calibration, validation, partial, watch)
        say(str(exported.report["served_reason"]))
    with watch.stage("evaluation", "the test split, once"):
        test = _answers(scales, module, encoder, test_rows, device)
        calibration = scales.calibrate(validation, test)
        assembly.write_preprocessing(partial, recipe, encoder, calibration)
        finished = Finished(
            recipe, data, setup, module, partial, test_rows, test, scales.metrics, scales.measure, calibration, str(device),
            tell=watch.step,
        )  # fmt: skip
        report: dict[str, Any] = {
            "format": 1,
            "run": assembly.describe_run(recipe, data.fingerprint),
            "recipe": recipe.model_dump(mode="json"),
            "backbone": assembly.describe_backbone(recipe, checked, setup),
            "data": assembly.describe_data(recipe, checked, data, setup),
            "audit": data.audit,
            "transfer": transfer,
            "history": trained.history,
            "metrics": {"primary": recipe.evaluation.metric, "test": scales.measure(test, test_rows)},
            "calibration": calibration,
            "baselines": None,
            "samples": None,
            "export": exported.report,
            **scales.modality.report(finished),
        }
        report["license"] = with_samples(checked.license, report["samples"], passages_shown(report))
        # Late, for its peak of memory is that of the whole run.
        report["environment"] = describe_environment(str(device), processes)
        report["metrics"] |= _measure_forms(scales, report, validation, setup.validation, exported, partial, test_rows)
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
    scales = Scales(recipe, data)
    modality = scales.modality
    rows, test_rows = (modality.rows(recipe, encoder, split) for split in (data.validation, data.test))
    calibration_rows = modality.calibration_rows(recipe, data, encoder)
    shutil.rmtree((partial / files.ONNX).parent)
    with watch.stage("export", "ONNX and int8, each measured against torch") as say:
        validation = _answers(scales, module, encoder, rows, torch.device("cpu"))
        exported = _export(scales, module, encoder, rows, calibration_rows, validation, partial, watch)
        say(str(exported.report["served_reason"]))
    report = {**before, "recipe": recipe.model_dump(mode="json"), "export": exported.report}
    report["run"] = {**before["run"], "recipe_hash": assembly.describe_run(recipe, data.fingerprint)["recipe_hash"]}
    with watch.stage("evaluation", "the served form"):
        report["metrics"] = before["metrics"] | _measure_forms(
            scales, report, validation, rows, exported, partial, test_rows
        )
    return report


def _export(
    scales: Scales, module: nn.Module, encoder: Encoder, rows: Rows, calibration: Sequence[Any],
    validation: np.ndarray, partial: Path, watch: Watch,
) -> ExportResult:  # fmt: skip
    """The ONNX and int8 forms in `partial`, measured on validation rows."""
    settings, metric = scales.recipe.export, scales.recipe.evaluation.metric
    plan = ExportPlan(
        tolerance=settings.tolerance,
        max_drop=settings.max_drop,
        int8_mode=settings.int8.mode,
        int8_cpu=settings.int8.cpu,
        int8_max_drop=settings.int8.max_drop,
        int8_min_agreement=settings.int8.min_agreement,
        prompt_tokens=settings.prompt_tokens,
        bitsandbytes=settings.bitsandbytes,
    )
    judge = judge_by(scales.task.target.name, metric, rows.labels)
    given = ExportRequest(
        module, partial, rows.inputs, rows.labels, encoder, plan, judge,
        answers=validation, calibration=calibration, progress=watch.step, weights=rows.weights,
    )  # fmt: skip
    return scales.modality.export(given)


def _measure_forms(
    scales: Scales, report: Mapping[str, Any], validation: np.ndarray, rows: Rows, exported: ExportResult,
    partial: Path, test_rows: Rows,
) -> dict[str, Any]:  # fmt: skip
    """Each form on validation, and the served one on test, answering as it will in service."""
    files.seal(partial, assembly.manifest_facts(scales.recipe, report))
    served = scales.modality.served(partial, scales.data.test, test_rows)
    answers = {"torch": validation, **exported.logits}
    return {
        "test_served": scales.measure(served, test_rows),
        "validation": {
            form: scales.measure(answers[form], rows) if form in answers else None for form in ("torch", "onnx", "int8")
        },
    }


def _answers(scales: Scales, module: nn.Module, encoder: Encoder, rows: Rows, device: torch.device) -> np.ndarray:
    """What the target keeps of the network's logits in fp32: (N, C), or tallies (N, 3) of a language model."""
    found = predict_answers(
        module.to(device), rows.inputs, rows.lengths, rows.labels, encoder.collate,
        answers=scales.task.target.answers, batch_size=scales.recipe.train.eval_batch_size, device=device,
    )  # fmt: skip
    return in_order(found)

"""The story: one recipe in, one verified bundle out."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from finetune import assembly
from finetune import bundle as files
from finetune.data import Split, TextData, prepare_text
from finetune.errors import Interrupted
from finetune.evaluation.baselines import majority_baseline, tfidf_baseline
from finetune.evaluation.calibration import calibration_report
from finetune.evaluation.metrics import evaluate_classification, higher_is_better, score
from finetune.export import ExportResult, export_all
from finetune.model.backbone import TransferModel, convert_pickle, load_backbone
from finetune.model.tokenizer import load_tokenizer, text_preprocess
from finetune.preflight import Checked, preflight
from finetune.preprocess import Encoded, TextEncoder
from finetune.recipe import Recipe, recipe_hash, training_hash
from finetune.result import Report
from finetune.serve import Predictor
from finetune.sources import local_model
from finetune.tasks import TASKS
from finetune.train.checkpoint import CheckpointFolder
from finetune.train.device import deterministic, make_accelerator
from finetune.train.events import Callback, EpochEnded, Event, Notice, StageEnded, StageStarted
from finetune.train.job import Job, Result, Rows
from finetune.train.loop import fit
from finetune.train.predict import in_order, predict_logits
from finetune.transfer.plan import build_plan

logger = logging.getLogger(__name__)


def run(
    recipe: Recipe, *, resume: bool = False, overwrite: bool = False,
    callbacks: Sequence[Callback] = (), stop: Callable[[], bool] = lambda: False,
) -> Report:  # fmt: skip
    """Run a recipe from data to bundle.

    resume: go on from the run's last checkpoint, if there is one; overwrite: replace a bundle that is already there;
    callbacks: called with every event of finetune.train.events; stop: asked at step boundaries, true ends the run with a
    checkpoint (Interrupted). Raises a FinetuneError that says what is wrong and how to mend it.
    """
    watch = Watch(callbacks, stop)
    if resume and (done := _finished(recipe)):
        return done
    with watch.stage("checks", "sources, licences, columns, space"):
        checked = preflight(recipe, overwrite=overwrite)
    accelerator = make_accelerator(precision=recipe.train.precision, device=recipe.train.device)
    with deterministic(recipe.seed), _main_process_locks(accelerator, checked):
        with watch.stage("data", checked.data.name) as say:
            data = prepare_text(recipe.data, checked.data, checked.named, recipe.seed)
            say(f"{len(data.train):,} / {len(data.validation):,} / {len(data.test):,} rows, {len(data.labels)} labels")
        for warning in data.audit["warnings"]:
            watch.tell(Notice(warning))
        with watch.stage("model", checked.backbone.name) as say:
            setup = _set_up(recipe, checked, data)
            say(
                f"{setup.model.architecture}, {setup.model.parameters / 1e6:.1f} M parameters in {len(setup.model.groups)} layer groups"
            )
        with watch.stage("training"):
            trained = _train(recipe, checked, data, setup, accelerator, watch, resume=resume)
        if accelerator.is_main_process:
            report = _deliver(recipe, checked, data, setup, trained, accelerator, watch, overwrite=overwrite)
    accelerator.wait_for_everyone()
    return report if accelerator.is_main_process else Report.open(checked.workspace.bundle)


@dataclass(frozen=True)
class Setup:
    """The backbone with its new head, its tokenizer, and the rows as the network takes them."""

    folder: Path
    model: TransferModel
    tokenizer: Any
    encoder: TextEncoder
    train: list[Encoded]
    validation: list[Encoded]


@dataclass
class Watch:
    """Tells callbacks what happens, keeps the time of each stage, and passes on a wish to stop."""

    callbacks: Sequence[Callback]
    stop: Callable[[], bool]
    timings: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    def tell(self, event: Event) -> None:
        for callback in self.callbacks:
            callback(event)

    @contextmanager
    def stage(self, name: str, detail: str = "") -> Iterator[Callable[[str], None]]:
        if self.stop():
            raise Interrupted(f"stopped before {name}")
        self.tell(StageStarted(name, detail))
        logger.info("%s: %s", name, detail)
        began, summary = time.perf_counter(), [""]
        yield lambda text: summary.__setitem__(0, text)
        seconds = time.perf_counter() - began
        self.timings[name] = self.timings.get(name, 0.0) + seconds
        self.tell(StageEnded(name, seconds, summary[0]))


def _set_up(recipe: Recipe, checked: Checked, data: TextData) -> Setup:
    """Load the backbone with a head for these labels, and turn train and validation texts into ids."""
    folder = local_model(checked.backbone, allow_pickle=recipe.backbone.allow_pickle)
    if not any(folder.glob("*.safetensors")):
        folder = convert_pickle(folder, checked.workspace.state / "backbone")
    tokenizer = load_tokenizer(folder)
    model = load_backbone(
        folder, data.labels, auto_class=TASKS[recipe.task].auto_class,
        dropout=recipe.head.dropout, seed=recipe.seed, pad_token_id=int(tokenizer.pad_token_id),
    )  # fmt: skip
    settings = text_preprocess(tokenizer, type(model.module), recipe.data.max_length)
    saved = checked.workspace.state / "tokenizer"
    tokenizer.save_pretrained(saved)
    encoder = TextEncoder(saved / "tokenizer.json", settings)
    return Setup(
        folder, model, tokenizer, encoder, encoder.encode(data.train.texts), encoder.encode(data.validation.texts)
    )


def _train(
    recipe: Recipe,
    checked: Checked,
    data: TextData,
    setup: Setup,
    accelerator: Accelerator,
    watch: Watch,
    *,
    resume: bool,
) -> Result:
    """Run the plan of phases; the best weights are left in the network."""
    task, metric = TASKS[recipe.task], recipe.evaluation.metric
    job = Job(
        model=setup.model,
        plan=build_plan(recipe.transfer, recipe.train, len(setup.model.groups)),
        train=_rows(setup.train, data.train),
        validation=_rows(setup.validation, data.validation),
        collate=setup.encoder.collate,
        task=task,
        settings=recipe.train,
        l2sp=recipe.transfer.l2sp,
        class_weights=task.class_weights(recipe.train.class_weights, data.train.labels, data.labels),
        score=lambda logits, labels: score(metric, logits, labels),
        validation_loss=lambda logits, labels: score("loss", logits, labels),
        higher_is_better=higher_is_better(metric),
        seed=recipe.seed,
    )
    workspace = checked.workspace
    key = {"recipe": training_hash(recipe), "data": data.fingerprint, "number_of_processes": accelerator.num_processes}
    checkpoints = CheckpointFolder(workspace.checkpoints, key)
    tell = watch.tell
    if accelerator.is_main_process:
        if not resume:
            checkpoints.clear()
            workspace.history.unlink(missing_ok=True)
        tell = _with_logs(recipe, workspace.history, workspace.events, watch.tell)
    return fit(job, accelerator, checkpoints, resume=resume, emit=tell, stop=watch.stop)


def _deliver(
    recipe: Recipe,
    checked: Checked,
    data: TextData,
    setup: Setup,
    trained: Result,
    accelerator: Accelerator,
    watch: Watch,
    *,
    overwrite: bool,
) -> Report:
    """Evaluate, export, judge and write: everything that one process does alone."""
    names, primary = recipe.evaluation.metrics, recipe.evaluation.metric
    metrics = tuple(dict.fromkeys([primary, *names]))
    partial = files.start(checked.workspace.bundle)

    def measure(logits: np.ndarray, split: Split) -> dict[str, Any]:
        return evaluate_classification(logits, split.labels, data.labels, metrics, seed=recipe.seed)

    with watch.stage("evaluation", "validation rows, in full precision"):
        validation = _logits(setup, setup.validation, accelerator, recipe.train.eval_batch_size)
    setup.model.module.to("cpu")
    with watch.stage("export", "ONNX and int8, each measured against torch") as say:
        assembly.write_model(partial, setup.model, setup.tokenizer, setup.encoder.settings, data.labels)
        exported = _export(recipe, setup, data, validation, partial, watch)
        say(exported.report["served_reason"])
    with watch.stage("evaluation", "the test split, once"):
        test_rows = setup.encoder.encode(data.test.texts)
        test = _logits(setup, test_rows, accelerator, recipe.train.eval_batch_size)
        calibration = (
            calibration_report(
                validation, data.validation.labels, test, data.test.labels, recipe.evaluation.calibration_bins
            )
            if recipe.evaluation.calibration
            else None
        )
        files.write_preprocessing(partial, setup.encoder.settings, calibration["temperature"] if calibration else 1.0)
        report: dict[str, Any] = {
            "format": 1,
            "run": assembly.describe_run(recipe, data.fingerprint),
            "environment": assembly.environment(str(accelerator.device), accelerator.num_processes),
            "recipe": recipe.model_dump(mode="json"),
            "backbone": assembly.describe_backbone(recipe, checked, setup.folder, setup.model),
            "data": assembly.describe_data(recipe, checked, data, setup.train),
            "audit": data.audit,
            "transfer": assembly.describe_transfer(recipe, setup.model, trained.phases),
            "history": trained.history,
            "metrics": {"primary": primary, "test": measure(test, data.test)},
            "calibration": calibration,
            "baselines": _baselines(recipe, data, metrics) if recipe.evaluation.baselines else None,
            "export": exported.report,
            "license": checked.license,
        }
        files.seal(partial, assembly.manifest_facts(recipe, report))
        served = Predictor(partial, verify=False).logits(data.test.texts)
        report["metrics"]["test_served"] = measure(served, data.test)
        by_stage = {"torch": validation, **exported.logits}
        report["metrics"]["validation"] = {
            stage: measure(by_stage[stage], data.validation) if stage in by_stage else None
            for stage in ("torch", "onnx", "int8")
        }
    with watch.stage("report", "card, report and manifest"):
        timings = {"audit": data.audit["seconds"], **watch.timings}
        report["timings_s"] = {
            **{k: round(v, 3) for k, v in timings.items()},
            "total": round(time.perf_counter() - watch.began, 3),
        }
        assembly.finish_bundle(partial, recipe, report, assembly.collect_upstream(checked, setup.folder))
        files.publish(partial, checked.workspace.bundle, overwrite=overwrite)
    CheckpointFolder(checked.workspace.checkpoints, {}).clear()
    return Report(checked.workspace.bundle, report)


def _export(
    recipe: Recipe, setup: Setup, data: TextData, validation: np.ndarray, partial: Path, watch: Watch
) -> ExportResult:
    metric, settings = recipe.evaluation.metric, recipe.export
    return export_all(
        setup.model.module,
        partial,
        setup.validation,
        data.validation.labels,
        setup.encoder,
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


def _logits(setup: Setup, rows: list[Encoded], accelerator: Accelerator, batch_size: int) -> np.ndarray:
    """Logits (N, C) of this process's network, in fp32."""
    module = setup.model.module.to(accelerator.device)
    lengths = [len(row.ids) for row in rows]
    return in_order(
        predict_logits(module, rows, lengths, setup.encoder.collate, batch_size=batch_size, device=accelerator.device)
    )


def _baselines(recipe: Recipe, data: TextData, metrics: Sequence[str]) -> dict[str, Any]:
    train, test = data.train, data.test
    return {
        "majority": majority_baseline(train.labels, test.labels, data.labels, metrics),
        "tfidf_logreg": tfidf_baseline(train.texts, train.labels, test.texts, test.labels, metrics, recipe.seed),
    }


def _rows(encoded: list[Encoded], split: Split) -> Rows:
    return Rows(encoded, [len(row.ids) for row in encoded], split.labels)


def _with_logs(recipe: Recipe, history: Path, events: Path, tell: Callback) -> Callback:
    """Also write each epoch as a line of history.jsonl, and as TensorBoard events if the recipe asks."""
    board: Callback | None = None
    if recipe.train.tensorboard:
        from finetune.train.tensorboard import TensorBoardLog

        board = TensorBoardLog(events)

    def log(event: Event) -> None:
        if isinstance(event, EpochEnded):
            with history.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event.record, allow_nan=False) + "\n")
        if board is not None:
            board(event)
        tell(event)

    return log


@contextmanager
def _main_process_locks(accelerator: Accelerator, checked: Checked) -> Iterator[None]:
    if not accelerator.is_main_process:
        yield
        return
    with checked.workspace.locked():
        yield


def _finished(recipe: Recipe) -> Report | None:
    """The result of a run of this very recipe that is already complete."""
    from finetune.workspace import Workspace

    bundle = Workspace.of(recipe.name, recipe.output).bundle
    if not (bundle / files.MANIFEST).is_file():
        return None
    report = Report.open(bundle)
    return report if report.data["run"]["recipe_hash"] == recipe_hash(recipe) else None

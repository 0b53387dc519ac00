"""The story: one recipe in, one verified bundle out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from importlib.metadata import version

from accelerate import Accelerator

from finetune import bundle as files
from finetune.data import LabelledData, prepare_data
from finetune.delivery import deliver
from finetune.disk import reading, writing
from finetune.evaluation import EVALUATIONS
from finetune.modality import MODALITIES, Setup
from finetune.model.scale import fold_scale
from finetune.preflight import Checked, preflight
from finetune.recipe import Recipe, recipe_hash, training_hash
from finetune.result import Report
from finetune.train.checkpoint import CheckpointFolder
from finetune.train.device import deterministic, make_accelerator
from finetune.train.events import Callback, EpochEnded, Event, Notice, TrainingResumed
from finetune.train.job import Job, Result
from finetune.train.loop import fit
from finetune.train.processes import company
from finetune.transfer.plan import build_plan
from finetune.transfer.scale import Scale, scale_of
from finetune.watch import Watch
from finetune.workspace import Workspace

ANSWERS = {
    "single_label": ", {} labels",
    "multi_label": ", {} labels",
    "regression": ", a number each",
    "next_token": " of text",
}
"""What the rows of a target have to say, for the console."""


def run(
    recipe: Recipe, *, resume: bool = False, overwrite: bool = False,
    callbacks: Sequence[Callback] = (), stop: Callable[[], bool] = lambda: False,
) -> Report:  # fmt: skip
    """Run a recipe from data to bundle.

    resume: go on from the run's last checkpoint, if there is one; overwrite: replace a bundle that is already there, and
    without resume discard an unfinished run, which is refused otherwise;
    callbacks: called with every event of finetune.train.events; stop: asked at step boundaries, true ends the run with a
    checkpoint (Interrupted). Raises a FinetuneError that says what is wrong and how to mend it.
    """
    watch = Watch(callbacks, stop)
    if resume and (done := _finished(recipe, overwrite=overwrite)):
        watch.tell(Notice(f"{done.bundle}: this run was complete already, so nothing was done"))
        return done
    with watch.stage("checks", "sources, licences, columns, space"):
        checked = preflight(recipe, resume=resume, overwrite=overwrite)
        if resume and checked.workspace.how_far is None:
            watch.tell(Notice(f"nothing to resume in {checked.workspace.state}, so it starts from the beginning"))
    accelerator = make_accelerator(precision=recipe.train.precision, device=recipe.train.device)
    with deterministic(recipe.seed), company() as processes, _main_process_locks(accelerator, checked):
        with watch.stage("data", checked.data.name) as say:
            data = prepare_data(checked.task, recipe.data, checked.data, checked.named, recipe.seed)
            answers = ANSWERS[checked.task.target.name].format(len(data.labels))
            say(f"{len(data.train):,} / {len(data.validation):,} / {len(data.test):,} rows{answers}")
        for warning in data.audit["warnings"]:
            watch.tell(Notice(warning))
        with watch.stage("model", checked.backbone.name) as say:
            scale = scale_of(checked.task.target.name, data.train.labels)
            setup = MODALITIES[checked.task.modality].set_up(recipe, checked, data, scale, accelerator)
            model = setup.model
            say(f"{model.architecture}, {model.parameters / 1e6:.1f} M parameters in {len(model.groups)} layer groups")
        for note in setup.notes:
            watch.tell(Notice(note))
        with watch.stage("training"):
            trained = _train(recipe, checked, data, setup, scale, accelerator, watch, resume=resume)
            if scale != Scale():
                fold_scale(model.module, model.fresh, scale.mean, scale.std)
        report = processes.main_alone(
            lambda: _delivered(recipe, checked, data, setup, trained, accelerator, watch, overwrite=overwrite)
        )
    return report or Report.open(checked.workspace.bundle)


def _delivered(
    recipe: Recipe, checked: Checked, data: LabelledData, setup: Setup, trained: Result,
    accelerator: Accelerator, watch: Watch, *, overwrite: bool,
) -> Report:  # fmt: skip
    """The published bundle; what was kept to go on from is removed, since nothing is left to do."""
    report = deliver(
        recipe, checked, data, setup, trained, accelerator.device, accelerator.num_processes, watch, overwrite=overwrite
    )
    CheckpointFolder(checked.workspace.checkpoints, {}).clear()
    checked.workspace.forget_converted()
    return report


def _train(
    recipe: Recipe, checked: Checked, data: LabelledData, setup: Setup, scale: Scale,
    accelerator: Accelerator, watch: Watch, *, resume: bool,
) -> Result:  # fmt: skip
    """Run the plan of phases; the best weights are left in the network."""
    target, metric = checked.task.target, recipe.evaluation.metric
    judge, counted = EVALUATIONS[target.name], setup.validation.weights
    job = Job(
        model=setup.model,
        plan=build_plan(recipe.transfer, recipe.train, len(setup.model.groups)),
        train=setup.train,
        plain=setup.plain,
        validation=setup.validation,
        collate=setup.encoder.collate,
        task=checked.task,
        settings=recipe.train,
        l2sp=recipe.transfer.l2sp,
        class_weights=target.class_weights(
            recipe.train.class_weights, data.train.labels, data.labels, data.train.weights
        ),
        score=lambda logits, labels: judge.score(metric, scale.up(logits), labels, counted),
        validation_loss=lambda logits, labels: judge.score("loss", scale.up(logits), labels, counted),
        higher_is_better=judge.higher_is_better(metric),
        seed=recipe.seed,
        row_weights=data.train.weights,
        batchnorm=recipe.transfer.batchnorm,
        workers=setup.workers,
        collate_of_phase=setup.collate_of_phase,
    )
    workspace = checked.workspace
    key = {
        "recipe": training_hash(recipe),
        "data": data.fingerprint,
        "number_of_processes": accelerator.num_processes,
        "torch_version": version("torch"),
        "precision": accelerator.mixed_precision,
    }
    checkpoints = CheckpointFolder(workspace.checkpoints, key, recipe)
    if not accelerator.is_main_process:
        return fit(job, accelerator, checkpoints, resume=resume, emit=watch.tell, stop=watch.stop)
    if not resume:
        checkpoints.clear()
        with writing(workspace.history):
            workspace.history.unlink(missing_ok=True)
    with _logged(recipe, workspace, watch.tell) as tell:
        return fit(job, accelerator, checkpoints, resume=resume, emit=tell, stop=watch.stop)


@contextmanager
def _logged(recipe: Recipe, workspace: Workspace, tell: Callback) -> Iterator[Callback]:
    """A callback that also writes each epoch as a line of history.jsonl, and as TensorBoard events if the recipe asks."""
    with ExitStack() as stack:
        board: Callback | None = None
        if recipe.train.tensorboard:
            from finetune.train.tensorboard import TensorBoardLog

            board = stack.enter_context(closing(TensorBoardLog(workspace.events)))

        def log(event: Event) -> None:
            if isinstance(event, TrainingResumed):
                # A run that was killed may have logged an epoch that its last checkpoint does not hold.
                lines = [json.dumps(record, allow_nan=False) + "\n" for record in event.history]
                with writing(workspace.history):
                    workspace.history.write_text("".join(lines), "utf-8")
            if isinstance(event, EpochEnded):
                with writing(workspace.history), workspace.history.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(event.record, allow_nan=False) + "\n")
            if board is not None:
                board(event)
            tell(event)

        yield log


@contextmanager
def _main_process_locks(accelerator: Accelerator, checked: Checked) -> Iterator[None]:
    if not accelerator.is_main_process:
        yield
        return
    with checked.workspace.locked():
        yield


def _finished(recipe: Recipe, *, overwrite: bool) -> Report | None:
    """The result of a run of this very recipe that is already complete, unless one that shall replace it is under way."""
    workspace = Workspace.of(recipe.name, recipe.output)
    with reading(workspace.bundle):
        found = (workspace.bundle / files.MANIFEST).is_file()
    if not found or (overwrite and workspace.how_far is not None):
        return None
    report = Report.open(workspace.bundle)
    return report if report.data["run"]["recipe_hash"] == recipe_hash(recipe) else None

"""What can be known before training, said before training: sources, columns, labels, metrics, licences, space, schedule.

Imports no torch, transformers or datasets, so that `finetune validate` answers at once.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.data import Inspection, inspect_data
from finetune.disk import require_space
from finetune.errors import RecipeError, SourceError
from finetune.gguf_metadata import is_gguf, read_gguf
from finetune.model.limits import longest_input
from finetune.recipe import Recipe
from finetune.release.license import card_evidence, judge, require_allowed, resolve_component
from finetune.source_cards import find_card, read_card_metadata
from finetune.sources import (
    Source,
    check_bare_weights,
    check_model_files,
    find_source,
    hub_card_metadata,
)
from finetune.tasks import TASKS, TaskSpec
from finetune.train.checkpoint_files import require_same_recipe
from finetune.transfer.plan import Plan, build_plan
from finetune.workspace import Input, Workspace

# Room for the bundle (torch, ONNX and int8 forms) and one checkpoint with its predecessor, in multiples of the weights.
BUNDLE_SIZES, CHECKPOINT_SIZES = 2.5, 10.0
FP32 = 4


@dataclass(frozen=True)
class Checked:
    """A recipe whose parts were found and whose rules hold.

    task: the recipe's entry of TASKS; named: splits that the user named, by split; plan: the phases, if the backbone's depth is known without loading it.
    """

    task: TaskSpec
    backbone: Source
    data: Source
    named: Mapping[str, Source | str]
    license: Mapping[str, Any]
    inspection: Inspection
    workspace: Workspace
    plan: Plan | None
    steps: tuple[int, ...] = ()
    notes: tuple[str, ...] = field(default=())


def preflight(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> Checked:
    """Check a recipe against the world; the first thing that is wrong is raised as a FinetuneError.

    resume, overwrite: what the run that is checked may do with what an earlier one left. Nothing is written.
    """
    task, workspace = TASKS[recipe.task], Workspace.of(recipe.name, recipe.output)
    check_place(recipe, resume=resume, overwrite=overwrite)
    if resume:  # a run of this recipe that is complete was found before, so a bundle here is another's
        workspace.require_free(overwrite=overwrite)
    _require_packages(recipe)
    backbone = find_source(recipe.backbone.name, revision=recipe.backbone.revision, kind="model")
    _check_backbone(recipe, backbone)
    data, named = find_data(recipe)
    license_report = judge_parts(recipe, backbone, data)
    require_allowed(license_report)
    inspection = inspect_data(task, recipe.data, data, named)
    plan = _static_plan(recipe, backbone)
    if backbone.path is not None:
        INPUT_CHECKS[task.modality](recipe, backbone.path)
        require_space(workspace.bundle, _space_needed(recipe, backbone.path), f"run '{recipe.name}'")
    _check_metrics(recipe, task, inspection)
    return Checked(
        task, backbone, data, named, license_report, inspection, workspace, plan,
        steps=_steps(recipe, plan, inspection), notes=inspection.notes,
    )  # fmt: skip


def check_place(recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """BundleError unless the run may write where it shall; RecipeError if what it would resume is another recipe's.

    To resume a finished run is no mistake, so that a bundle is there is not said then.
    """
    workspace = Workspace.of(recipe.name, recipe.output)
    workspace.require_replaceable(_inputs(recipe))
    if resume:
        require_same_recipe(workspace.checkpoints, recipe)
    else:
        workspace.require_free(overwrite=overwrite)
        if not overwrite:
            workspace.require_fresh()
    workspace.require_writable()


def _inputs(recipe: Recipe) -> dict[str, Input]:
    """What a run reads from this machine, by key.

    Its result may lie inside a folder of all sorts, such as the project that the command runs in or the root of a table's
    images, but not in one of documents, each of which would be read, nor among class folders or a model's files.
    """
    here, documents = Path.cwd(), TASKS[recipe.task].modality == "language"
    general, splits = recipe.evaluation.general, recipe.data.splits
    named: dict[str, object] = {
        "backbone.name": recipe.backbone.name,
        "data.source": recipe.data.source,
        "data.image_root": recipe.data.image_root,
        **{f"data.splits.{split}": getattr(splits, split) for split in ("train", "validation", "test")},
        "evaluation.general.source": general and general.source,
    }
    found = {}
    for key, name in named.items():
        if isinstance(name, str) and (path := _existing(name)) is not None:
            project = here.is_relative_to(path.resolve()) and not (documents and key != "backbone.name")
            found[key] = Input(path, open=project or key == "data.image_root")
    return found


def _existing(name: str) -> Path | None:
    """The path that a source's name stands for, if it is one that exists; a package's files are nobody's to lose."""
    try:
        path = Path(name).expanduser()
        return path if not name.startswith("package:") and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # no path at all: what looks for the source says so
        return None


def judge_parts(recipe: Recipe, backbone: Source, data: Source) -> Mapping[str, Any]:
    """report["license"]: the licences of backbone and data under the recipe's intended use."""
    parts = []
    for role, source, kind, assertion in (
        ("backbone", backbone, "model", recipe.license.backbone),
        ("data", data, "dataset", recipe.license.data),
    ):
        local = source.path is not None
        metadata = read_card_metadata(source.path) if local else hub_card_metadata(source, kind)  # type: ignore[arg-type]
        card = find_card(source.path)
        if not local:
            evidence = f"the hub's card at revision {source.revision}"
        elif card is None and metadata and source.path is not None:
            evidence = f"the metadata of {source.path.name}"
        else:
            evidence = card_evidence(card, revision=source.revision, package=source.package)
        parts.append(resolve_component(role, source.name, metadata, assertion, evidence=evidence))
    return judge(parts, recipe.license.use, recipe.license.reviewed)


def find_data(recipe: Recipe) -> tuple[Source, dict[str, Source | str]]:
    """The data source, and the source or hub split name of every split that the user named."""
    try:
        data = find_source(recipe.data.source, kind="dataset")
    except SourceError as error:
        raise SourceError(f"data.source: {error}") from error
    return data, _named_splits(recipe, data)


def _check_backbone(recipe: Recipe, backbone: Source) -> None:
    """A model folder, or a file of bare weights with the architecture that they belong to."""
    settings, language = recipe.backbone, TASKS[recipe.task].modality == "language"
    if language and backbone.kind == "file" and not backbone.is_gguf:
        raise SourceError(
            f"backbone '{backbone.name}': a language model is a model folder or a GGUF file; name one of them"
        )
    check_bare_weights(
        backbone, architecture=settings.architecture, rename=settings.rename, allow_pickle=settings.allow_pickle,
        language=language,
    )  # fmt: skip
    if backbone.kind != "file":
        check_model_files(backbone.name, backbone.files, allow_pickle=settings.allow_pickle)


def _require_packages(recipe: Recipe) -> None:
    """Refuse options whose package is not installed, naming the extra that brings it."""
    needs = {
        "train.tensorboard": ("tensorboard", recipe.train.tensorboard),
        "transfer.adapter.base": ("bitsandbytes", recipe.transfer.adapter.base != "fp32"),
        "export.bitsandbytes": ("bitsandbytes", recipe.export.bitsandbytes),
    }
    for key, (package, wanted) in needs.items():
        if wanted and importlib.util.find_spec(package) is None:
            raise RecipeError(
                f"{key}: the package {package} is not installed; run pip install 'finetune-recipes[{package}]'"
            )


def _named_splits(recipe: Recipe, data: Source) -> dict[str, Source | str]:
    """Splits that the user named: a path inside the data source or beside it, or the name of a hub split."""
    named: dict[str, Source | str] = {}
    for split in ("train", "validation", "test"):
        value = getattr(recipe.data.splits, split)
        if not isinstance(value, str):
            continue
        if data.kind == "hub":
            named[split] = value
            continue
        inside = data.path / value if data.path is not None and data.path.is_dir() else None
        try:
            named[split] = find_source(str(inside) if inside is not None and inside.exists() else value, kind="dataset")
        except SourceError as error:
            raise SourceError(f"data.splits.{split}: {error}") from error
    return named


def _static_plan(recipe: Recipe, backbone: Source) -> Plan | None:
    """The plan of phases, from the number of blocks that config.json tells; embeddings and head are a group each."""
    if backbone.path is None or not (backbone.path / "config.json").is_file():
        return None
    config = json.loads((backbone.path / "config.json").read_text("utf-8"))
    blocks = next(
        (config[k] for k in ("num_hidden_layers", "n_layers", "n_layer") if isinstance(config.get(k), int)), None
    )
    # ALBERT shares blocks, Funnel pools between them, and an encoder with a decoder has two lists: not told by one number.
    if (
        blocks is None
        or config.get("is_encoder_decoder")
        or config.get("model_type") in {"albert", "funnel", "bart", "mbart"}
    ):
        return None
    # Adapters leave out the layer groups that they are not in.
    return build_plan(recipe.transfer, recipe.train, blocks + 2) if recipe.transfer.adapter.kind == "none" else None


def _steps(recipe: Recipe, plan: Plan | None, inspection: Inspection) -> tuple[int, ...]:
    """Optimizer steps of each phase, as far as they can be known; every phase needs one after its warm-up."""
    # A language model's step takes blocks, whose number is known only when texts are tokens.
    if plan is None or inspection.rows is None or TASKS[recipe.task].modality == "language":
        return ()
    share = recipe.data.splits.train if not isinstance(recipe.data.splits.train, str) else 1.0
    rows = min(inspection.rows, recipe.data.limit or inspection.rows)
    per_epoch = math.ceil(rows * share / recipe.train.batch_size)
    return tuple(per_epoch * phase.epochs for phase in plan.phases)


def check_length(recipe: Recipe, path: Path) -> None:
    """RecipeError when data.max_length is more than the backbone at `path`, a folder or a GGUF file, can take."""
    limit = longest_input(path)
    if limit is not None and recipe.data.max_length > limit:
        raise RecipeError(
            f"data.max_length: {recipe.data.max_length} tokens, but this backbone takes at most {limit}; lower it"
        )


def general_source(recipe: Recipe) -> Source:
    """The texts of evaluation.general, which the recipe must have; SourceError names the key."""
    assert recipe.evaluation.general is not None
    try:
        return find_source(recipe.evaluation.general.source, kind="dataset")
    except SourceError as error:
        raise SourceError(f"evaluation.general.source: {error}") from error


def _check_language(recipe: Recipe, path: Path) -> None:
    check_length(recipe, path)
    if recipe.evaluation.general is not None:
        general_source(recipe)


def _nothing_to_check(recipe: Recipe, folder: Path) -> None:
    """An image is resized to whatever the backbone takes."""


INPUT_CHECKS: dict[str, Callable[[Recipe, Path], None]] = {
    "text": check_length,
    "image": _nothing_to_check,
    "language": _check_language,
}


def _space_needed(recipe: Recipe, path: Path) -> int:
    """Bytes that a run may need; `path` is a model folder, a file of bare weights, or a GGUF file, which becomes fp32."""
    if is_gguf(path):
        weights = read_gguf(path).parameters * FP32
    else:
        patterns = ("*.safetensors", "pytorch_model*.bin")
        files = [path] if path.is_file() else [file for pattern in patterns for file in path.glob(pattern)]
        weights = sum(file.stat().st_size for file in files)
    # A checkpoint of adapters holds nothing else; the backbone's converted copy takes its place in this sum.
    checkpoints = CHECKPOINT_SIZES if recipe.transfer.adapter.kind == "none" else 1.0
    return int(weights * (BUNDLE_SIZES + checkpoints))


def _check_metrics(recipe: Recipe, task: TaskSpec, inspection: Inspection) -> None:
    names = [name for name in recipe.evaluation.metrics if name.startswith("evaluate:")]
    if names:
        from finetune.evaluation import EVALUATIONS

        classes = len(inspection.labels) if inspection.labels else 2
        EVALUATIONS[task.target.name].check_metrics(
            names, classes=classes, weighted=recipe.data.weight_column is not None
        )

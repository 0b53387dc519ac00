"""Measured facts into report.json, and everything a run made into the files of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from finetune import bundle as files
from finetune.data import LabelledData
from finetune.disk import reading, sha256, write_json, writing
from finetune.environment import command_line, git_commit, now
from finetune.errors import BundleError
from finetune.modality import MODALITIES, Setup
from finetune.model.adapters import describe_adapter
from finetune.model.backbone import TransferModel
from finetune.model.quiet import quiet_transformers
from finetune.preflight import Checked
from finetune.preprocess import Encoder
from finetune.recipe import Recipe, dump_recipe, recipe_hash
from finetune.release.card import render_card, validate_card
from finetune.release.texts import bundle_license_text, notice_text, upstream_texts
from finetune.report.html import render_html
from finetune.source_cards import read_card_metadata
from finetune.tasks import TASKS
from finetune.train.checkpoint import system_errors
from finetune.train.job import Result
from finetune.transfer.l2sp import CONVENTION


def describe_run(recipe: Recipe, fingerprint: str) -> dict[str, Any]:
    """report["run"]."""
    task = TASKS[recipe.task]
    return {
        "name": recipe.name,
        "task": recipe.task,
        "modality": task.modality,
        "target": task.target.name,
        "pipeline_tag": task.pipeline_tag,
        "description": recipe.description,
        "created": now(),
        "seed": recipe.seed,
        "command": command_line(),
        "recipe_hash": recipe_hash(recipe),
        "data_fingerprint": fingerprint,
        "git_commit": git_commit(),
    }


def describe_backbone(recipe: Recipe, checked: Checked, setup: Setup) -> dict[str, Any]:
    """report["backbone"]."""
    source = checked.backbone
    # A file of bare weights is told by its own hash, not by that of the checkpoint made of it.
    bare = [source.path] if source.kind == "file" and source.path is not None else []
    weights = bare or sorted(setup.folder.glob("*.safetensors"))
    return {
        "name": source.name,
        "hub_id": recipe.card.base_model or (source.name.partition("@")[0] if source.kind == "hub" else None),
        "revision": source.revision,
        "package": source.package,
        "architecture": setup.model.architecture,
        "parameters": setup.model.parameters,
        "datasets": datasets_of(read_card_metadata(setup.folder)),
        "weights_sha256": sha256(weights[0]) if len(weights) == 1 else {path.name: sha256(path) for path in weights},
        "license": checked.license["components"][0]["license"],
    }


def datasets_of(card: Mapping[str, Any]) -> list[str]:
    """The data sets that a backbone's card says it was trained on."""
    named = card.get("datasets") or []
    return [str(name) for name in (named if isinstance(named, list) else [named])]


def describe_data(recipe: Recipe, checked: Checked, data: LabelledData, setup: Setup) -> dict[str, Any]:
    """report["data"]; the sizes of inputs are of the training rows."""
    return {
        "source": checked.data.name,
        "hub_id": checked.data.name.partition("@")[0] if checked.data.kind == "hub" else None,
        "revision": checked.data.revision,
        "package": checked.data.package,
        "labels": list(data.labels),
        "splits": {name: data.audit["splits"][name] for name in ("train", "validation", "test")},
        "fingerprint": data.fingerprint,
        **MODALITIES[checked.task.modality].describe(recipe, setup, data),
    }


def describe_transfer(recipe: Recipe, model: TransferModel, trained: Result) -> dict[str, Any]:
    """report["transfer"]."""
    sizes = {name: p.numel() for name, p in model.module.named_parameters()}
    l2sp = recipe.transfer.l2sp
    return {
        "groups": [{"name": g.name, "parameters": sum(sizes[n] for n in g.parameters)} for g in model.groups.groups],
        "l2sp": {"coupling": l2sp.coupling, "alpha": l2sp.alpha, "beta": l2sp.beta, "convention": CONVENTION},
        "phases": trained.phases,
        "batchnorm": trained.batchnorm["policy"] if any(trained.batchnorm["layers"].values()) else None,
        "recalibration": trained.batchnorm["recalibration"],
        "choice": trained.choice,
        "adapter": describe_adapter(model.module),
    }


def write_model(folder: Path, recipe: Recipe, setup: Setup, module: nn.Module, labels: tuple[str, ...]) -> None:
    """The torch form that AutoModel loads as it is, what prepares its inputs, and what serving reads of both."""
    with writing(folder), system_errors(), quiet_transformers():
        model = folder / files.MODEL_FOLDER
        module.save_pretrained(model)  # type: ignore[operator]
        setup.save_processor(model)
        MODALITIES[TASKS[recipe.task].modality].bundle_files(folder)
    write_json(folder / files.LABELS, list(labels))
    write_preprocessing(folder, recipe, setup.encoder, None)


def write_preprocessing(folder: Path, recipe: Recipe, encoder: Encoder, calibration: Mapping[str, Any] | None) -> None:
    """preprocess.json, with what calibration found, if it was fitted yet."""
    found = calibration or {}
    files.write_preprocessing(
        folder, task=recipe.task, target=TASKS[recipe.task].target.name, preprocess=encoder.settings,
        temperature=found.get("temperature", 1.0), interval=found.get("interval"),
    )  # fmt: skip


def write_provenance(
    folder: Path, recipe: Recipe, report: Mapping[str, Any], upstream: Mapping[str, Mapping[str, str]]
) -> None:
    """The resolved recipe, and the licence texts that go with the model."""
    with writing(folder):
        (folder / files.RECIPE).write_text(dump_recipe(recipe), "utf-8")
        (folder / files.LICENSE).write_text(bundle_license_text(report["license"], upstream), "utf-8")
        (folder / files.NOTICE).write_text(notice_text(report["license"], report, upstream), "utf-8")


def finish_bundle(folder: Path, recipe: Recipe, report: Mapping[str, Any]) -> None:
    """report.json, the card and the HTML report, both pure functions of it, and the manifest; BundleError if the card is invalid."""
    card = render_card(report)
    wrong = validate_card(card)
    if wrong:
        raise BundleError(f"the model card is not valid: {wrong[0]}")
    write_json(folder / files.REPORT, report)
    with reading(folder):
        page = render_html(report, lambda name: (folder / name).read_bytes())
    with writing(folder):
        (folder / files.CARD).write_text(card, "utf-8")
        (folder / files.REPORT_HTML).write_text(page, "utf-8")
    files.seal(folder, manifest_facts(recipe, report))


def manifest_facts(recipe: Recipe, report: Mapping[str, Any]) -> dict[str, object]:
    """What the manifest says beside the files' hashes."""
    export, run, environment = report["export"], report["run"], report["environment"]
    return {
        "name": recipe.name,
        "task": recipe.task,
        "created": run["created"],
        "served": files.INT8 if export["served"] == "int8" else files.ONNX,
        "batch_invariant": bool(export[export["served"]]["batch_invariant"]),
        "recipe_hash": run["recipe_hash"],
        "data_fingerprint": run["data_fingerprint"],
        "seed": recipe.seed,
        "packages": environment["packages"],
        "cpu": {**environment["cpu"], "int8_target": export["cpu_target"]},
        "git_commit": run["git_commit"],
    }


def collect_upstream(checked: Checked, folder: Path) -> dict[str, dict[str, str]]:
    """Licence and notice texts that came with the backbone and the data."""
    return {"backbone": upstream_texts(folder), "data": upstream_texts(checked.data.path)}

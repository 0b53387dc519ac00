"""Measured facts into report.json, and everything a run made into the files of a bundle."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from finetune import bundle as files
from finetune.data import Split, TextData
from finetune.disk import sha256, write_json, writing
from finetune.environment import command_line, git_commit, now
from finetune.errors import BundleError
from finetune.model.backbone import TransferModel
from finetune.model.quiet import quiet_transformers
from finetune.preflight import Checked
from finetune.preprocess import Encoded, TextPreprocess
from finetune.recipe import Recipe, dump_recipe, recipe_hash
from finetune.release.card import render_card, validate_card
from finetune.release.texts import bundle_license_text, notice_text, upstream_texts
from finetune.report.html import render_html
from finetune.transfer.l2sp import CONVENTION


def describe_run(recipe: Recipe, fingerprint: str) -> dict[str, Any]:
    """report["run"]."""
    return {
        "name": recipe.name,
        "task": recipe.task,
        "description": recipe.description,
        "created": now(),
        "seed": recipe.seed,
        "command": command_line(),
        "recipe_hash": recipe_hash(recipe),
        "data_fingerprint": fingerprint,
        "git_commit": git_commit(),
    }


def describe_backbone(recipe: Recipe, checked: Checked, folder: Path, model: TransferModel) -> dict[str, Any]:
    """report["backbone"]."""
    source = checked.backbone
    weights = sorted(folder.glob("*.safetensors"))
    return {
        "name": source.name,
        "hub_id": recipe.card.base_model or (source.name.partition("@")[0] if source.kind == "hub" else None),
        "revision": source.revision,
        "package": source.package,
        "architecture": model.architecture,
        "parameters": model.parameters,
        "weights_sha256": sha256(weights[0]) if len(weights) == 1 else {path.name: sha256(path) for path in weights},
        "license": checked.license["components"][0]["license"],
    }


def describe_data(recipe: Recipe, checked: Checked, data: TextData, train: list[Encoded]) -> dict[str, Any]:
    """report["data"]; token counts are of the training rows, before truncation."""
    lengths = np.array([row.length_before for row in train])
    return {
        "source": checked.data.name,
        "hub_id": checked.data.name.partition("@")[0] if checked.data.kind == "hub" else None,
        "revision": checked.data.revision,
        "package": checked.data.package,
        "labels": list(data.labels),
        "splits": {name: _describe_split(data, getattr(data, name)) for name in ("train", "validation", "test")},
        "fingerprint": data.fingerprint,
        "max_length": recipe.data.max_length,
        "tokens": {
            "p50": int(np.percentile(lengths, 50)),
            "p95": int(np.percentile(lengths, 95)),
            "max": int(lengths.max()),
            "truncated_share": float((lengths > recipe.data.max_length).mean()),
        },
    }


def describe_transfer(recipe: Recipe, model: TransferModel, phases: list[dict[str, Any]]) -> dict[str, Any]:
    """report["transfer"]."""
    sizes = {name: p.numel() for name, p in model.module.named_parameters()}
    l2sp = recipe.transfer.l2sp
    return {
        "groups": [{"name": g.name, "parameters": sum(sizes[n] for n in g.parameters)} for g in model.groups.groups],
        "l2sp": {"coupling": l2sp.coupling, "alpha": l2sp.alpha, "beta": l2sp.beta, "convention": CONVENTION},
        "phases": phases,
    }


def write_model(
    folder: Path, model: TransferModel, tokenizer: Any, encoder_settings: TextPreprocess, labels: tuple[str, ...]
) -> None:
    """The torch form that AutoModel and AutoTokenizer load as it is, and the tokenizer that serving reads."""
    with writing(folder), quiet_transformers():
        model.module.save_pretrained(folder / files.MODEL_FOLDER)  # type: ignore[operator]
        tokenizer.save_pretrained(folder / files.MODEL_FOLDER)
        shutil.copyfile(folder / files.MODEL_FOLDER / "tokenizer.json", folder / files.TOKENIZER)
    write_json(folder / files.LABELS, list(labels))
    files.write_preprocessing(folder, encoder_settings, 1.0)


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
    with writing(folder):
        (folder / files.CARD).write_text(card, "utf-8")
        (folder / files.REPORT_HTML).write_text(render_html(report), "utf-8")
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


def _describe_split(data: TextData, split: Split) -> dict[str, Any]:
    counts = np.bincount(split.labels, minlength=len(data.labels))
    return {"rows": len(split), "labels": dict(zip(data.labels, map(int, counts), strict=True))}

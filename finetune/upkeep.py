"""What can be done with a bundle that is already there: check it, write its documents again, export it again."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune import bundle as files
from finetune.bundle import Bundle
from finetune.disk import writing
from finetune.errors import LicenseError, RecipeError
from finetune.recipe import dump_recipe, load_recipe, parse_overrides
from finetune.release.card import validate_card
from finetune.release.license import Component, judge, require_allowed
from finetune.result import Report
from finetune.runtime import CachedDecoder, open_session
from finetune.serve import Predictor
from finetune.tasks import TASKS

STEPS = 8  # tokens at the end of a probe that a language model also reads one by one


@dataclass(frozen=True)
class Finding:
    """One check of a bundle; `passed` is None for one that could not be made here, and the sentence says why."""

    name: str
    passed: bool | None
    sentence: str


def check_bundle(path: Path, *, use: str | None = None) -> list[Finding]:
    """Verify a bundle: bytes, card, licences for the recipe's use or another, parity of torch and ONNX on probes.

    BundleError when it is no bundle or its bytes differ from the manifest: nothing else can be believed then.
    """
    bundle = Bundle.open(path)
    report = Report.open(path)
    count = len(bundle.files)
    return [
        Finding("bytes", True, f"{count} files are as the manifest says"),
        _check_card(path),
        _check_license(report, use),
        _check_parity(bundle, report),
    ]


def rewrite_documents(path: Path) -> None:
    """Write the card and the HTML report again from report.json, in place of the bundle, whole or not at all."""
    from finetune.assembly import finish_bundle

    report = Report.open(Bundle.open(path).path)
    partial = _copy(path)
    finish_bundle(partial, load_recipe(partial / files.RECIPE), report.data)
    files.publish(partial, path, overwrite=True)


def export_again(path: Path, overrides: Sequence[str], *, callbacks: Sequence[Any] = ()) -> Report:
    """Build and measure the ONNX and int8 forms of a bundle again, with other `export.*` settings.

    The data are loaded as in the run and must have the same fingerprint, because the forms are compared on its
    validation rows. RecipeError for an override of anything but `export`; BundleError if the data have changed.
    """
    Bundle.open(path)
    for key in parse_overrides(overrides):
        if not key.startswith("export."):
            raise RecipeError(
                f"override '{key}': only export.* can change after training; use finetune run for the rest"
            )
    recipe = load_recipe(path / files.RECIPE, list(overrides))
    from finetune.assembly import finish_bundle
    from finetune.delivery import export_bundle

    partial = _copy(path)
    report = export_bundle(recipe, Report.open(path).data, partial, callbacks)
    with writing(partial):
        (partial / files.RECIPE).write_text(dump_recipe(recipe), "utf-8")
    finish_bundle(partial, recipe, report)
    files.publish(partial, path, overwrite=True)
    return Report(path, report)


def _copy(path: Path) -> Path:
    """A copy of a bundle beside it, to be changed and published in its place."""
    partial = files.start(path)
    with writing(partial):
        shutil.copytree(path, partial, dirs_exist_ok=True)
    return partial


def _check_card(path: Path) -> Finding:
    wrong = validate_card((path / files.CARD).read_text("utf-8"))
    return Finding("card", not wrong, wrong[0] if wrong else "complete, metadata valid")


def _check_license(report: Report, use: str | None) -> Finding:
    recorded = report.data["license"]
    parts = [Component(**{**part, "obligations": tuple(part["obligations"])}) for part in recorded["components"]]
    verdict = judge(parts, use or recorded["use"], recorded["reviewed"])
    try:
        require_allowed(verdict)
    except LicenseError as error:
        return Finding("licences", False, str(error))
    return Finding("licences", True, verdict["sentence"])


def _check_parity(bundle: Bundle, report: Report) -> Finding:
    """Outputs of torch and fp32 ONNX on probes that the bundle itself suggests."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        return Finding("parity", None, "needs torch and transformers; pip install 'finetune-recipes[train]'")
    import torch
    import transformers

    from finetune.modality import MODALITIES
    from finetune.model.quiet import quiet_transformers

    task = TASKS[report.data["run"]["task"]]
    with quiet_transformers():
        auto = getattr(transformers, task.auto_class)
        model = auto.from_pretrained(
            bundle.path / files.MODEL_FOLDER, local_files_only=True, trust_remote_code=False
        ).eval()
    probes = MODALITIES[task.modality].probes(bundle)
    with torch.inference_mode():
        worst = _DIFFERENCES.get(task.modality, _rows_differ)(bundle, model, probes)
    # As the gate of the export did: language models may have logits of a hundred, where rounding is a hundred times as large.
    worst /= float(report.data["export"]["onnx"].get("logit_unit", 1.0))
    limit = float(report.data["export"]["tolerance"])
    return Finding(
        "parity",
        worst <= limit,
        f"torch and fp32 ONNX differ by at most {worst:.2g} on {len(probes)} probe inputs (limit {limit:g})",
    )


def _rows_differ(bundle: Bundle, model: Any, probes: Sequence[Any]) -> float:
    """Largest difference of the logits (N, C) of torch and of fp32 ONNX."""
    import torch

    encoder = bundle.encoder()
    found = Predictor(bundle.path, which="onnx", verify=False).logits(probes)
    inputs = {name: torch.from_numpy(array) for name, array in encoder.collate(encoder.encode(probes)).items()}
    return float(np.abs(found - model(**inputs).logits.float().numpy()).max())


def _tokens_differ(bundle: Bundle, model: Any, probes: Sequence[Any]) -> float:
    """Largest difference of the logits (T, V) of torch and of fp32 ONNX, read at once and token after token."""
    import torch

    decoder = CachedDecoder(open_session(bundle.path / files.ONNX))
    worst = 0.0
    encoder = bundle.encoder()
    for sequence in encoder.encode(probes):
        ids = np.array([sequence.ids[: encoder.settings.max_length]], np.int64)  # the model has no place for more
        given = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(np.ones_like(ids))}
        wanted = model(**given).logits.float().numpy()
        worst = max(worst, float(np.abs(decoder.logits(ids) - wanted).max()))
        border = max(1, ids.shape[1] - STEPS)
        last, cache = decoder.prefill(ids[:, :border])
        for at in range(border, ids.shape[1]):
            worst = max(worst, float(np.abs(last - wanted[:, at - 1]).max()))
            last, cache = decoder.step(ids[:, at], cache)
        worst = max(worst, float(np.abs(last - wanted[:, -1]).max()))
    return worst


_DIFFERENCES = {"language": _tokens_differ}

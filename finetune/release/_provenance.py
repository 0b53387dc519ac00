"""Sections of the card about where the model stands: environment, licence, reproduction."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from finetune.release._facts import Report, adapter_of, bundle_folder, hub_repo, task_name
from finetune.release._kinds import kind_of
from finetune.release._markdown import bullets, counted, fenced, number, one_line, table, text
from finetune.release.policy import FAMILIES, title_of

_PACKAGES = (
    "torch",
    "transformers",
    "timm",
    "torchvision",
    "accelerate",
    "datasets",
    "tokenizers",
    "onnx",
    "onnxruntime",
    "scikit-learn",
    "numpy",
    "pillow",
)
_LANGUAGE_PACKAGES = ("peft", "gguf", "bitsandbytes", "jinja2")
_PAPERS = {
    "gradual": "Howard & Ruder 2018, Universal Language Model Fine-tuning for Text Classification, [arXiv:1801.06146](https://arxiv.org/abs/1801.06146)",
    "lp_ft": "Kumar et al. 2022, Fine-Tuning can Distort Pretrained Features, [arXiv:2202.10054](https://arxiv.org/abs/2202.10054)",
    "auto": "Lee et al. 2022, Surgical Fine-Tuning Improves Adaptation to Distribution Shifts, [arXiv:2210.11466](https://arxiv.org/abs/2210.11466)",
    "l2sp": "Li, Grandvalet & Davoine 2018, Explicit Inductive Bias for Transfer Learning, [arXiv:1802.01483](https://arxiv.org/abs/1802.01483)",
    "temperature": "Guo et al. 2017, On Calibration of Modern Neural Networks, [arXiv:1706.04599](https://arxiv.org/abs/1706.04599)",
    "interval": "Lei et al. 2018, Distribution-Free Predictive Inference for Regression, [arXiv:1604.04173](https://arxiv.org/abs/1604.04173)",
    "gradcam": "Selvaraju et al. 2017, Grad-CAM: Visual Explanations from Deep Networks, [arXiv:1610.02391](https://arxiv.org/abs/1610.02391)",
    "mixup": "Zhang et al. 2018, mixup: Beyond Empirical Risk Minimization, [arXiv:1710.09412](https://arxiv.org/abs/1710.09412)",
    "cutmix": "Yun et al. 2019, CutMix, [arXiv:1905.04899](https://arxiv.org/abs/1905.04899)",
    "rand_augment": "Cubuk et al. 2020, RandAugment, [arXiv:1909.13719](https://arxiv.org/abs/1909.13719)",
    "lora": "Hu et al. 2022, LoRA: Low-Rank Adaptation of Large Language Models, [arXiv:2106.09685](https://arxiv.org/abs/2106.09685)",
    "dora": "Liu et al. 2024, DoRA: Weight-Decomposed Low-Rank Adaptation, [arXiv:2402.09353](https://arxiv.org/abs/2402.09353)",
    "int8": "Dettmers et al. 2022, LLM.int8(), [arXiv:2208.07339](https://arxiv.org/abs/2208.07339)",
    "nf4": "Dettmers et al. 2023, QLoRA, [arXiv:2305.14314](https://arxiv.org/abs/2305.14314)",
    "memorisation": "Carlini et al. 2023, Quantifying Memorization Across Neural Language Models, [arXiv:2202.07646](https://arxiv.org/abs/2202.07646)",
    "random_erasing": "Zhong et al. 2020, Random Erasing Data Augmentation, [arXiv:1708.04896](https://arxiv.org/abs/1708.04896)",
}


def environment(report: Report) -> str:
    """Hardware, software and time of the run."""
    env, timings = report["environment"], report["timings_s"]
    shown = (*_PACKAGES, *(_LANGUAGE_PACKAGES if kind_of(report)[0] == "language" else ()))
    flags = ", ".join(map(text, env["cpu"]["flags"])) or "none of note"
    versions = ", ".join(f"{text(name)} {text(env['packages'][name])}" for name in shown if name in env["packages"])
    spent = ", ".join(
        f"{text(stage)} {number(seconds, 1)}"
        for stage, seconds in timings.items()
        if stage != "total" and seconds is not None
    )
    return bullets(
        [
            f"Processor: {text(env['cpu']['model'])}, {counted(env['cpu']['cores'], 'usable core')} ({flags}); trained on {text(env['device'])} with {counted(env['processes'], 'process')}.",
            f"Largest memory use: {number(env['peak_memory_bytes'] / 1e9, 2)} GB."
            if env.get("peak_memory_bytes")
            else "Memory use was not measured.",
            f"Time: {number(timings['total'], 0)} s in all ({spent}; seconds).",
            f"Software: Python {text(env['python'])} on {text(env['platform'])}; {versions}.",
        ]
    )


def licence(report: Report) -> str:
    """The verdict, the parts with their evidence, the obligations, and every override."""
    judged = report["license"]
    rows = [
        [
            part["role"],
            text(part["name"]),
            _licence_cell(part),
            text(" + ".join(FAMILIES[family].title for family in part["family"].split(" + "))),
            part["train"],
            part["distribute"],
            part["commercial"],
            text(part["evidence"]),
        ]
        for part in judged["components"]
    ]
    name = judged["bundle_license_name"] if judged["bundle_license"] == "other" else title_of(judged["bundle_license"])
    parts = [
        f"This model is offered under **{text(name)}**; see `LICENSE` and `NOTICE`.",
        f"Verdict for {text(judged['use'])} use: **{judged['verdict']}**. {text(judged['sentence'])}",
        *[f"> [!WARNING]\n> {text(warning)}" for warning in judged.get("warnings", ())],
        table(
            ["Part", "Name", "Licence", "Family", "Train", "Distribute", "Commercial", "Evidence"], rows, numbers_from=8
        ),
    ]
    if judged["reviewed"]:
        parts.append(f"Reviewed: {text(judged['reviewed'])}")
    if judged["obligations"]:
        parts += ["Whoever uses or passes on this model must:", bullets(map(text, judged["obligations"]))]
    parts.append("The verdict is an engineering policy's, not legal advice.")
    return "\n\n".join(parts)


def _licence_cell(part: Mapping[str, Any]) -> str:
    label = text(part["license_name"] or part["license"]) if part["license"] == "other" else text(part["license"])
    link = part["link"] or ""
    return f"[{label}]({link})" if re.fullmatch(r"https?://[^\s()<>|\\]+", link) else label


def reproduce(report: Report) -> str:
    """The command, the identities that must match, the methods' papers, and a citation."""
    run = report["run"]
    shown = {
        "Recipe hash": run["recipe_hash"],
        "Data fingerprint": run["data_fingerprint"],
        "Seed": run["seed"],
        "Code (git commit)": run["git_commit"] or "not recorded",
        "Backbone origin": report["backbone"].get("revision") or report["backbone"].get("package") or "none",
        "Backbone weights (sha256)": report["backbone"]["weights_sha256"],
        "Created (UTC)": run["created"],
    }
    used = _methods(report)
    papers = [_PAPERS[name] for name in used if name in _PAPERS]
    name = re.sub(r"[{}\\]", "", one_line(run["name"]))
    base = re.sub(r"[{}\\%#$&_^~]", " ", one_line(hub_repo(report["backbone"]) or report["backbone"]["name"]))
    cite = f"@misc{{{name},\n  title = {{{name}: {base} fine-tuned for {task_name(report).lower()}}},\n  year  = {{{str(run['created'])[:4]}}},\n  note  = {{Made with finetune-recipes, recipe {str(run['recipe_hash'])[:12]}}}\n}}"
    return "\n\n".join(
        [
            "The bundle holds the resolved recipe; the same recipe, seed and machine give the same weights.",
            fenced("bash", f"{one_line(run['command'])}\nfinetune check {shlex.quote(bundle_folder(report))}"),
            table(["Identity", "Value"], [[key, text(value)] for key, value in shown.items()], numbers_from=2),
            *(["Methods:\n\n" + bullets(papers)] if papers else []),
            "To cite this model:",
            fenced("bibtex", cite),
        ]
    )


def _methods(report: Report) -> list[str]:
    """Keys of _PAPERS that the run used, in the order of the run."""
    asked, train = report["recipe"].get("transfer", {}), report["recipe"].get("train", {})
    augment = (train.get("augment") or {}) if kind_of(report)[0] == "image" else {}
    samples = (report.get("samples") or {}).get("rows") or []
    calibration = report["calibration"] or {}
    adapter, language = adapter_of(report) or {}, report.get("language") or {}
    return [
        asked.get("unfreeze") or ("" if asked.get("phases") else "gradual"),
        "l2sp" if report["transfer"]["l2sp"]["coupling"] != "off" else "",
        *[name for name in ("rand_augment", "random_erasing", "mixup", "cutmix") if augment.get(name)],
        *[name for name in ("temperature", "interval") if calibration.get(name) is not None],
        "gradcam" if any(row.get("gradcam") for row in samples) else "",
        *[str(adapter.get(key) or "") for key in ("kind", "base")],
        "memorisation" if language.get("memorisation") else "",
    ]

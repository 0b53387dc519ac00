"""Sections of the card about how the model came to be: use, data, and training."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from finetune.release._facts import Report, bundle_folder, dataset_name, metric_name
from finetune.release._markdown import bullets, code, counted, fenced, number, share, table, text


def how_to_use(report: Report) -> str:
    """Snippets for the lean runtime, the command line, and transformers."""
    folder = bundle_folder(report)
    temperature = (report["calibration"] or {}).get("temperature", 1.0)
    scaled = "" if report["calibration"] is None else "  # T makes the scores probabilities (see Calibration)"
    runtime = f"import finetune\n\npredictor = finetune.Predictor({folder!r})\nfor prediction in predictor.predict(['a text to classify', 'another']):\n    print(prediction.label, prediction.score)"
    transformers = f"""import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = {folder + "/model"!r}  # on the Hub: the repository's id, with subfolder="model"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
batch = tokenizer(["a text to classify"], truncation=True, max_length={int(report["data"]["max_length"])}, padding=True, return_tensors="pt")
with torch.no_grad():
    probabilities = (model(**batch).logits / {float(temperature):.6g}).softmax(dim=-1){scaled}
print(model.config.id2label[int(probabilities[0].argmax())], float(probabilities[0].max()))"""
    shell = f"finetune predict {shlex.quote(folder)} --text 'a text to classify'\nfinetune predict {shlex.quote(folder)} --input texts.csv --output predictions.csv"
    return "\n\n".join(
        [
            "Without torch or transformers (ONNX Runtime, calibrated scores):",
            fenced("python", runtime),
            "From the command line, also for whole files:",
            fenced("bash", shell),
            "With transformers:",
            fenced("python", transformers),
        ]
    )


def intended_use(report: Report) -> str:
    """What the model is meant for, in the user's words if given, and what its licences allow."""
    stated = report["recipe"].get("card", {}).get("intended_use")
    labels = ", ".join(text(label) for label in report["data"]["labels"][:30])
    more = f", and {len(report['data']['labels']) - 30} more" if len(report["data"]["labels"]) > 30 else ""
    lines = [text(stated)] if stated else []
    lines.append(f"It assigns one of these labels to a text: {labels}{more}.")
    lines.append(f"Built for {code(report['license']['use'])} use. {text(report['license']['sentence'])}")
    return "\n\n".join(lines)


def training_data(report: Report) -> str:
    """The data set, its splits, and what the audit found."""
    data, audit = report["data"], report["audit"]
    origin = (
        f" (from the package {text(data['package'])})"
        if data.get("package")
        else f" at revision {code(data['revision'])}"
        if data.get("revision")
        else ""
    )
    splits = data["splits"]
    rows = [
        [text(label), *[number(splits[name]["labels"].get(label, 0)) for name in splits]]
        for label in data["labels"][:30]
    ]
    rows.append(["**All**", *[f"**{number(splits[name]['rows'])}**" for name in splits]])
    more = [f"The first 30 of {len(data['labels'])} labels."] if len(data["labels"]) > 30 else []
    parts = [
        f"{text(dataset_name(report))}: {code(data['source'])}{origin}.",
        *more,
        table(["Label", *[f"{name.capitalize()} rows" for name in map(str, splits)]], rows),
        f"Length in tokens: median {number(data['tokens']['p50'])}, 95th percentile {number(data['tokens']['p95'])}, longest {number(data['tokens']['max'])}; "
        f"the model reads {number(data['max_length'])}, which cuts {share(data['tokens']['truncated_share'])} of the rows.",
        "The audit before training found:",
        bullets(_audit(audit)),
    ]
    if audit.get("warnings"):
        parts += ["Warnings of the audit:", bullets(map(text, audit["warnings"]))]
    parts.append(f"Data fingerprint (labels, texts, splits and order): {code(data['fingerprint'])}")
    return "\n\n".join(parts)


def _audit(audit: Mapping[str, Any]) -> Iterator[str]:
    yield f"{counted(audit['rows'], 'row')}, of which {number(audit['rows_used'])} were used; {counted(audit['empty_texts'], 'empty text')} dropped."
    yield (
        f"{counted(audit['exact_duplicate_rows'], 'row')} in {counted(audit['exact_duplicate_groups'], 'group')} of identical texts and "
        f"{counted(audit['near_duplicate_rows'], 'row')} in {counted(audit['near_duplicate_groups'], 'group')} of near duplicates "
        f"(8-gram Jaccard similarity from {number(audit['similarity_threshold'], 2)}); {number(audit['dropped_duplicates'])} were dropped, the others kept in one split."
    )
    leaks = audit["leaks"]
    total = sum(leaks.values())
    yield (
        "No text is shared between splits."
        if total == 0
        else f"Texts shared between splits: {', '.join(f'{text(pair)} {number(count)}' for pair, count in leaks.items())}."
    )
    yield f"{counted(audit['conflicting_label_groups'], 'group')} of identical texts with different labels."
    yield f"Largest to smallest label: {number(audit['imbalance'], 2)} to 1."


def training_procedure(report: Report) -> str:
    """Phases, settings, drift, and the checks after each phase."""
    transfer, settings = report["transfer"], report["recipe"].get("train", {})
    primary = metric_name(report["metrics"]["primary"])
    header = [
        "No.",
        "Phase",
        "Layer groups trained",
        "Epochs (run of planned)",
        "Learning rates",
        "Schedule",
        f"Best {primary} (epoch)",
        "Ended by",
        "Steps",
        "Seconds",
    ]
    rows = [_phase_row(phase, len(transfer["groups"])) for phase in transfer["phases"]]
    l2sp = transfer["l2sp"]
    anchor = (
        "off"
        if l2sp["coupling"] == "off"
        else f"{l2sp['coupling']}, α = {l2sp['alpha']:g}, β = {l2sp['beta']:g}. {l2sp['convention']}"
    )
    chosen = {
        "Optimizer": settings.get("optimizer"),
        "Batch size (rows per step)": settings.get("batch_size"),
        "Weight decay": _weight_decay(settings.get("weight_decay"), l2sp["coupling"]),
        "Warm-up (share of a phase)": settings.get("warmup"),
        "Gradient clipping (norm)": settings.get("clip_norm"),
        "Label smoothing": settings.get("label_smoothing"),
        "Class weights": settings.get("class_weights"),
        "Precision": settings.get("precision"),
        "Longest input (tokens)": report["data"]["max_length"],
        "L2-SP": anchor,
        "Seed": report["run"]["seed"],
    }
    parts = [
        f"{len(transfer['groups'])} layer groups, from input to head: {', '.join(text(group['name']) for group in transfer['groups'])}.",
        table([text(cell) for cell in header], rows, numbers_from=3),
        "Each phase started from the best weights of the one before. After each, the run checked that the groups that should move had moved and no other had.",
        table(
            ["Setting", "Value"],
            [[name, "off" if value is None else text(value)] for name, value in chosen.items()],
            numbers_from=2,
        ),
    ]
    if report["history"]:
        drift = report["history"][-1]["drift"]
        parts.append(
            f"Distance from the pretrained weights at the end, ‖θ−θ⁰‖/‖θ⁰‖: {', '.join(f'{text(group)} {number(value, 4)}' for group, value in drift.items())}."
        )
    return "\n\n".join(parts)


def _weight_decay(given: float | None, coupling: str) -> float:
    # The recipe's default: L2-SP takes the place of weight decay.
    return given if given is not None else 0.01 if coupling == "off" else 0.0


def _phase_row(phase: Mapping[str, Any], groups: int) -> list[str]:
    rates = [phase["learning_rates"][group] for group in phase["trainable"] if group in phase["learning_rates"]]
    low, high = (min(rates), max(rates)) if rates else (None, None)
    return [
        number(phase["index"]),
        text(phase["name"]),
        f"{len(phase['trainable'])} of {groups}",
        f"{number(phase['epochs_run'])} of {number(phase['epochs_planned'])}",
        "–" if low is None or high is None else f"{high:.1e}" if low == high else f"{low:.1e} to {high:.1e}",
        text(phase["schedule"]),
        f"{number(phase['best'])} ({number(phase['best_epoch'])})",
        text(phase["ended"]),
        number(phase["steps"]),
        number(phase["seconds"], 1),
    ]

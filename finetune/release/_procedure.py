"""The card's section on training: phases, settings, what was chosen by measurement, and how far the weights moved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from finetune.release import _language
from finetune.release._facts import Report, adapter_of, metric_name
from finetune.release._kinds import kind_of
from finetune.release._markdown import number, table, text


def training_procedure(report: Report) -> str:
    """Phases, settings, drift, and the checks after each phase."""
    transfer, settings = report["transfer"], report["recipe"].get("train", {})
    primary = metric_name(report, report["metrics"]["primary"])
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
        f"Batch size ({_STEPS.get(kind_of(report)[0], 'rows')} per step)": settings.get("batch_size"),
        "Weight decay": _weight_decay(settings.get("weight_decay"), l2sp["coupling"]),
        "Warm-up (share of a phase)": settings.get("warmup"),
        "Gradient clipping (norm)": settings.get("clip_norm"),
        **_of_labels(report, settings),
        "Precision": settings.get("precision"),
        **_SETTINGS[kind_of(report)[0]](report),
        "L2-SP": anchor,
        "Seed": report["run"]["seed"],
    }
    parts = [
        f"{len(transfer['groups'])} layer groups, from input to head: {', '.join(text(group['name']) for group in transfer['groups'])}.",
        _choice(transfer.get("choice")),
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
        start = "where the adapters started" if adapter_of(report) else "the pretrained weights"
        parts.append(
            f"Distance from {start} at the end, ‖θ−θ⁰‖/‖θ⁰‖: {', '.join(f'{text(group)} {number(value, 4)}' for group, value in drift.items())}."
        )
    return "\n\n".join(part for part in parts if part)


_STEPS = {"language": "blocks"}
"""What a training step goes through, where it is not the rows of the data."""


def _of_labels(report: Report, settings: Mapping[str, Any]) -> dict[str, Any]:
    if kind_of(report)[1] in ("regression", "next_token"):
        return {}
    return {"Label smoothing": settings.get("label_smoothing"), "Class weights": settings.get("class_weights")}


def _image_settings(report: Report) -> dict[str, Any]:
    seen, transfer = report["data"]["pixels"], report["transfer"]
    return {
        "Input (height × width, pixels)": f"{number(seen['height'])} × {number(seen['width'])}",
        "Batch normalisation": _BATCHNORM.get(str(transfer.get("batchnorm")), transfer.get("batchnorm")),
        "Augmentation": augmentation(report["recipe"].get("train", {}).get("augment") or {}),
    }


_SETTINGS: dict[str, Callable[[Report], dict[str, Any]]] = {
    "text": lambda report: {"Longest input (tokens)": report["data"]["max_length"]},
    "image": _image_settings,
    "language": _language.settings,
}
_BATCHNORM = {
    "freeze": "freeze: statistics and weights kept as pretrained",
    "train": "train: layers that train learn their statistics and weights; frozen layers keep theirs",
    "recalibrate": "recalibrate: as train, and at the end the statistics of trained layers were re-estimated on training rows",
}
_AUGMENTATION = {
    "horizontal_flip": "mirror images with probability {}",
    "vertical_flip": "upside down with probability {}",
    "quarter_turns": "random quarter turns",
    "random_resized_crop": "random resized crops of {} of the area",
    "color_jitter": "colour jitter {}",
    "rand_augment": "RandAugment of magnitude {}",
    "random_erasing": "random erasing with probability {}",
    "mixup": "mixup with α {}",
    "cutmix": "CutMix with α {}",
}


def augmentation(settings: Mapping[str, Any]) -> str:
    """The random changes to training images in words, or none."""
    asked = [words.format(_amount(settings[key])) for key, words in _AUGMENTATION.items() if settings.get(key)]
    return ", ".join(asked) or "none"


def _amount(value: Any) -> str:
    return " to ".join(f"{end:g}" for end in value) if isinstance(value, list | tuple) else f"{value:g}"


def _choice(choice: Mapping[str, Any] | None) -> str:
    """What `auto` chose and why, with the whole ranking."""
    if not choice:
        return ""
    ranked = ", ".join(f"{text(row['group'])} {number(row['relative_gradient_norm'], 4)}" for row in choice["ranking"])
    reason = str(choice["reason"]).strip().rstrip(".")
    return (
        f"Layer groups were chosen by relative gradient norm (Lee et al. 2022): {text(reason)}. The ranking: {ranked}."
    )


def _weight_decay(given: float | None, coupling: str) -> float:
    # The recipe's default: L2-SP takes the place of weight decay.
    return given if given is not None else 0.01 if coupling == "off" else 0.0


def _phase_row(phase: Mapping[str, Any], groups: int) -> list[str]:
    rates = [phase["learning_rates"][group] for group in phase["trainable"] if group in phase["learning_rates"]]
    low, high = (min(rates), max(rates)) if rates else (None, None)
    return [
        number(phase["index"]),
        text(phase["name"]) + _size_of(phase),
        f"{len(phase['trainable'])} of {groups}",
        f"{number(phase['epochs_run'])} of {number(phase['epochs_planned'])}",
        "–" if low is None or high is None else f"{high:.1e}" if low == high else f"{low:.1e} to {high:.1e}",
        text(phase["schedule"]),
        f"{number(phase['best'])} ({number(phase['best_epoch'])})",
        text(phase["ended"]),
        number(phase["steps"]),
        number(phase["seconds"], 1),
    ]


def _size_of(phase: Mapping[str, Any]) -> str:
    size = phase.get("image_size")
    return f" ({number(size)} pixels)" if size else ""

"""What the page shows of a language model alone: perplexity before and after, generated text, memorisation, memory, speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.report import units
from finetune.report.forgetting_chart import Change, forgetting
from finetune.report.tables import at, ratio

Report = Mapping[str, Any]


def tables(report: Report) -> dict[str, Any]:
    """Tables of the page, by the names that its templates have for them; all empty where nothing was measured."""
    return {
        "tokens": tokens(report),
        "generations": generations(report),
        "memorisation": memorisation(report),
        "memory": memory(report),
        "adapter": adapter(report),
        "unchanged": list((at(report, "language", "unchanged") or {}).items()),
    }


def tokens(report: Report) -> list[dict[str, Any]]:
    """What became of the texts of each split: documents, tokens, blocks, and the shares cut off, masked and padded."""
    counted = at(report, "data", "tokens") or {}
    return [
        {"split": split, "unlearned_pieces": 0, **counted[split]}
        for split in ("train", "validation", "test")
        if isinstance(counted.get(split), Mapping)
    ]


def quality(report: Report) -> dict[str, Any]:
    """What fine-tuning did to the perplexity of the test split, and of general texts where there are some."""
    found = changes(report)
    return {
        "changes": found,
        "forgetting": forgetting([Change(row["title"], row["before"], row["after"]) for row in found]),
    }


TEXTS = {"test": "Test split", "general": "General texts"}


def changes(report: Report) -> list[dict[str, Any]]:
    """One row per kind of text that was measured before and after, each with its perplexities and how they differ."""
    rows = []
    for key, title in TEXTS.items():
        before, after = (at(report, "language", when, key) or {} for when in ("before", "after"))
        old, new = at(before, "perplexity") or {}, at(after, "perplexity") or {}
        if units.finite(at(old, "value")) is None or units.finite(at(new, "value")) is None:
            continue
        rows.append(
            {
                "key": key,
                "title": title,
                "source": at(report, "language", "general_source") if key == "general" else None,
                "rows": at(after, "rows"),
                "tokens": at(after, "tokens"),
                "before": old,
                "after": new,
                "measures": [
                    _measure(name, at(before, name), at(after, name)) for name in _MEASURES if at(after, name)
                ],
                "sentence": _sentence(key, old, new),
            }
        )
    return rows


_MEASURES = ("perplexity", "loss", "accuracy")


def _measure(name: str, before: Any, after: Any) -> dict[str, Any]:
    """One metric before and after, and how far it moved."""
    old, new = units.finite(at(before, "value")), units.finite(at(after, "value"))
    moved = "" if old is None or new is None else units.difference(name, new, old)
    return {"name": name, "before": before or {}, "after": after, "change": moved}


def _sentence(key: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """What the change means; whether the intervals overlap is said too, for the blocks are few."""
    better = after["value"] < before["value"]
    said = _MEANING[key, better].format(change=units.change(after["value"], before["value"]).lstrip(f"+±{units.MINUS}"))
    low, high, new_low, new_high = (units.finite(at(one, end)) for one in (before, after) for end in ("low", "high"))
    known = low is not None and high is not None and new_low is not None and new_high is not None
    overlap = known and new_low <= high and low <= new_high  # type: ignore[operator]
    return f"{said}{' (the intervals overlap)' if overlap else ''}."


_MEANING = {
    ("test", True): "On the test split the perplexity fell by {change}",
    ("test", False): "On the test split the perplexity did not fall: it is {change} higher than before training",
    ("general", True): "On general texts it fell by {change}, so they show nothing that was forgotten",
    ("general", False): "On general texts it rose by {change}, the price in forgetting",
}


def generations(report: Report) -> list[dict[str, str]]:
    """Prompts with their continuations before and after training."""
    rows = at(report, "language", "generations") or []
    return [
        {key: str(row.get(key) or "") for key in ("prompt", "before", "after")}
        for row in rows
        if isinstance(row, Mapping)
    ]


def memorisation(report: Report) -> dict[str, Any]:
    """How much sampled text repeats the training texts, beside what the untrained model repeats; empty if not asked for."""
    measured = at(report, "language", "memorisation")
    if not isinstance(measured, Mapping):
        return {}
    share, base = units.finite(measured.get("share")), units.finite(measured.get("base_share"))
    examples = [one for one in measured.get("examples") or [] if isinstance(one, Mapping)]
    return {**measured, "sentence": _recited(share, base), "examples": examples}


def _recited(share: float | None, base: float | None) -> str:
    if share is None:
        return "No continuation was long enough to tell."
    if share == 0:
        return "Nothing was recited."
    if base is None or share > base:
        return (
            "The fine-tuned model recites more than the one it started from: what is above its share was learned here."
        )
    return "The fine-tuned model recites no more than the one it started from."


PARTS = {
    "weights": "Weights",
    "gradients": "Gradients",
    "optimizer": "Optimizer state",
    "activations": "Activations",
    "logits": "Logits",
    "copies": "Copies that are kept",
    "total": "Together",
}


def memory(report: Report) -> dict[str, Any]:
    """The estimate made before training, part by part, with each part's share of what was free; empty without one."""
    asked = at(report, "language", "memory")
    if not isinstance(asked, Mapping):
        return {}
    available = units.finite(asked.get("available"))
    largest = max([available or 0.0, *(units.finite(asked.get(key)) or 0.0 for key in PARTS)]) or 1.0
    rows = [
        {"key": key, "title": title, "bytes": size, "share": ratio(size, available), "bar": size / largest}
        for key, title in PARTS.items()
        if (size := units.finite(asked.get(key))) is not None
    ]
    return {"rows": rows, "available": available, "sentence": asked.get("sentence")} if rows else {}


KINDS = {"lora": "LoRA", "dora": "DoRA"}
BASES = {"fp32": "32-bit floats", "int8": "8-bit integers", "nf4": "4-bit NormalFloat"}


def adapter(report: Report) -> dict[str, Any]:
    """The adapter in words; empty where the weights themselves were trained."""
    used = at(report, "transfer", "adapter")
    if not isinstance(used, Mapping) or used.get("kind") in (None, "none"):
        return {}
    targets = used.get("targets")
    return {
        **used,
        "title": KINDS.get(str(used["kind"]), str(used["kind"])),
        "base": BASES.get(str(used.get("base")), used.get("base")),
        "targets": [str(name) for name in targets]
        if isinstance(targets, Sequence) and not isinstance(targets, str)
        else [],
        "share": ratio(used.get("parameters"), at(report, "backbone", "parameters")),
    }


def beginning(report: Report, metric: str) -> str:
    """The test metric before training, for the note below the one after it; "" where it was not measured."""
    value = at(report, "language", "before", "test", metric, "value")
    return "" if units.finite(value) is None else f"; {units.metric(metric, value)} before training"


def speed_tile(report: Report, served: str) -> tuple[str, str, str, str]:
    """The head's tile on speed: tokens a second of the served form against PyTorch's."""
    torch, ours = (at(report, "export", form, "tokens_per_second") for form in ("torch", served))
    faster = ratio(ours, torch)
    note = f"{units.significant(ours)} tokens a second, PyTorch {units.significant(torch)}"
    return ("Speed against PyTorch", units.times(faster), note, "warn" if faster and faster < 0.95 else "")

"""The card's section on the training data: where they come from, how they were split, what the audit found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from finetune.release import _language
from finetune.release._facts import Report, dataset_name, weights_of
from finetune.release._kinds import Modality, kind_of, modality_of
from finetune.release._markdown import bullets, code, counted, number, share, table, text

_MOST_LABELS = 30


def training_data(report: Report) -> str:
    """The data set, its splits, and what the audit found."""
    data, audit = report["data"], report["audit"]
    modality, target = kind_of(report)
    origin = (
        f" (from the package {text(data['package'])})"
        if data.get("package")
        else f" at revision {code(data['revision'])}"
        if data.get("revision")
        else ""
    )
    parts = [
        f"{text(dataset_name(report))}: {code(data['source'])}{origin}.",
        *_SPLITS[target](report),
        _weights(report),
        _INPUTS[modality](report),
        "The audit before training found:",
        bullets(_audit(report, modality_of(report))),
    ]
    if audit.get("warnings"):
        parts += ["Warnings of the audit:", bullets(map(text, audit["warnings"]))]
    parts.append(
        f"Data fingerprint ({'' if target == 'next_token' else 'labels, '}{modality_of(report).many}, splits and order): {code(data['fingerprint'])}"
    )
    return "\n\n".join(part for part in parts if part)


def _weights(report: Report) -> str:
    found = weights_of(report)
    if found is None:
        return ""
    spread = f"from {number(found['least'])} to {number(found['greatest'])}, {number(found['mean'])} on average"
    each = " and ".join(f"{number(one['rows'])} by {number(one['weight'])}" for one in found["rows"] or ())
    return f"Rows count by the column {code(found['column'])}, in training and in measuring: {each or spread}."


def _label_rows(report: Report) -> Iterator[str]:
    labels, splits = report["data"]["labels"], report["data"]["splits"]
    rows = [
        [text(label), *[number(splits[name]["labels"].get(label, 0)) for name in splits]]
        for label in labels[:_MOST_LABELS]
    ]
    rows.append(["**All**", *[f"**{number(splits[name]['rows'])}**" for name in splits]])
    if len(labels) > _MOST_LABELS:
        yield f"The first {_MOST_LABELS} of {len(labels)} labels."
    yield table(["Label", *[f"{name.capitalize()} rows" for name in map(str, splits)]], rows)


def _label_sets(report: Report) -> Iterator[str]:
    yield from _label_rows(report)
    audit = report["audit"]
    if audit.get("labels_per_row") is not None:
        yield (
            f"A row has {number(audit['labels_per_row'], 2)} labels on average; "
            f"{counted(audit['without_label'], 'row')} of all have none."
        )


def _values(report: Report) -> Iterator[str]:
    splits, audited = report["data"]["splits"], report["audit"].get("splits") or {}
    rows = []
    for name, split in splits.items():
        spread = split.get("values") or (audited.get(name) or {}).get("values") or {}
        cells = [number(spread.get(key)) for key in ("min", "median", "max", "mean", "std")]
        rows.append([name.capitalize(), number(split["rows"]), *cells])
    yield table(["Split", "Rows", "Least", "Median", "Greatest", "Mean", "Standard deviation"], rows)


_SPLITS: dict[str, Callable[[Report], Iterator[str]]] = {
    "single_label": _label_rows,
    "multi_label": _label_sets,
    "regression": _values,
    "next_token": _language.tokens,
}


def _tokens(report: Report) -> str:
    data = report["data"]
    return (
        f"Length in tokens: median {number(data['tokens']['p50'])}, 95th percentile {number(data['tokens']['p95'])}, longest {number(data['tokens']['max'])}; "
        f"the model reads {number(data['max_length'])}, which cuts {share(data['tokens']['truncated_share'])} of the rows."
    )


def _pictures(report: Report) -> str:
    seen, found = report["data"]["pixels"], report["audit"].get("images") or {}
    sizes = ", ".join(f"{text(size)} ({number(count)})" for size, count in list((found.get("sizes") or {}).items())[:5])
    modes = ", ".join(f"{text(mode)} ({number(count)})" for mode, count in (found.get("modes") or {}).items())
    described = f" In the files: sizes (width x height) {sizes}; colour modes {modes}." if sizes and modes else ""
    return f"The model sees {number(seen['height'])} × {number(seen['width'])} pixels (height × width).{described}"


_INPUTS: dict[str, Callable[[Report], str]] = {"text": _tokens, "image": _pictures, "language": _language.taught}


def _audit(report: Report, words: Modality) -> Iterator[str]:
    audit = report["audit"]
    left_out = _LEFT_OUT[kind_of(report)[0]](audit)
    yield f"{counted(audit['rows'], 'row')}, of which {number(audit['rows_used'])} were used; {left_out}."
    yield (
        f"{counted(audit['exact_duplicate_rows'], 'row')} in {counted(audit['exact_duplicate_groups'], 'group')} of {words.identical} and "
        f"{counted(audit['near_duplicate_rows'], 'row')} in {counted(audit['near_duplicate_groups'], 'group')} of near duplicates "
        f"({_NEAR[kind_of(report)[0]](report)}); {number(audit['dropped_duplicates'])} were dropped, the others kept in one split."
    )
    leaks = audit["leaks"]
    yield (
        f"No {words.one} is shared between splits."
        if sum(leaks.values()) == 0
        else f"{words.many.capitalize()} shared between splits: {', '.join(f'{text(pair)} {number(count)}' for pair, count in leaks.items())}."
    )
    if kind_of(report)[1] != "next_token":
        yield f"{counted(audit['conflicting_label_groups'], 'group')} of {words.identical} with different labels."
    if audit.get("imbalance") is not None:
        yield f"Largest to smallest label: {number(audit['imbalance'], 2)} to 1."


def _empty(audit: Mapping[str, Any]) -> str:
    return f"{counted(audit['empty_texts'], 'empty text')} dropped"


def _jaccard(report: Report) -> str:
    return f"8-gram Jaccard similarity from {number(report['audit']['similarity_threshold'], 2)}"


_LEFT_OUT: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "text": _empty,
    "language": _empty,
    "image": lambda audit: f"{counted((audit.get('images') or {}).get('unreadable', 0), 'unreadable file')} left out",
}
_NEAR: dict[str, Callable[[Report], str]] = {
    "text": _jaccard,
    "language": _jaccard,
    "image": lambda report: (
        f"perceptual hashes that differ in at most {_distance(report)} of 64 bits, confirmed on pixels"
    ),
}


def _distance(report: Report) -> str:
    settings = (report["recipe"].get("data") or {}).get("audit") or {}
    return number(settings.get("image_distance"))

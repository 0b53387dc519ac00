"""The card's limitations: what the model cannot do or was not tested on, as far as the run itself can tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from finetune.release import _language
from finetune.release._facts import Report, metric_in_sentence, metric_values
from finetune.release._kinds import kind_of, modality_of
from finetune.release._markdown import bullets, counted, number, share, text


def limitations(report: Report) -> str:
    """A list of sentences; the recipe's own come first."""
    modality, target = kind_of(report)
    stated = report["recipe"].get("card", {}).get("limitations")
    sentences = [
        *([text(stated)] if stated else []),
        *_BY_TARGET[target](report),
        *_BY_MODALITY[modality](report),
        *_measured(report),
        "Social bias of the backbone and the data was not measured; do not decide about people with it without doing so.",
    ]
    return bullets(sentences)


def _always_a_label(report: Report) -> Iterator[str]:
    yield (
        f"Every input gets one of the {len(report['data']['labels'])} labels, also {modality_of(report).a} that fits none of them."
    )
    yield from _weakest_label(report)


def _decisions(report: Report) -> Iterator[str]:
    yield "Each label is decided on its own, yes from a probability of one half; combinations that cannot be are not ruled out."
    yield from _weakest_label(report)


def _weakest_label(report: Report) -> Iterator[str]:
    scores: dict[str, Any] = report["metrics"]["test"].get("per_class") or {}
    if scores:
        weakest = min(scores, key=lambda label: (scores[label]["f1"], label))
        yield f"The weakest label is {text(weakest)} (F1 {number(scores[weakest]['f1'])} on {number(scores[weakest]['support'])} test rows)."


def _numbers(report: Report) -> Iterator[str]:
    spread = (report["data"]["splits"].get("train") or {}).get("values") or report["audit"].get("values") or {}
    if spread:
        yield (
            f"It has seen true values from {number(spread['min'])} to {number(spread['max'])}; what lies outside was not tested, "
            "and answers may leave that range."
        )
    yield "Its interval says how far off answers are on average over rows; single rows may be worse, and unusual inputs are not recognised."


_BY_TARGET: dict[str, Callable[[Report], Iterator[str]]] = {
    "single_label": _always_a_label,
    "multi_label": _decisions,
    "regression": _numbers,
    "next_token": _language.limits_of_text,
}


def _texts(report: Report) -> Iterator[str]:
    data, card = report["data"], report["recipe"].get("card", {})
    yield f"Only texts like those of its data set (language: {', '.join(map(text, card.get('language', ('en',))))}) were tested; other kinds, sources and times were not."
    truncated = data["tokens"]["truncated_share"]
    if truncated:
        yield f"Only the first {number(data['max_length'])} tokens of a text are read; that cut {share(truncated)} of the rows."


def _images(report: Report) -> Iterator[str]:
    seen, audit = report["data"]["pixels"], report["audit"]
    yield "Only images like those of its data set were tested; other cameras, light, viewpoints and times were not."
    yield (
        f"Images are brought to {number(seen['height'])} × {number(seen['width'])} pixels, so finer details and what a crop cuts off do not count."
    )
    yield (
        f"Near duplicates are found by perceptual hash and pixels ({counted(audit['near_duplicate_rows'], 'row')} here); other images "
        "of the same object are not recognised, so rows of one object may lie in training and test."
    )
    unreadable = (audit.get("images") or {}).get("unreadable")
    if unreadable:
        yield f"{counted(unreadable, 'file')} could not be read and {'was' if unreadable == 1 else 'were'} left out; nothing is known about such images."


_BY_MODALITY: dict[str, Callable[[Report], Iterator[str]]] = {
    "text": _texts,
    "image": _images,
    "language": _language.limits_of_data,
}


def _measured(report: Report) -> Iterator[str]:
    test, words = report["metrics"]["test"], modality_of(report)
    primary = metric_values(test).get(report["metrics"]["primary"])
    if primary and primary.get("low") is not None and primary.get("high") is not None:
        yield (
            f"{number(test['rows'])} test {words.row}s leave {text(metric_in_sentence(report, report['metrics']['primary']))} uncertain: "
            f"{number(primary['low'])} to {number(primary['high'])} with 95 % confidence."
        )
    if report["audit"].get("conflicting_label_groups"):
        yield f"The data hold {counted(report['audit']['conflicting_label_groups'], 'group')} of {words.identical} with different labels."
    served = report["export"]["int8"] if report["export"]["served"] == "int8" else report["export"]["onnx"]
    if served.get("batch_invariant") is False and kind_of(report)[0] != "language":
        yield f"The served file gives slightly different scores in different batches; `finetune.Predictor` therefore runs {words.many} one by one."

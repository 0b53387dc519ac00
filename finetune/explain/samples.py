"""The hardest test rows, as report["samples"]: what was true, what the model said, and the picture or the text.

What misclassified means, and how truth and answer are written, differs by target: `TARGETS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from finetune.disk import writing
from finetune.explain.pictures import overlay, save_thumbnail

FOLDER = "samples"
MOST_LETTERS = 300

Array = npt.NDArray[Any]
Picture = Callable[[Any], npt.NDArray[np.uint8]]
"""A row's input to the pixels (H, W, 3) that the network sees."""
Heat = Callable[[Any, int], npt.NDArray[np.float32] | None]
"""A row's input and an output to its Grad-CAM (h', w') from 0 to 1, or None."""


class Labelled(Protocol):
    """What is read of a split: inputs, labels (N,) or (N, C), and where each row came from."""

    @property
    def inputs(self) -> Sequence[Any]: ...
    @property
    def labels(self) -> Array: ...
    @property
    def places(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Answers:
    """How one target's logits and labels become words; each function gets all rows, or one row with its label names."""

    wrong: Callable[[Array, Array], npt.NDArray[np.bool_] | None]
    """Logits (N, C) and labels to the misclassified rows (N,); None where no row is simply wrong."""
    truth: Callable[[Any, Sequence[str]], str]
    """One row's label to words."""
    say: Callable[[Array, Any, Sequence[str]], dict[str, Any]]
    """One row's logits (C,) and label to `answer`, `score` and `about`, the label that the score is of."""
    explained: Callable[[Array], int]
    """One row's logits (C,) to the output that Grad-CAM looks at."""


def collect_samples(
    folder: Path,
    split: Labelled,
    logits: Array,
    hardness: Array,
    count: int,
    *,
    target: str,
    labels: Sequence[str],
    picture: Picture | None = None,
    heat: Heat | None = None,
    gradcam: int = 0,
) -> dict[str, Any]:
    """report["samples"]: the `count` hardest rows, misclassified ones first, each kind with the hardest first.

    Args: folder, the bundle's, gets samples/NN.jpg of each and samples/NN-cam.jpg of the first `gradcam`; logits (N, C),
    divided by the temperature; hardness (N,), larger is harder; target, a key of TARGETS; picture and heat for images only.
    Raises BundleError if the folder cannot be written to.
    """
    answers = TARGETS[target]
    wrong = answers.wrong(logits, split.labels)
    later = np.zeros(len(logits), dtype=bool) if wrong is None else ~wrong
    # Equal rows keep their order, so that the same model gives the same report.
    hardest = np.lexsort((-np.asarray(hardness, dtype=np.float64), later))[:count]
    rows = []
    for number, index in enumerate(map(int, hardest)):
        item, row = split.inputs[index], logits[index]
        entry: dict[str, Any] = {
            "place": split.places[index],
            "truth": answers.truth(split.labels[index], labels),
            **answers.say(row, split.labels[index], labels),
            "wrong": None if wrong is None else bool(wrong[index]),
            "hardness": float(hardness[index]),
            "image": None,
            "gradcam": None,
            "gradcam_of": None,
            "text": None if picture else shorten(str(item)),
        }
        if picture:
            output = answers.explained(row)
            entry |= _write_pictures(folder, number, item, output, picture, heat if number < gradcam else None)
            entry["gradcam_of"] = labels[output] if entry["gradcam"] and labels else None
        rows.append(entry)
    return {"rows": rows, "misclassified": None if wrong is None else int(wrong.sum())}


def _write_pictures(
    folder: Path, number: int, item: Any, output: int, picture: Picture, heat: Heat | None
) -> dict[str, str | None]:
    pixels = picture(item)
    names: dict[str, str | None] = {"image": f"{FOLDER}/{number:02d}.jpg", "gradcam": None}
    with writing(folder / FOLDER):
        (folder / FOLDER).mkdir(exist_ok=True)
        save_thumbnail(folder / f"{FOLDER}/{number:02d}.jpg", pixels)
        warmth = heat(item, output) if heat else None
        if warmth is not None:
            names["gradcam"] = f"{FOLDER}/{number:02d}-cam.jpg"
            save_thumbnail(folder / f"{FOLDER}/{number:02d}-cam.jpg", overlay(pixels, warmth))
    return names


def shorten(text: str) -> str:
    """The beginning of a text on one line, at most MOST_LETTERS characters, cut between words where there is a gap."""
    line = " ".join(text[: 4 * MOST_LETTERS].split())
    if len(line) <= MOST_LETTERS:
        return line if len(text) <= 4 * MOST_LETTERS else f"{line}…"
    head = line[:MOST_LETTERS]
    return f"{head.rsplit(' ', 1)[0] if ' ' in head[MOST_LETTERS // 2 :] else head}…"


def _softmax(row: Array) -> npt.NDArray[np.float64]:
    raised = np.exp(np.asarray(row, dtype=np.float64) - np.max(row))
    return np.asarray(raised / raised.sum())


def _sigmoid(row: Array) -> npt.NDArray[np.float64]:
    # tanh does not overflow, whatever the logit.
    return np.asarray((1 + np.tanh(np.asarray(row, dtype=np.float64) / 2)) / 2)


def _single_says(row: Array, label: Any, names: Sequence[str]) -> dict[str, Any]:
    best = int(np.argmax(row))
    return {"answer": names[best], "score": float(_softmax(row)[best]), "about": names[best]}


def _multi_says(row: Array, label: Any, names: Sequence[str]) -> dict[str, Any]:
    """The score is of the label that the model is furthest off at."""
    probabilities = _sigmoid(row)
    worst = int(np.argmax(np.abs(probabilities - np.asarray(label, dtype=np.float64))))
    return {"answer": _joined(row > 0, names), "score": float(probabilities[worst]), "about": names[worst]}


def _joined(chosen: Array, names: Sequence[str]) -> str:
    return ", ".join(name for name, yes in zip(names, chosen, strict=True) if yes)


def _number(value: Any) -> str:
    return f"{float(value):.4g}"


TARGETS: dict[str, Answers] = {
    "single_label": Answers(
        wrong=lambda logits, labels: np.asarray(logits.argmax(axis=1) != labels),
        truth=lambda label, names: names[int(label)],
        say=_single_says,
        explained=lambda row: int(np.argmax(row)),
    ),
    "multi_label": Answers(
        # A probability above one half is a logit above zero.
        wrong=lambda logits, labels: np.asarray(((logits > 0) != (labels > 0.5)).any(axis=1)),
        truth=lambda label, names: _joined(np.asarray(label) > 0.5, names),
        say=_multi_says,
        explained=lambda row: int(np.argmax(row)),
    ),
    "regression": Answers(
        wrong=lambda logits, labels: None,
        truth=lambda label, names: _number(label),
        say=lambda row, label, names: {"answer": _number(row[0]), "score": None, "about": None},
        explained=lambda row: 0,
    ),
}
"""Target of a recipe's task to how its answers are read."""

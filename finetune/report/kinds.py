"""What differs on the page by modality and target, in words. A report that names neither is of text classification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from finetune.recipe.task_names import MODALITY_AND_TARGET
from finetune.report import units

_SECTIONS = {
    "asked": "What was asked",
    "data": "Data",
    "training": "Training",
    "quality": "Quality",
    "samples": "Hardest rows",
    "calibration": "Calibration",
    "generations": "Generated text",
    "export": "Export",
    "licence": "Licence",
    "reproduce": "Reproduce",
}
"""Id of every section to its title in the contents; the page draws each with parts/<id>.html."""
_OF_ANSWERS = tuple(name for name in _SECTIONS if name != "generations")
_OF_TEXT = tuple(name for name in _SECTIONS if name not in ("samples", "calibration"))


@dataclass(frozen=True)
class Modality:
    """How one input, and several, are called."""

    one: str
    many: str
    step: str = "rows"
    """What a training step goes through."""
    measured: str = "rows"
    """What an evaluation goes through."""


@dataclass(frozen=True)
class Target:
    """How the page speaks of a target's loss and answers."""

    loss: str
    """The metric called `loss`, in words."""
    answers: str
    """What two forms of a model agree on."""
    titles: Mapping[str, str] = field(default_factory=dict)
    """Further metrics that are called otherwise than everywhere else."""
    floor: float | None = 0.0
    """Where the axes of errors begin; None is where the data do, for errors that stay far from zero."""
    sections: tuple[str, ...] = _OF_ANSWERS
    weighted: bool = False
    """Whether the rows of this report count by weights."""

    def title(self, metric: str) -> str:
        """A metric in words."""
        title = self.titles.get(metric) or units.metric_title(metric, self.loss)
        return f"row-weighted {title}" if self.weighted else title


MODALITIES = {
    "text": Modality("text", "texts"),
    "image": Modality("image", "images"),
    "language": Modality("document", "documents", "blocks", "sequences"),
}
TARGETS = {
    "single_label": Target("cross-entropy loss", "Same answer as PyTorch"),
    "multi_label": Target("binary cross-entropy loss", "Same labels as PyTorch"),
    "regression": Target("mean squared error", "Same number as PyTorch, nearly"),
    "next_token": Target(
        "cross-entropy per token",
        "Same next token as PyTorch",
        {"accuracy": "next-token accuracy"},
        floor=None,
        sections=_OF_TEXT,
    ),
}


def words_of(report: Mapping[str, Any]) -> Target:
    """How the page speaks of this report's loss and answers."""
    weighted = (report.get("audit") or {}).get("weights") is not None
    return replace(TARGETS[kind_of(report)[1]], weighted=weighted)


def sections(report: Mapping[str, Any], *, samples: bool) -> list[tuple[str, str]]:
    """Id and title of the page's sections in order; the hardest rows only where there are `samples`."""
    names = TARGETS[kind_of(report)[1]].sections
    return [(name, _SECTIONS[name]) for name in names if samples or name != "samples"]


def kind_of(report: Mapping[str, Any]) -> tuple[str, str]:
    """Modality and target of a report, always keys of MODALITIES and TARGETS."""
    run = report.get("run") or {}
    modality, target = MODALITY_AND_TARGET.get(str(run.get("task")), ("text", "single_label"))
    given = (str(run.get("modality") or modality), str(run.get("target") or target))
    return given if given[0] in MODALITIES and given[1] in TARGETS else (modality, target)

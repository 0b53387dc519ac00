"""What should be known before a score is trusted: said at the head of the page, and in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from finetune.report import units
from finetune.report.kinds import kind_of
from finetune.report.quality import BASELINES
from finetune.report.tables import at, plain_value
from finetune.report.view import primary_metric, title

Report = Mapping[str, Any]

ROUGH = 0.2
"""Width of a 95 % interval of a share from which the score says little: it is that of some hundred rows at 0.5."""
_MOST_LABELS = 3


def cautions(report: Report) -> list[str]:
    """Sentences without a full stop about what a run of this report leaves in doubt; none for most runs.

    A simple model that does better on the test split, labels that are never answered, a test split so small that its scores are
    rough, and last phases whose weights were not kept.
    """
    test = at(report, "metrics", "test_served") or at(report, "metrics", "test") or {}
    metric = primary_metric(report, test)
    return [
        *_beaten(report, test, metric),
        *_unanswered(report, test),
        *_rough(report, test, metric),
        *_in_vain(report),
    ]


def _beaten(report: Report, test: Report, metric: str) -> Iterator[str]:
    ours = units.finite(at(test, metric, "value"))
    theirs = {
        name: value
        for name, measured in (report.get("baselines") or {}).items()
        if (value := units.finite(plain_value(at(measured, metric)))) is not None
    }
    if ours is None or not theirs:
        return
    sign = -1 if metric in units.LOWER_IS_BETTER else 1
    name, value = max(theirs.items(), key=lambda pair: sign * pair[1])
    if sign * value > sign * ours:
        said, other = units.metric(metric, ours), units.metric(metric, value)
        model = BASELINES.get(name, name)
        yield f"a simple model does better on the test split: {model}, {title(report, metric)} {other} against {said}"


def _unanswered(report: Report, test: Report) -> Iterator[str]:
    confusion = test.get("confusion") or []
    if kind_of(report)[1] != "single_label" or not confusion:
        return
    names = [str(name) for name in at(report, "data", "labels") or []]
    never = [
        f"“{name}” ({units.plural(sum(row), 'test row')})"
        for column, (name, row) in enumerate(zip(names, confusion))
        if sum(row) and not any(other[column] for other in confusion)
    ]
    if never:
        more = f" and {len(never) - _MOST_LABELS} more" if len(never) > _MOST_LABELS else ""
        yield f"the model never answers {', '.join(never[:_MOST_LABELS])}{more}"


def _rough(report: Report, test: Report, metric: str) -> Iterator[str]:
    low, high = units.finite(at(test, metric, "low")), units.finite(at(test, metric, "high"))
    if metric in units.SHARES and low is not None and high is not None and high - low > ROUGH:
        rows = units.plural(test.get("rows"), "row")
        yield (
            f"the test split has only {rows}, so its scores are rough: "
            f"the {title(report, metric)} may be anywhere in {units.interval(low, high, metric)}"
        )


def _in_vain(report: Report) -> Iterator[str]:
    phases = at(report, "transfer", "phases") or []
    kept = max((number for number, phase in enumerate(phases) if phase.get("best_epoch") is not None), default=None)
    if kept is not None and kept + 1 < len(phases):
        lost = " and ".join(f"“{phase.get('name')}”" for phase in phases[kept + 1 :])
        yield f"no epoch of {lost} was better, so the weights are those of phase {kept + 1}, “{phases[kept].get('name')}”"

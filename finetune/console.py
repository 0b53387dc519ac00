"""A run as a person at a terminal sees it: bars that move, or plain lines where nobody watches."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from finetune.report.cautions import cautions
from finetune.result import Report
from finetune.train.events import (
    EpochEnded,
    Event,
    Notice,
    PhaseStarted,
    StageEnded,
    StageStarted,
    StepEnded,
    TrainingResumed,
)


class Console:
    """A callback that prints. Everything goes to stderr, so that stdout holds the bundle's path alone."""

    def __init__(self, *, quiet: bool = False) -> None:
        # Launchers start one process per device; only the first one talks.
        self.main_process = os.environ.get("RANK", "0") == "0"
        self._console = RichConsole(stderr=True, quiet=quiet or not self.main_process, highlight=False, soft_wrap=True)
        self._bars = Progress(
            TextColumn("  {task.description}"), BarColumn(bar_width=28), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(),
            console=self._console, transient=True, disable=not self._console.is_terminal,
        )  # fmt: skip
        self._task: TaskID | None = None
        self._metric = ""

    def __enter__(self) -> Console:
        self._bars.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """One line, without markup."""
        self._console.print(text, style="dim", markup=False)

    def __call__(self, event: Event) -> None:
        match event:
            case StageStarted(stage, detail):
                self._console.print(f"[bold]{stage}[/bold]", end=" ")
                self._console.print(detail, markup=False)
            case StageEnded(_, seconds, summary):
                self._close_bar()
                self._console.print(
                    f"  {summary.removesuffix('.') + ', ' if summary else ''}{seconds:.1f} s", style="dim", markup=False
                )
            case TrainingResumed(step):
                self._console.print(f"  resumes after step {step}", markup=False)
            case PhaseStarted():
                size = f", with images of {event.image_size}×{event.image_size}" if event.image_size else ""
                self._console.print(
                    f"  phase {event.phase + 1} of {event.phases}, {event.name}: trains {_listed(event.trainable)}{size}",
                    markup=False,
                )
            case StepEnded():
                self._show_step(event)
            case EpochEnded(_, epoch, record, improved):
                self._close_bar()
                self._metric = f"val {_number(record['validation_metric'])}"
                mark = "  best so far" if improved else ""
                self._console.print(
                    f"    epoch {epoch}: train loss {_number(record['train_loss'])}, validation loss {_number(record['validation_loss'])}, "
                    f"metric {_number(record['validation_metric'])}, {float(str(record['rows_per_second'])):.1f} rows/s{mark}",
                    markup=False,
                )
            case Notice(message):
                self._console.print(f"  {message}", style="yellow", markup=False)

    def summarise(self, report: Report) -> None:
        """The result as a small table, and the licence verdict."""
        data, metric = report.data, report.metric
        columns = SPEEDS.get(str(data["run"].get("modality")), LATENCIES)
        weighted = "row-weighted " if data["audit"].get("weights") else ""
        table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="dim")
        for column in (
            "form",
            f"{weighted}{metric} (test)",
            "size",
            *columns,
        ):
            table.add_column(column, justify="left" if column == "form" else "right")
        for form in ("torch", "onnx", "int8"):
            part = data["export"][form]
            if part is None:
                continue
            test = (
                data["metrics"]["test_served" if form == report.served else "test"]
                if form in ("torch", report.served)
                else None
            )
            score = f"{test[metric]['value']:.4f}" if test else ""
            table.add_row(
                f"{form}{' (served)' if form == report.served else ''}", score, f"{part['size_bytes'] / 1e6:.1f} MB",
                *[write(part) for write in columns.values()],
            )  # fmt: skip
        self._console.print()
        self._console.print(table)
        for line in _before_and_after(data.get("language") or {}):
            self._console.print(line, markup=False)
        for name, scores in (data["baselines"] or {}).items():
            value = scores.get(metric)
            value = value.get("value") if isinstance(value, Mapping) else value
            if value is not None:
                self._console.print(f"baseline {name}: {weighted}{metric} {value:.4f}", style="dim", markup=False)
        for caution in cautions(data):
            self._console.print(f"Note: {caution}.", style="yellow", markup=False)
        self._console.print(data["license"]["sentence"], markup=False)
        self._console.print(
            f"{data['timings_s']['total']:.0f} s; report: {report.bundle / 'report.html'}", style="dim", markup=False
        )

    def _show_step(self, event: StepEnded) -> None:
        if self._task is None:
            self._task = self._bars.add_task(f"epoch {event.epoch}", total=event.steps, facts="")
        facts = f"loss {event.loss:.4f}  {event.rows_per_second:.1f} rows/s  {self._metric}"
        self._bars.update(self._task, completed=event.step, facts=facts)

    def _close_bar(self) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None


LATENCIES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "1 row": lambda form: f"{form['latency_ms']['1']:.1f} ms",
    "32 rows": lambda form: f"{form['latency_ms']['32']:.0f} ms",
}
SPEEDS: dict[str, dict[str, Callable[[Mapping[str, Any]], str]]] = {
    "language": {
        "first token": lambda form: f"{form['ms_first_token']:.0f} ms",
        "tokens/s": lambda form: f"{form['tokens_per_second']:.1f}",
    }
}
"""Columns on speed where a form is not judged by the time for rows."""


def _before_and_after(language: Mapping[str, Any]) -> list[str]:
    """What training did to a language model: perplexity in the domain and out of it, and what it recites."""
    lines = []
    for key, place in (("test", "the test split"), ("general", "general texts")):
        before, after = ((language.get(when) or {}).get(key) or {} for when in ("before", "after"))
        if "perplexity" in before and "perplexity" in after:
            old, new = before["perplexity"]["value"], after["perplexity"]["value"]
            lines.append(f"perplexity on {place}: {old:.2f} before, {new:.2f} after ({100 * (new / old - 1):+.1f} %)")
    recited = language.get("memorisation") or {}
    if recited.get("share") is not None:
        base = recited.get("base_share")
        beside = "" if base is None else f", the base model {100 * base:.1f} %"
        lines.append(f"recites {100 * recited['share']:.1f} % of {recited['ngram']}-token runs{beside}")
    return lines


def _number(value: object) -> str:
    return f"{float(str(value)):.4f}"


def _listed(groups: tuple[str, ...]) -> str:
    """All names where they are few, else how many and the two at the ends; `auto` may pick groups that lie apart."""
    return ", ".join(groups) if len(groups) <= 4 else f"{len(groups)} layer groups, {groups[0]} to {groups[-1]}"

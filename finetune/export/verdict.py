"""The decision: which int8 trial is kept, whether it is served, and in what words the report says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune.export.choose import Form, Limits, Trial, Yardstick
from finetune.export.judge import Judge

LATENCY_TIE = 0.03
"""Medians of batch-1 latency closer than this share count as equal: runs on one machine differ by as much."""
SIZE_TIE = 0.01
"""File sizes closer than this share count as equal: the same weights with other ranges differ by some bytes."""

Speeds = Mapping[str, Mapping[str, Mapping[str, float]]]
Row = dict[str, object]


@dataclass(frozen=True)
class Terms:
    """What forms of a network are weighed by, and the words for it."""

    speed: str = "at batch 1"
    """What latencies are of."""
    least_ratio: float = 1.0
    """int8 is served if it is more than this times as fast as fp32; it is smaller in any case."""
    answers: str = "of the rows get fp32's answer"
    """What agreement is the share of."""


ROWS = Terms()


@dataclass(frozen=True)
class Choice:
    """What became of int8: the form that is kept (None if none passed), whether it is served, and why."""

    form: Form | None
    served: bool
    reason: str
    gates: tuple[Row, ...] = ()


def gate(name: str, limit: float, value: float, passed: bool, sentence: str) -> Row:
    """One row of report["export"]["gates"]."""
    return {"name": name, "limit": limit, "value": value, "passed": passed, "sentence": sentence}


def decide(
    trials: Sequence[Trial],
    fp32: Form,
    speeds: Speeds,
    limits: Limits,
    judge: Judge,
    *,
    target: str,
    native: str,
    asked: bool = True,
    terms: Terms = ROWS,
) -> Choice:
    """Keep the best int8 trial that passes the quality gates; serve it if it is also faster than fp32, as the terms say.

    `target` is the processor kind that int8 is for, `native` this machine's. Where they differ, a speed measured here
    says nothing about the target, so quality and size decide and there is no speed gate.
    """
    if not asked:
        return Choice(None, False, "fp32 ONNX is served because export.int8.mode is off.")
    single = {name: figures["latency_ms"]["1"] for name, figures in speeds.items()}
    best = pick(trials, single if target == native else None)
    if best is None:
        return _none_passed(trials, limits, judge, terms)
    assert best.form is not None  # pick returns built trials only
    gates = _quality_gates(best, limits, judge, terms)
    size = f"{best.form.size_bytes / fp32.size_bytes:.0%} of the size"
    if target != native:
        reason = (
            f"int8 ({best.name}) is served: it was chosen for {target}, which is not this machine's processor ({native}), "
            f"so quality and size decided ({size}) and no speed gate was applied."
        )
        return Choice(best.form, True, reason, gates)
    ratio = single["onnx"] / single[best.name]
    speed, least = f"{ratio:.2f} times as fast as fp32 ONNX {terms.speed}", terms.least_ratio
    gates = (*gates, gate("int8_speed", least, ratio, ratio > least, f"{best.name}: {speed} (must be above {least:g})"))
    if ratio > least:
        reason = f"int8 ({best.name}) is served: it passes the quality gates, is {speed}, and has {size}."
    else:
        reason = f"fp32 ONNX is served because int8 ({best.name}) is only {speed}, though it passes the quality gates and has {size}."
    return Choice(best.form, ratio > least, reason, gates)


def pick(trials: Sequence[Trial], latency_ms: Mapping[str, float] | None) -> Trial | None:
    """The best trial that passes the quality gates, None if there is none.

    With latencies (batch 1, by name): the fastest; within `LATENCY_TIE` of it the smallest file, and within `SIZE_TIE` of
    that the one that agrees best with fp32. Without, because the target is another processor: the smallest drop of the
    metric, then the highest agreement, then the smallest file.
    """
    passing = [(trial, trial.form) for trial in trials if trial.form and not trial.reason]
    if not passing:
        return None
    if latency_ms is None:
        return min(passing, key=lambda each: (each[0].drop, -each[0].agreement, each[1].size_bytes))[0]
    best = min(latency_ms[trial.name] for trial, _ in passing)
    close = [each for each in passing if latency_ms[each[0].name] <= best * (1 + LATENCY_TIE)]
    smallest = min(form.size_bytes for _, form in close)
    alike = [each for each in close if each[1].size_bytes <= smallest * (1 + SIZE_TIE)]
    return min(alike, key=lambda each: (-each[0].agreement, each[0].drop, latency_ms[each[0].name]))[0]


def int8_section(
    choice: Choice, fp32: Form, trials: Sequence[Trial], yardstick: Yardstick, speeds: Speeds, path: str, rows: int
) -> Row | None:
    """report["export"]["int8"]: the kept file; agreement and difference are against fp32 ONNX.

    A calibrated form also has "calibration"; `rows` is how many it saw.
    """
    if choice.form is None:
        return None
    method = next(trial.method for trial in trials if trial.form is choice.form)
    return {
        "path": path,
        "name": choice.form.name,
        "size_bytes": choice.form.size_bytes,
        **speeds[choice.form.name],
        **yardstick.compare(fp32.logits, choice.form.logits),
        "batch_invariant": choice.form.invariant,
        "passed": choice.served,
        "reason": choice.reason,
        **_calibration(method, rows),
    }


def _calibration(method: str | None, rows: int) -> Row:
    """ "calibration" of a form whose ranges were calibrated; nothing for the others."""
    if method is None:
        return {}
    return {"calibration": {"rows": rows, "method": method}}


def candidate_row(trial: Trial, yardstick: Yardstick, speeds: Speeds, choice: Choice, rows: int) -> Row:
    """One row of report["export"]["candidates"]; figures are null where the candidate could not be built.

    "passed" tells whether it could have been served: the quality gates and, where the kept one had to pass it, the
    speed gate.
    """
    form = trial.form
    slower = any(row["name"] == "int8_speed" for row in choice.gates) and (
        form is not None and speeds[trial.name]["latency_ms"]["1"] >= speeds["onnx"]["latency_ms"]["1"]
    )
    if trial.reason:
        reason = trial.reason
    elif form is choice.form:
        reason = choice.reason
    else:
        reason = "it is not faster than fp32 ONNX" if slower else "it passes, and another candidate was preferred"
    return {
        "name": trial.name,
        "metric": yardstick.score(form.logits) if form else None,
        "agreement": trial.agreement if form else None,
        "latency_ms": speeds[trial.name]["latency_ms"] if form else None,
        "throughput": speeds[trial.name]["throughput"] if form else None,
        "size_bytes": form.size_bytes if form else None,
        "passed": not trial.reason and not slower,
        "reason": reason,
        **({"method": trial.method} if trial.method else {}),
        **_calibration(trial.method, rows),
    }


def _none_passed(trials: Sequence[Trial], limits: Limits, judge: Judge, terms: Terms) -> Choice:
    """fp32 is served; the gates show the trial that came closest."""
    built = [trial for trial in trials if trial.form]
    if not built:
        reasons = "; ".join(f"{trial.name}: {trial.reason}" for trial in trials)
        return Choice(None, False, f"fp32 ONNX is served because no int8 candidate could be built ({reasons}).")
    closest = min(built, key=lambda trial: (trial.drop, -trial.agreement))
    sentence = f"fp32 ONNX is served because no int8 candidate passes the quality gates; the closest is {closest.name}: {closest.reason}."
    return Choice(None, False, sentence, _quality_gates(closest, limits, judge, terms))


def _quality_gates(trial: Trial, limits: Limits, judge: Judge, terms: Terms) -> tuple[Row, ...]:
    drop, agreement = trial.drop, trial.agreement
    return (
        gate(
            "int8_metric_drop",
            limits.max_drop,
            drop,
            drop <= limits.max_drop,
            f"{trial.name}: the metric {judge.change(drop)} against fp32 ONNX (it may get worse by {limits.max_drop:g})",
        ),
        gate(
            "int8_agreement",
            limits.min_agreement,
            agreement,
            agreement >= limits.min_agreement,
            f"{trial.name}: {agreement:.4f} {terms.answers} (at least {limits.min_agreement:g})",
        ),
    )

"""8-bit forms of a causal language model, built one after another, tried on a sample, and the best confirmed on all texts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.errors import BundleError, ExportError
from finetune.export.causal_int8 import GENTLER, CausalCandidate, causal_candidates, quantize_causal
from finetune.export.causal_measure import Answers, answers_of, invariances, logit_gaps, same_choice
from finetune.export.choose import Form, Limits, Trial
from finetune.export.judge import Judge
from finetune.export.parity import Batch, Logits
from finetune.export.verdict import Choice, Row, Terms, pick
from finetune.preprocess.language import Sequence as TokenSequence
from finetune.runtime import CachedDecoder, open_session

ANSWERS = Terms("for a prompt and its continuation", 0.97, "of the next tokens are fp32's choice")
"""Half of the ties in latency (`LATENCY_TIE`) are slower by chance; of two equally fast files the smaller one serves."""

NO_LABELS: NDArray[Any] = np.zeros(0)
"""Sequences hold their own targets."""


@dataclass(frozen=True)
class CausalForm:
    """One ONNX file, opened as it is served, and what it answered."""

    name: str
    path: Path
    session: Any
    decoder: CachedDecoder
    batch_invariant: bool
    step_invariant: bool
    """Whether a text read at once and token by token gives the same answer."""
    answers: Answers
    """To the sample."""
    gaps: Mapping[str, float]
    """Differences of the sample's logits from those of the form that it was compared with."""
    size_bytes: int
    """On disk, weights beside the file included."""

    def as_form(self) -> Form:
        """As verdicts know forms."""

        def predict(batch: Batch) -> Logits:
            return self.decoder.logits(batch["input_ids"])

        size = self.size_bytes
        return Form(self.name, self.path, predict, self.batch_invariant, self.answers.tallies.astype(np.float32), size)


def open_causal(
    name: str,
    path: Path,
    sample: Sequence[TokenSequence],
    reference: Answers,
    unit: float,
    *,
    keep_logits: bool = False,
) -> CausalForm:
    """Open a decoder's file, run it on a sample, and compare its logits with those of `reference`.

    The logits themselves, hundreds of megabytes for a large vocabulary, are kept only on demand. BundleError if the file
    cannot be opened, ExportError if it gives numbers that are not finite.
    """
    session = open_session(path)
    decoder = CachedDecoder(session)
    answers = answers_of(decoder, sample, keep_logits=True)
    require_finite(name, answers)
    gaps = logit_gaps(reference, answers)
    batches, steps = invariances(decoder, sample, unit)
    size = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    kept = answers if keep_logits else replace(answers, logits=())
    return CausalForm(name, path, session, decoder, batches, steps, kept, gaps, size)


def require_finite(name: str, answers: Answers) -> None:
    """ExportError if a tally is NaN or infinite."""
    if bad := int((~np.isfinite(answers.tallies)).any(axis=1).sum()):
        raise ExportError(
            f"{name} gives logits that are not finite on {bad} of {len(answers.tallies)} validation texts; it cannot be shipped"
        )


@dataclass
class CausalBench:
    """Where candidates are built and judged against fp32 ONNX. Files go to `folder`; `progress` is told each name."""

    fp32: CausalForm
    folder: Path
    sample: Sequence[TokenSequence]
    judge: Judge
    limits: Limits
    unit: float
    progress: Callable[[str], None]
    trials: list[Trial] = field(default_factory=list)
    forms: dict[str, CausalForm] = field(default_factory=dict)
    confirmed: dict[str, Answers] = field(default_factory=dict)
    """Answers to all validation texts, of the forms that were preferred."""

    def try_all(self, target: str) -> None:
        """The candidates for a processor kind, and a gentler form of the first where that does not pass on the sample."""
        for candidate in causal_candidates(target):
            self.attempt(candidate)
        if self.trials[0].reason:
            self.attempt(GENTLER)

    def attempt(self, candidate: CausalCandidate) -> None:
        """Build a candidate, run it on the sample and judge it; one that fails is a trial with the reason, without figures."""
        self.progress(f"int8: {candidate.name}")
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            quantize_causal(self.fp32.path, folder / "model.int8.onnx", candidate)
            form = open_causal(candidate.name, folder / "model.int8.onnx", self.sample, self.fp32.answers, self.unit)
        except (ExportError, BundleError) as error:
            self.trials.append(Trial(candidate.name, None, float("nan"), float("nan"), str(error)))
            return
        self.forms[form.name] = form
        trial = self._judged(Trial(form.name, form.as_form(), 0.0, 1.0, ""), self.fp32.answers, form.answers)
        if not candidate.served:
            trial = replace(
                trial, reason="; ".join(filter(None, ["it is measured for information only", trial.reason]))
            )
        self.trials.append(trial)

    def confirm(
        self, sequences: Sequence[TokenSequence], fp32: Answers, latency: Mapping[str, float] | None
    ) -> list[Trial]:
        """Run the preferred trial on all texts and judge it again, until one passes there too or none is left.

        Returns the trials without those that would pass but were not preferred.
        """
        while (best := pick(self.trials, latency)) is not None:
            self.progress(f"int8: {best.name} on all validation texts")
            found = answers_of(self.forms[best.name].decoder, sequences)
            again = self._judged(best, fp32, found)
            self.trials = [again if trial is best else trial for trial in self.trials]
            self.confirmed[best.name] = found
            if not again.reason:
                return [trial for trial in self.trials if trial.reason or trial is again]
        return self.trials

    def _judged(self, trial: Trial, reference: Answers, found: Answers) -> Trial:
        drop = metric_drop(self.judge, reference.tallies, found.tallies)
        agreement = same_choice(reference, found)
        reasons = []
        if not np.isfinite(found.tallies).all():
            reasons.append("it gives logits that are not finite")
        if drop > self.limits.max_drop:
            reasons.append(f"the {self.judge.metric} {self.judge.change(drop)}, more than {self.limits.max_drop:g}")
        if agreement < self.limits.min_agreement:
            reasons.append(
                f"its next token is fp32's in {agreement:.4f} of the cases, less than {self.limits.min_agreement:g}"
            )
        return replace(trial, drop=drop, agreement=agreement, reason=" and ".join(reasons))

    def section(self, choice: Choice, speeds: Mapping[str, Any], path: str) -> Row | None:
        """report["export"]["int8"]: the kept file; agreement is over all texts, differences of logits over the sample."""
        if choice.form is None:
            return None
        form = self.forms[choice.form.name]
        agreement = next(trial.agreement for trial in self.trials if trial.name == form.name)
        return {
            "path": path,
            "name": form.name,
            "size_bytes": form.size_bytes,
            **speeds[form.name],
            "agreement": agreement,
            **form.gaps,
            "batch_invariant": form.batch_invariant,
            "step_invariant": form.step_invariant,
            "passed": choice.served,
            "reason": choice.reason,
        }

    def rows(self, choice: Choice, speeds: Mapping[str, Any], fp32: float) -> list[Row]:
        """report["export"]["candidates"]; figures are null where the candidate could not be built.

        "metric" is what the drop makes of `fp32`, the metric of fp32 ONNX on all texts, where only a sample was run.
        """
        return [self._row(trial, choice, speeds, fp32) for trial in self.trials]

    def _row(self, trial: Trial, choice: Choice, speeds: Mapping[str, Any], fp32: float) -> Row:
        form = trial.form
        gated = any(row["name"] == "int8_speed" for row in choice.gates)
        slower = gated and form is not None and not trial.reason and (
            speeds["onnx"]["latency_ms"]["1"] / speeds[trial.name]["latency_ms"]["1"] <= ANSWERS.least_ratio
        )  # fmt: skip
        preferred = form is not None and choice.form is not None and form.name == choice.form.name
        reason = trial.reason or (
            choice.reason
            if preferred
            else "it is slower than fp32 ONNX"
            if slower
            else "it passes, and another candidate was preferred"
        )
        figures = speeds[trial.name] if form else dict.fromkeys(speeds["onnx"])
        return {
            "name": trial.name,
            "metric": self._metric(trial, fp32) if form else None,
            "agreement": trial.agreement if form else None,
            **figures,
            "size_bytes": form.size_bytes if form else None,
            "passed": not trial.reason and not slower,
            "reason": reason,
        }

    def _metric(self, trial: Trial, fp32: float) -> float:
        if trial.name in self.confirmed:
            return float(self.judge.score(self.confirmed[trial.name].tallies, NO_LABELS, None))
        return fp32 - trial.drop if self.judge.higher_is_better else fp32 * (1 + trial.drop)


def metric_drop(judge: Judge, reference: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """How much worse the metric is on the same texts, as a fraction; infinity where it is no number."""
    if not np.isfinite(other).all():
        return float("inf")
    before, after = (judge.score(tallies, NO_LABELS, None) for tallies in (reference, other))
    return float(judge.drop(before, after, NO_LABELS))

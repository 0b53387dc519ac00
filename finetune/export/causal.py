"""Causal language models: torch → ONNX with a key/value cache → 8-bit ONNX, each measured and gated like all forms.

What is compared: perplexity on all validation texts; logits on a sample, at several shapes, and after prompts read token by
token; the text that each form writes. What is timed: the time to the first token, and tokens a second.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from finetune.bundle import INT8 as INT8_PATH
from finetune.bundle import MODEL_FOLDER
from finetune.bundle import ONNX as ONNX_PATH
from finetune.errors import ExportError, GateError
from finetune.export.bnb import measure_causal
from finetune.export.causal_graph import export_cached
from finetune.export.causal_measure import (
    Answers,
    TorchDecoder,
    answers_of,
    same_choice,
    sample_of,
    shape_gap,
)
from finetune.export.causal_trials import (
    ANSWERS,
    NO_LABELS,
    CausalBench,
    CausalForm,
    metric_drop,
    open_causal,
    require_finite,
)
from finetune.export.choose import Limits
from finetune.export.generation_speed import measure_generation
from finetune.export.greedy import Greedy, compare_greedy
from finetune.export.judge import Judge
from finetune.export.onnx import OPSET, evaluating
from finetune.export.stages import ExportPlan, ExportResult, head_modules, keep_form, weight_bytes
from finetune.export.support import check_bitsandbytes
from finetune.export.verdict import Row, decide, gate
from finetune.hardware import cpu, int8_target
from finetune.preprocess.language import Sequence as TokenSequence

GREEDY_TOKENS = 200
SAMPLE_TOKENS = 512
"""Validation tokens on which logits are compared and 8-bit candidates are tried; the preferred one then runs on all."""


def export_causal(
    model: nn.Module,
    folder: Path,
    sequences: Sequence[TokenSequence],
    encoder: Any,
    *,
    plan: ExportPlan,
    judge: Judge,
    prompts: Sequence[Sequence[int]],
    torch_tallies: NDArray[np.float64],
    model_folder: Path | None = None,
    progress: Callable[[str], None],
) -> ExportResult:
    """Write `folder`/onnx/model.onnx and, where one passes, model.int8.onnx; measure and gate them.

    `sequences` are the validation texts, `torch_tallies` (N, 3) torch's tallies of them; `prompts` token ids to go on from.
    `encoder` is the texts' LanguageEncoder; the sequences are encoded already. `model_folder` holds the torch form,
    `folder`/model when None. `progress` is given one line per step. The result's `logits` are tallies (N, 3).
    GateError if fp32 ONNX misses a gate, ExportError if a form cannot be built or gives logits that are not finite.
    """
    started = time.perf_counter()
    if plan.bitsandbytes:
        check_bitsandbytes("language")
    _check(sequences, torch_tallies)
    model_folder = model_folder or folder / MODEL_FOLDER
    native = int8_target(cpu().flags)
    target = native if plan.int8_cpu == "native" else plan.int8_cpu
    sample = sample_of(sequences, SAMPLE_TOKENS)
    with evaluating(model), tempfile.TemporaryDirectory(prefix=".int8-", dir=folder) as scratch:
        network = TorchDecoder(model)
        progress("ONNX: exporting")
        export_cached(model, folder / ONNX_PATH)
        progress("ONNX: comparing with torch")
        reference = answers_of(network, sample, keep_logits=True)
        unit = logit_unit(reference)
        fp32 = open_causal("fp32 ONNX", folder / ONNX_PATH, sample, reference, unit, keep_logits=True)
        parity, gates = _compare(network, reference, fp32, sequences, _context(model), plan, unit)
        _refuse(gates)
        progress(f"ONNX: writing {GREEDY_TOKENS} tokens after each of {len(prompts)} prompts")
        greedy = _greedy(network, fp32, prompts, _context(model), plan.tolerance * unit)
        everything = answers_of(fp32.decoder, sequences)
        require_finite(fp32.name, everything)
        gates += [_greedy_gate(greedy), _drop_gate(judge, torch_tallies, everything, plan)]
        _refuse(gates)
        limits = Limits(plan.int8_max_drop, plan.int8_min_agreement)
        bench = CausalBench(fp32, Path(scratch), sample, judge, limits, unit, progress)
        if plan.int8_mode == "auto":
            bench.try_all(target)
        progress("measuring speed")
        prompt = _prompt(sequences, min(plan.prompt_tokens, _context(model) // 2))
        decoders = {name: form.decoder for name, form in bench.forms.items()}
        speeds = measure_generation({"torch": network, "onnx": fp32.decoder, **decoders}, prompt)
        answer_ms = {name: figures["latency_ms"]["1"] for name, figures in speeds.items()}
        trials = bench.confirm(sequences, everything, answer_ms if target == native else None)
        choice = decide(
            trials, fp32.as_form(), speeds, limits, judge,
            target=target, native=native, asked=plan.int8_mode != "off", terms=ANSWERS,
        )  # fmt: skip
        if choice.form:
            keep_form(choice.form.path, folder / INT8_PATH)
    score = float(judge.score(everything.tallies, NO_LABELS))
    report: dict[str, object] = {
        "tolerance": plan.tolerance,
        "max_drop": plan.max_drop,
        "int8_max_drop": plan.int8_max_drop,
        "int8_min_agreement": plan.int8_min_agreement,
        "cpu_target": target,
        "measured_on": cpu().model,
        "torch": {"size_bytes": weight_bytes(model, model_folder), **speeds["torch"]},
        "onnx": {
            "path": ONNX_PATH,
            "size_bytes": fp32.size_bytes,
            **speeds["onnx"],
            **parity,
            "opset": OPSET,
            "batch_invariant": fp32.batch_invariant,
            "step_invariant": fp32.step_invariant,
        },
        "int8": bench.section(choice, speeds, INT8_PATH),
        "candidates": bench.rows(choice, speeds, score),
        "bitsandbytes": _bitsandbytes(model, model_folder, sample, reference, prompt, judge, plan, progress),
        "greedy": greedy.to_json(),
        "sample_tokens": int(reference.tallies[:, 1].sum()),
        "prompt_tokens": prompt.shape[1],
        "gates": gates + list(choice.gates),
        "served": "int8" if choice.served else "onnx",
        "served_reason": choice.reason,
        "seconds": round(time.perf_counter() - started, 2),
    }
    kept = {"int8": bench.confirmed[choice.form.name].tallies} if choice.form else {}
    return ExportResult(report, {"onnx": everything.tallies, **kept})


def logit_unit(answers: Answers) -> float:
    """The size of a logit, at least 1: rounding errors grow with it. The root mean square of each token's logits, averaged."""
    sizes = [np.sqrt(np.square(logits, dtype=np.float64).mean(axis=1)) for logits in answers.logits]
    return max(1.0, float(np.concatenate(sizes).mean()))


def _check(sequences: Sequence[TokenSequence], torch_tallies: NDArray[np.float64]) -> None:
    if not len(sequences) or np.shape(torch_tallies) != (len(sequences), 3):
        raise ExportError(
            f"export got {len(sequences)} texts and tallies of the shape {np.shape(torch_tallies)}; there must be three each"
        )
    if not np.isfinite(torch_tallies).all():
        raise ExportError(
            "the trained model gives logits that are not finite; lower transfer.learning_rate and train again"
        )


def _context(model: nn.Module) -> int:
    """Most tokens that the model's positions allow; 2^31 where nothing says."""
    config = getattr(model, "config", None)
    return int(getattr(config, "max_position_embeddings", None) or 2**31)


def _compare(
    network: TorchDecoder, reference: Answers, fp32: CausalForm, sequences: Sequence[TokenSequence],
    context: int, plan: ExportPlan, unit: float,
) -> tuple[dict[str, float], list[Row]]:  # fmt: skip
    """Parity figures of fp32 ONNX against torch, and their gate."""
    stream = [token for row in sequences[:8] for token in row.ids]
    shapes = shape_gap(network, fp32.session, stream, context)
    worst = max(fp32.gaps["max_abs_diff"], shapes) / unit
    of = "" if unit == 1 else " of the logits' size"
    sentence = f"fp32 ONNX differs from torch by at most {worst:.2g}{of} (limit {plan.tolerance:g}) on validation texts and other shapes"
    figures = {
        "agreement": same_choice(reference, fp32.answers),
        **fp32.gaps,
        "shapes_max_abs_diff": shapes,
        "logit_unit": unit,
    }
    return figures, [gate("onnx_parity", plan.tolerance, worst, worst <= plan.tolerance, sentence)]


def _greedy(
    network: TorchDecoder, fp32: CausalForm, prompts: Sequence[Sequence[int]], context: int, tolerance: float
) -> Greedy:
    longest = max((len(prompt) for prompt in prompts), default=0)
    return compare_greedy(network, fp32.decoder, prompts, max(1, min(GREEDY_TOKENS, context - longest)), tolerance)


def _greedy_gate(greedy: Greedy) -> Row:
    apart = greedy.differing - greedy.ties
    return gate("onnx_greedy", 0.0, float(apart), greedy.passed, greedy.sentence())


def _drop_gate(judge: Judge, torch_tallies: NDArray[np.float64], found: Answers, plan: ExportPlan) -> Row:
    drop = metric_drop(judge, torch_tallies, found.tallies)
    sentence = f"{judge.metric} {judge.change(drop)} from torch to fp32 ONNX (it may get worse by {plan.max_drop:g})"
    return gate("onnx_metric_drop", plan.max_drop, drop, drop <= plan.max_drop, sentence)


def _refuse(gates: Sequence[Row]) -> None:
    if broken := [str(gate["sentence"]) for gate in gates if not gate["passed"]]:
        raise GateError(f"export refused: {' and '.join(broken)}")


def _prompt(sequences: Sequence[TokenSequence], length: int) -> NDArray[np.int64]:
    """A prompt (1, length) of real tokens, texts in a row and repeated as needed."""
    stream = [token for row in sequences[:64] for token in row.ids]
    return np.resize(np.asarray(stream, np.int64), (1, max(1, length)))


def _bitsandbytes(
    model: nn.Module, model_folder: Path, sample: Sequence[TokenSequence], reference: Answers, prompt: NDArray[np.int64],
    judge: Judge, plan: ExportPlan, progress: Callable[[str], None],
) -> Row | None:  # fmt: skip
    if not plan.bitsandbytes:
        return None
    progress("bitsandbytes: measuring (slow on CPUs)")
    skip = head_modules(model)
    return measure_causal(model_folder, sample, reference, prompt, judge, skip=skip, cpu_name=cpu().model)

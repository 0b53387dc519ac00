"""Causal language models: torch → ONNX with a key/value cache → 8-bit ONNX, each measured and gated like all forms.

What is compared: perplexity on all validation texts; logits on a sample, at several shapes, and after prompts read token by
token; the text that each form writes. What is timed: the time to the first token, and tokens a second.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from finetune.bundle import INT8 as INT8_PATH
from finetune.bundle import ONNX as ONNX_PATH
from finetune.errors import ExportError
from finetune.export.bnb import head_modules, measure_causal
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
from finetune.export.generation_speed import measure_generation
from finetune.export.greedy import Greedy, compare_greedy
from finetune.export.onnx import evaluating_on_cpu
from finetune.export.outcome import (
    drop_gate,
    export_section,
    keep_best,
    onnx_section,
    parity_gate,
    refuse,
    torch_section,
)
from finetune.export.request import ExportRequest, ExportResult, native_target
from finetune.export.support import check_bitsandbytes
from finetune.export.verdict import Choice, Row, Speeds, gate
from finetune.hardware import cpu
from finetune.preprocess.language import Sequence as TokenSequence

GREEDY_TOKENS = 200
SAMPLE_TOKENS = 512
"""Validation tokens on which logits are compared and 8-bit candidates are tried; the preferred one then runs on all."""


@dataclass(frozen=True)
class CausalFp32:
    """fp32 ONNX beside torch: what both answer, parity figures, and the gates that they were held against."""

    form: CausalForm
    reference: Answers
    """Torch's to the sample, with logits."""
    unit: float
    """See `logit_unit`."""
    parity: Mapping[str, float]
    greedy: Greedy
    everything: Answers
    """To all validation texts."""
    gates: Sequence[Row]


def export_causal(given: ExportRequest, prompts: Sequence[Sequence[int]]) -> ExportResult:
    """Write `folder`/onnx/model.onnx and, where one passes, model.int8.onnx; measure and gate them.

    The request's rows are the validation texts as sequences, its answers tallies (N, 3), as are the result's `logits`;
    `prompts` are token ids to go on from.
    GateError if fp32 ONNX misses a gate, ExportError if a form cannot be built or gives logits that are not finite.
    """
    started = time.perf_counter()
    if given.plan.bitsandbytes:
        check_bitsandbytes("language")
    _check(given)
    sample = sample_of(given.rows, SAMPLE_TOKENS)
    prompt = _prompt(given.rows, min(given.plan.prompt_tokens, _context(given.module) // 2))
    with evaluating_on_cpu(given.module), tempfile.TemporaryDirectory(prefix=".int8-", dir=given.folder) as scratch:
        network = TorchDecoder(given.module)
        fp32 = _build_fp32(given, network, sample, prompts)
        bench = CausalBench(fp32.form, Path(scratch), sample, given.judge, given.plan.limits, fp32.unit, given.progress)
        if given.plan.int8_mode == "auto":
            bench.try_all(given.plan.target)
        given.progress("measuring speed")
        decoders = {name: form.decoder for name, form in bench.forms.items()}
        speeds = measure_generation({"torch": network, "onnx": fp32.form.decoder, **decoders}, prompt)
        choice = _choose(given, bench, fp32, speeds)
    forms = {
        "torch": torch_section(given, speeds),
        "onnx": {
            **onnx_section(fp32.form.as_form(), speeds, fp32.parity),
            "step_invariant": fp32.form.step_invariant,
        },
        "int8": bench.section(choice, speeds, INT8_PATH),
        "candidates": bench.rows(choice, speeds, float(given.judge.score(fp32.everything.tallies, NO_LABELS, None))),
        "bitsandbytes": _bitsandbytes(given, sample, fp32.reference, prompt),
        "greedy": fp32.greedy.to_json(),
        "sample_tokens": int(fp32.reference.tallies[:, 1].sum()),
        "prompt_tokens": prompt.shape[1],
    }
    kept = {"int8": bench.confirmed[choice.form.name].tallies} if choice.form else {}
    return ExportResult(
        export_section(given, forms, fp32.gates, choice, started), {"onnx": fp32.everything.tallies, **kept}
    )


def _build_fp32(
    given: ExportRequest, network: TorchDecoder, sample: Sequence[TokenSequence], prompts: Sequence[Sequence[int]]
) -> CausalFp32:
    """Export the network and compare the file with it; GateError before anything costly is done with a file that differs."""
    path, context = given.folder / ONNX_PATH, _context(given.module)
    given.progress("ONNX: exporting")
    export_cached(given.module, path)
    given.progress("ONNX: comparing with torch")
    reference = answers_of(network, sample, keep_logits=True)
    unit = logit_unit(reference)
    form = open_causal("fp32 ONNX", path, sample, reference, unit, keep_logits=True)
    parity = _parity(given, network, reference, unit, form)
    worst = max(parity["max_abs_diff"], parity["shapes_max_abs_diff"]) / unit
    same = parity_gate(given, worst, "" if unit == 1 else " of the logits' size", "validation texts and other shapes")
    refuse([same])
    given.progress(f"ONNX: writing {GREEDY_TOKENS} tokens after each of {len(prompts)} prompts")
    greedy = _greedy(network, form, prompts, context, given.plan.tolerance * unit)
    everything = answers_of(form.decoder, given.rows)
    require_finite(form.name, everything)
    drop = drop_gate(given, metric_drop(given.judge, given.answers, everything.tallies))
    gates = (same, _greedy_gate(greedy), drop)
    refuse(gates)
    return CausalFp32(form, reference, unit, parity, greedy, everything, gates)


def _choose(given: ExportRequest, bench: CausalBench, fp32: CausalFp32, speeds: Speeds) -> Choice:
    """Confirm the preferred candidate on all texts, and keep it if it passes there too."""
    here = given.plan.target == native_target()  # elsewhere, the speed of this machine says nothing
    latency = {name: figures["latency_ms"]["1"] for name, figures in speeds.items()} if here else None
    trials = bench.confirm(given.rows, fp32.everything, latency)
    return keep_best(given, trials, fp32.form.as_form(), speeds, ANSWERS)


def logit_unit(answers: Answers) -> float:
    """The size of a logit, at least 1: rounding errors grow with it. The root mean square of each token's logits, averaged."""
    sizes = [np.sqrt(np.square(logits, dtype=np.float64).mean(axis=1)) for logits in answers.logits]
    return max(1.0, float(np.concatenate(sizes).mean()))


def _check(given: ExportRequest) -> None:
    count, shape = len(given.rows), np.shape(given.answers)
    if not count or shape != (count, 3):
        raise ExportError(f"export got {count} texts and tallies of the shape {shape}; there must be three each")
    given.require_finite()


def _context(model: nn.Module) -> int:
    """Most tokens that the model's positions allow; 2^31 where nothing says."""
    config = getattr(model, "config", None)
    return int(getattr(config, "max_position_embeddings", None) or 2**31)


def _parity(
    given: ExportRequest, network: TorchDecoder, reference: Answers, unit: float, form: CausalForm
) -> dict[str, float]:
    """How fp32 ONNX differs from torch on the sample, and at other shapes with and without a cache."""
    stream = [token for row in given.rows[:8] for token in row.ids]
    return {
        "agreement": same_choice(reference, form.answers),
        **form.gaps,
        "shapes_max_abs_diff": shape_gap(network, form.session, stream, _context(given.module)),
        "logit_unit": unit,
    }


def _greedy(
    network: TorchDecoder, fp32: CausalForm, prompts: Sequence[Sequence[int]], context: int, tolerance: float
) -> Greedy:
    longest = max((len(prompt) for prompt in prompts), default=0)
    return compare_greedy(network, fp32.decoder, prompts, max(1, min(GREEDY_TOKENS, context - longest)), tolerance)


def _greedy_gate(greedy: Greedy) -> Row:
    apart = greedy.differing - greedy.ties
    return gate("onnx_greedy", 0.0, float(apart), greedy.passed, greedy.sentence())


def _prompt(sequences: Sequence[TokenSequence], length: int) -> NDArray[np.int64]:
    """A prompt (1, length) of real tokens, texts in a row and repeated as needed."""
    stream = [token for row in sequences[:64] for token in row.ids]
    return np.resize(np.asarray(stream, np.int64), (1, max(1, length)))


def _bitsandbytes(
    given: ExportRequest, sample: Sequence[TokenSequence], reference: Answers, prompt: NDArray[np.int64]
) -> Row | None:
    if not given.plan.bitsandbytes:
        return None
    given.progress("bitsandbytes: measuring (slow on CPUs)")
    skip = head_modules(given.module)
    return measure_causal(given.torch_folder, sample, reference, prompt, given.judge, skip=skip, cpu_name=cpu().model)

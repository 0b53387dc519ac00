"""The torch model with LLM.int8 weights (Dettmers et al. 2022, arXiv:2208.07339) through bitsandbytes.

It saves memory while the model stays in torch. On a CPU it is many times slower than fp32, because there are no fast
int8 kernels behind it; the measured row in the report says how much. It is never served.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from finetune.errors import ExportError
from finetune.export.causal_measure import Answers, TorchDecoder, answers_of, logit_gaps, same_choice
from finetune.export.choose import Yardstick
from finetune.export.generation_speed import measure_generation
from finetune.export.judge import Judge
from finetune.export.parity import Batch, Logits, Predict
from finetune.export.support import check_bitsandbytes

BUDGET_SECONDS = 60.0
"""Validation rows are run until this much time has passed; the report says how many there were."""


def load_bitsandbytes(folder: Path, *, skip: Sequence[str], device: str = "cpu") -> tuple[Predict, int]:
    """The classifier in `folder` with int8 linear layers: its prediction and its size in bytes in memory.

    `skip` names the modules that keep their precision (the head). ExportError if bitsandbytes is missing or refuses.
    """
    model = _load(folder, "AutoModelForSequenceClassification", skip, device)

    def predict(batch: Batch) -> Logits:
        inputs = {name: torch.from_numpy(array).to(device) for name, array in batch.items()}
        with torch.inference_mode(), _quiet():
            logits: Logits = model(**inputs).logits.float().cpu().numpy()
        return logits

    return predict, int(model.get_memory_footprint())


def head_modules(model: nn.Module) -> list[str]:
    """Top-level modules that are not the encoder: pooler-free heads, classifiers."""
    encoder = getattr(model, "base_model_prefix", "")
    return [name for name, _ in model.named_children() if name != encoder]


def _load(folder: Path, auto_class: str, skip: Sequence[str], device: str) -> Any:
    check_bitsandbytes("text")
    import transformers

    config = transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(skip))
    try:
        with _quiet():
            return getattr(transformers, auto_class).from_pretrained(
                folder, quantization_config=config, device_map={"": device}, local_files_only=True, use_safetensors=True
            )
    except Exception as error:  # transformers and bitsandbytes report an unsupported set-up in many classes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExportError(
            f"{folder}: bitsandbytes cannot load the model in int8 on {device} ({reason}); set export.bitsandbytes to false"
        ) from error


def measure_causal(
    folder: Path,
    sample: Sequence[Any],
    reference: Answers,
    prompt: NDArray[np.int64],
    judge: Judge,
    *,
    skip: Sequence[str],
    cpu_name: str,
) -> dict[str, object]:
    """report["export"]["bitsandbytes"] of a causal language model, on a sample of the validation texts.

    `reference` are torch's answers to it with logits. One short answer is timed: a token takes seconds on a CPU.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _load(folder, "AutoModelForCausalLM", skip, device)
    decoder = TorchDecoder(model)
    with _quiet():
        speeds = measure_generation({"it": decoder}, prompt, new_tokens=8, rounds=1, seconds=0)["it"]
        found = answers_of(decoder, sample, keep_logits=True)
    where = cpu_name if device == "cpu" else torch.cuda.get_device_name()
    tokens = int(found.tallies[:, 1].sum())
    return {
        "size_bytes": int(model.get_memory_footprint()),
        **speeds,
        "agreement": same_choice(reference, found),
        **logit_gaps(reference, found),
        "metric": float(judge.score(found.tallies, np.zeros(0), None)),
        "rows": len(sample),
        "note": f"torch with LLM.int8 weights on {where}, measured on {tokens} validation tokens; {_HONEST[device]}.",
    }


_HONEST = {
    "cpu": "a memory saving, not a speed-up: on a CPU it is slower than fp32",
    "cuda": "a memory saving",
}


def measure_bitsandbytes(
    folder: Path, yardstick: Yardstick, torch_logits: Logits, *, skip: Sequence[str], cpu_name: str
) -> dict[str, object]:
    """report["export"]["bitsandbytes"]: size, speed, and agreement with torch on as many rows as fit in the time.

    Each batch size is timed on few calls (three at batch 1, one at 32): a call takes seconds on a CPU.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    predict, size = load_bitsandbytes(folder, skip=skip, device=device)
    sample = yardstick.sample(32)
    predict(yardstick.encoder.collate(sample[:1]))
    single = float(np.median([_milliseconds(predict, yardstick.encoder.collate([row])) for row in sample[:3]]))
    many = _milliseconds(predict, yardstick.encoder.collate(sample))
    order = np.random.default_rng(0).permutation(len(yardstick.rows))
    parts: list[Logits] = []
    start = time.perf_counter()
    for begin in range(0, len(order), 16):
        chosen = [yardstick.rows[index] for index in order[begin : begin + 16]]
        parts.append(predict(yardstick.encoder.collate(chosen)))
        if time.perf_counter() - start > BUDGET_SECONDS:
            break
    logits = np.concatenate(parts)
    numbers = order[: len(logits)]
    seen = yardstick.only(numbers)
    compared = seen.compare(torch_logits[numbers], logits)
    where = cpu_name if device == "cpu" else torch.cuda.get_device_name()
    return {
        "size_bytes": size,
        "latency_ms": {"1": round(single, 3), "32": round(many, 3)},
        "throughput": {"1": round(1000 / single, 2), "32": round(32_000 / many, 2)},
        "agreement": compared["agreement"],
        "max_abs_diff": compared["max_abs_diff"],
        "metric": seen.score(logits),
        "rows": len(logits),
        "note": f"torch with LLM.int8 weights on {where}, measured on {len(logits)} of {len(order)} validation rows; {_HONEST[device]}.",
    }


def _milliseconds(predict: Predict, batch: Batch) -> float:
    start = time.perf_counter()
    predict(batch)
    return (time.perf_counter() - start) * 1000


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep bitsandbytes from logging a line per layer and call, and transformers from drawing a progress bar."""
    from transformers.utils import logging as hub_logging

    logger = logging.getLogger("bitsandbytes")
    level, bars = logger.level, hub_logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    hub_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            hub_logging.enable_progress_bar()

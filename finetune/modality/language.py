"""Texts that a language model goes on with: documents and conversations as blocks of tokens, weights or adapters that learn them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import nn

from finetune.bundle import TOKENIZER, Bundle
from finetune.data import LabelledData, Split
from finetune.data.blocks import Blocks, blocks_of
from finetune.errors import RecipeError
from finetune.evaluation.next_token import by_document
from finetune.export import ExportRequest, ExportResult, export_causal
from finetune.modality.questions import encode_named, prepare_questions, report, rows_of
from finetune.modality.spec import Modality, Setup
from finetune.modality.text import bundle_files, no_calibration, probe_texts, tokenizer_words
from finetune.model.adapters import has_adapter, merge, save_adapter
from finetune.model.backbone import convert_pickle
from finetune.model.causal import keeps_documents_apart, load_causal_lm
from finetune.model.gguf import checkpoint_from_gguf, is_gguf
from finetune.model.limits import longest_input
from finetune.model.tokenizer import language_preprocess, load_tokenizer, save_language_files
from finetune.model_files import has_safetensors
from finetune.preflight import Checked, check_length
from finetune.preprocess import Encoder
from finetune.preprocess.language import LanguageEncoder
from finetune.recipe import Recipe
from finetune.serve.generator import Generator
from finetune.sources import local_model
from finetune.train.blocks import BlockExamples
from finetune.train.job import Rows
from finetune.train.memory import available_memory, estimate_run, require_memory
from finetune.train.processes import minimum_over_processes
from finetune.transfer.plan import build_plan
from finetune.transfer.scale import Scale

ADAPTER_FOLDER = "adapter"
GREEDY_PROMPTS, GREEDY_PROMPT_TOKENS = 4, 24


def set_up(recipe: Recipe, checked: Checked, data: LabelledData, scale: Scale, accelerator: Accelerator) -> Setup:
    """See `SetUp`; texts become blocks once, and what training will need of memory is compared with what there is."""
    folder = _folder(recipe, checked, accelerator.process_index)
    check_length(recipe, folder)
    tokenizer = load_tokenizer(folder, language=True)
    with tempfile.TemporaryDirectory() as saved:
        tokenizer.save_pretrained(saved)
        encoder = LanguageEncoder(
            Path(saved) / TOKENIZER, language_preprocess(tokenizer, folder, recipe.data.max_length)
        )
    model = load_causal_lm(folder, seed=recipe.seed, adapter=recipe.transfer.adapter)
    if recipe.data.packing and not keeps_documents_apart(model.module):
        raise RecipeError(
            f"data.packing: {model.architecture} lets documents of one block see each other; set data.packing to false"
        )
    train = blocks(recipe, encoder, data.train, packing=recipe.data.packing)
    validation = blocks(recipe, encoder, data.validation, packing=False)
    examples = BlockExamples(train.sequences, encoder)
    longest = max(len(row.ids) for part in (train, validation) for row in part.sequences)
    memory, notes = _memory(recipe, model, longest, accelerator)
    return Setup(
        folder, model, encoder, examples, examples, rows_of(encoder, validation),
        calibration=(), workers=0,
        save_processor=lambda into: save_language_files(tokenizer, folder, into),
        notes=(*_told(train, recipe), *notes),
        facts={
            "tokens": {"train": train.facts, "validation": validation.facts},
            "memory": memory,
            "questions": prepare_questions(recipe, encoder, data, longest_input(folder)),
        },
    )  # fmt: skip


def _folder(recipe: Recipe, checked: Checked, rank: int) -> Path:
    """The backbone as a folder with config.json and safetensors, made of what the recipe names if it is something else."""
    own = checked.workspace.converted(rank)
    folder = local_model(checked.backbone, allow_pickle=recipe.backbone.allow_pickle)
    if is_gguf(folder):
        return checkpoint_from_gguf(folder, own)
    return folder if has_safetensors(path.name for path in folder.iterdir()) else convert_pickle(folder, own)


def blocks(recipe: Recipe, encoder: LanguageEncoder, split: Split, *, packing: bool) -> Blocks:
    return blocks_of(
        encode_named(encoder, split), recipe.data.max_length,
        packing=packing, overlong=recipe.data.overlong, places=split.places, begin=encoder.begin,
    )  # fmt: skip


def _told(train: Blocks, recipe: Recipe) -> list[str]:
    facts = train.facts
    return [
        f"{facts['tokens']:,} training tokens in {facts['blocks']:,} blocks of at most {recipe.data.max_length}; "
        f"{facts['truncated_share']:.1%} cut off, {facts['masked_share']:.1%} without loss, {facts['padding_share']:.1%} padding"
    ]


def _memory(
    recipe: Recipe, model: Any, length: int, accelerator: Accelerator
) -> tuple[dict[str, Any] | None, list[str]]:
    """report["language"]["memory"], and what to say about it; TrainingError when it cannot fit and the recipe does not insist."""
    plan = build_plan(recipe.transfer, recipe.train, len(model.groups))
    on_cpu = accelerator.device.type == "cpu"
    needed = estimate_run(
        model, plan, recipe.train,
        length=length, precision=accelerator.mixed_precision, processes=accelerator.num_processes, on_cpu=on_cpu,
    )  # fmt: skip
    if needed is None:
        return None, []
    own = available_memory(accelerator.device, processes=accelerator.num_processes, loaded=model.module)
    free = minimum_over_processes(own, accelerator)
    warning = require_memory(needed, free, recipe.train.memory)
    sentence = needed.sentence(free)
    return {**needed.to_json(), "available": free, "sentence": sentence}, [warning or sentence]


def describe(recipe: Recipe, setup: Setup, data: LabelledData) -> dict[str, Any]:
    """Token counts of every split, and how long texts were cut. The test split is counted only now, when training is over."""
    assert isinstance(setup.encoder, LanguageEncoder)
    test = blocks(recipe, setup.encoder, data.test, packing=False)
    return {
        "max_length": recipe.data.max_length,
        "packing": recipe.data.packing,
        "overlong": recipe.data.overlong,
        "tokens": {**setup.facts["tokens"], "test": test.facts},
    }


def rows(recipe: Recipe, encoder: Encoder, split: Split) -> Rows:
    """Pieces of documents, one to a row: packed blocks would join documents, and intervals are drawn over documents."""
    assert isinstance(encoder, LanguageEncoder)
    return rows_of(encoder, blocks(recipe, encoder, split, packing=False))


def by_input(answers: np.ndarray, rows: Rows) -> np.ndarray:
    """Tallies of whole documents and conversations."""
    return by_document(answers, [row.rows for row in rows.inputs])


def finish(recipe: Recipe, setup: Setup, folder: Path) -> nn.Module:
    """The network with its adapter merged, which is also saved alone, in peft's format."""
    module = setup.model.module
    if has_adapter(module):
        base = recipe.card.base_model or (None if recipe.backbone.name.startswith("package:") else recipe.backbone.name)
        save_adapter(module, folder / ADAPTER_FOLDER, base_model=base)
        module = merge(module)
    return module


def export(given: ExportRequest) -> ExportResult:
    """See `export_causal`; the prompts are the beginnings of a few texts, spread over all."""
    spread = np.linspace(0, len(given.rows) - 1, min(GREEDY_PROMPTS, len(given.rows))).astype(int)
    return export_causal(given, [given.rows[row].ids[:GREEDY_PROMPT_TOKENS] for row in spread])


def served(folder: Path, split: Split, rows: Rows) -> np.ndarray:
    """Tallies of a bundle's Generator, piece by piece as torch was measured."""
    return Generator(folder, verify=False).tallies_of(rows.inputs)


def language_probes(bundle: Bundle) -> list[Any]:
    """Texts of the tokenizer's own words, few enough that they fit into a block even where a word becomes several tokens."""
    return probe_texts(sorted(tokenizer_words(bundle)), max(1, bundle.preprocess.max_length // 8))  # type: ignore[union-attr]


MODALITY = Modality(
    set_up=set_up,
    describe=describe,
    bundle_files=bundle_files,
    rows=rows,
    by_input=by_input,
    finish=finish,
    export=export,
    served=served,
    report=report,
    probes=language_probes,
    calibration_rows=no_calibration,
)

"""Texts that a language model goes on with: documents and conversations as blocks of tokens, weights or adapters that learn them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from finetune.bundle import TOKENIZER, Bundle
from finetune.bundle.unchanged import carry_unchanged
from finetune.data import LabelledData, Split
from finetune.data.blocks import Blocks, blocks_of
from finetune.data.general import read_texts
from finetune.errors import RecipeError, SourceError
from finetune.evaluation import unigram_baselines
from finetune.evaluation.next_token import by_document
from finetune.explain.continuations import continue_prompts, opening_prompts, side_by_side
from finetune.explain.memorise import MemorisationCheck, prepare_check
from finetune.export import ExportResult, export_causal
from finetune.modality.spec import Exporting, Finished, Modality, Setup
from finetune.modality.text import bundle_files, no_calibration, probe_texts, tokenizer_words
from finetune.model.adapters import has_adapter, merge, save_adapter
from finetune.model.backbone import convert_pickle
from finetune.model.causal import keeps_documents_apart, load_causal_lm
from finetune.model.gguf import checkpoint_from_gguf, is_gguf
from finetune.model.tokenizer import language_preprocess, load_tokenizer, save_language_files
from finetune.model_files import has_safetensors
from finetune.preflight import Checked
from finetune.preprocess import Encoder
from finetune.preprocess.language import Conversation, LanguageEncoder, LanguageInput
from finetune.recipe import Recipe
from finetune.serve.generator import Generator
from finetune.sources import find_source, local_model
from finetune.train.blocks import BlockExamples
from finetune.train.job import Rows
from finetune.train.memory import available_memory, estimate_run, require_memory
from finetune.train.predict import in_order, predict_answers
from finetune.transfer.plan import build_plan
from finetune.transfer.scale import Scale

ADAPTER_FOLDER = "adapter"
GREEDY_PROMPTS, GREEDY_PROMPT_TOKENS = 4, 24


def set_up(recipe: Recipe, checked: Checked, data: LabelledData, scale: Scale, accelerator: Accelerator) -> Setup:
    """See `SetUp`; texts become blocks once, and what training will need of memory is compared with what there is."""
    folder = _folder(recipe, checked, accelerator.process_index)
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
    train = _blocks(recipe, encoder, data.train, packing=recipe.data.packing)
    validation, test = (_blocks(recipe, encoder, split, packing=False) for split in (data.validation, data.test))
    examples = BlockExamples(train.sequences, encoder)
    longest = max(len(row.ids) for blocks in (train, validation, test) for row in blocks.sequences)
    memory, notes = _memory(recipe, model, longest, accelerator)
    return Setup(
        folder, model, encoder, examples, examples, _rows(encoder, validation),
        calibration=(), workers=0,
        save_processor=lambda into: save_language_files(tokenizer, folder, into),
        notes=(*_told(train, recipe), *notes),
        facts={"tokens": {"train": train.facts, "validation": validation.facts, "test": test.facts}, "memory": memory},
    )  # fmt: skip


def _folder(recipe: Recipe, checked: Checked, rank: int) -> Path:
    """The backbone as a folder with config.json and safetensors, made of what the recipe names if it is something else."""
    own = checked.workspace.state / f"backbone.{rank}"
    folder = local_model(checked.backbone, allow_pickle=recipe.backbone.allow_pickle)
    if is_gguf(folder):
        return checkpoint_from_gguf(folder, own)
    return folder if has_safetensors(path.name for path in folder.iterdir()) else convert_pickle(folder, own)


def _blocks(recipe: Recipe, encoder: LanguageEncoder, split: Split, *, packing: bool) -> Blocks:
    return blocks_of(
        encoder.encode(split.inputs), recipe.data.max_length,  # type: ignore[arg-type]
        packing=packing, overlong=recipe.data.overlong, places=split.places, begin=encoder.begin,
    )  # fmt: skip


def _rows(encoder: LanguageEncoder, blocks: Blocks) -> Rows:
    return Rows(blocks.sequences, [len(row.ids) for row in blocks.sequences], encoder.targets(blocks.sequences))


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
    free = available_memory(accelerator.device, processes=accelerator.num_processes, loaded=model.module)
    warning = require_memory(needed, free, recipe.train.memory)
    sentence = needed.sentence(free)
    return {**needed.to_json(), "available": free, "sentence": sentence}, [warning or sentence]


def describe(recipe: Recipe, setup: Setup) -> dict[str, Any]:
    """Token counts of every split, and how long texts were cut."""
    return {
        "max_length": recipe.data.max_length,
        "packing": recipe.data.packing,
        "overlong": recipe.data.overlong,
        "tokens": setup.facts["tokens"],
    }


def rows(recipe: Recipe, encoder: Encoder, split: Split) -> Rows:
    """Pieces of documents, one to a row: packed blocks would join documents, and intervals are drawn over documents."""
    assert isinstance(encoder, LanguageEncoder)
    return _rows(encoder, _blocks(recipe, encoder, split, packing=False))


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


def export(given: Exporting) -> ExportResult:
    """See `export_causal`."""
    sequences = given.rows.inputs
    spread = np.linspace(0, len(sequences) - 1, min(GREEDY_PROMPTS, len(sequences))).astype(int)
    return export_causal(
        given.module, given.folder, sequences, given.encoder,
        plan=given.plan, judge=given.judge, prompts=[sequences[row].ids[:GREEDY_PROMPT_TOKENS] for row in spread],
        torch_tallies=given.answers, progress=given.progress,
    )  # fmt: skip


def served(folder: Path, split: Split, rows: Rows) -> np.ndarray:
    """Tallies of a bundle's Generator, piece by piece as torch was measured."""
    return Generator(folder, verify=False).tallies_of(rows.inputs)


def report(given: Finished) -> dict[str, Any]:
    """report["baselines"] and report["language"]: the base model beside the trained one, on the same texts."""
    recipe, setup = given.recipe, given.setup
    given.tell("measuring the base model as well")
    base = load_causal_lm(setup.folder, seed=recipe.seed).module.to("cpu").eval()
    own = given.module.to("cpu").eval()
    encoder: Any = setup.encoder
    networks: dict[str, nn.Module] = {"before": base, "after": own}
    general = _general(recipe, encoder)
    measured = {name: _measured(given, network, general, known=name == "after") for name, network in networks.items()}
    given.tell("writing sample continuations")
    return {
        "baselines": _baselines(given) if recipe.evaluation.baselines else None,
        "language": {
            **measured,
            "general_source": recipe.evaluation.general.source if recipe.evaluation.general else None,
            "generations": _generations(recipe, given.data.test.inputs, encoder, base, own),
            "memorisation": _memorisation(given, encoder, base, own),
            "memory": setup.facts["memory"],
            "unchanged": carry_unchanged(setup.folder, given.folder / "model"),
        },
    }


def _general(recipe: Recipe, encoder: LanguageEncoder) -> Rows | None:
    settings = recipe.evaluation.general
    if settings is None:
        return None
    source = general_source(recipe)
    texts = read_texts(
        source, text_column=settings.text_column, limit=settings.limit, seed=recipe.seed, encoding=recipe.data.encoding
    )
    blocks = blocks_of(
        encoder.encode(texts), recipe.data.max_length, packing=False,
        overlong="truncate" if recipe.data.overlong == "truncate" else "split",
        places=[f"text {number} of evaluation.general" for number in range(len(texts))], begin=encoder.begin,
    )  # fmt: skip
    return _rows(encoder, blocks)


def general_source(recipe: Recipe) -> Any:
    """The texts of evaluation.general; SourceError names the key."""
    assert recipe.evaluation.general is not None
    try:
        return find_source(recipe.evaluation.general.source, kind="dataset")
    except SourceError as error:
        raise SourceError(f"evaluation.general.source: {error}") from error


def _measured(given: Finished, network: nn.Module, general: Rows | None, *, known: bool) -> dict[str, Any]:
    """{"test", "general"}; known: whether the test rows' answers are those that were found already."""
    test = given.answers if known else _tallies(given, network, given.test)
    other = None if general is None else given.measure(_tallies(given, network, general), general)
    return {"test": given.measure(test, given.test), "general": other}


def _tallies(given: Finished, network: nn.Module, rows: Rows) -> np.ndarray:
    from finetune.tasks import TASKS

    return in_order(
        predict_answers(
            network,
            rows.inputs,
            rows.lengths,
            rows.labels,
            given.setup.encoder.collate,
            answers=TASKS[given.recipe.task].target.answers,
            batch_size=given.recipe.train.eval_batch_size,
            device=torch.device("cpu"),
        )  # fmt: skip
    )


def _generations(
    recipe: Recipe, inputs: Sequence[Any], encoder: LanguageEncoder, base: nn.Module, own: nn.Module
) -> list[dict[str, str]]:
    settings = recipe.evaluation.generation
    prompts = settings.prompts or opening_prompts(inputs)
    chats = any(isinstance(item, Conversation) for item in inputs) and encoder.settings.chat_template is not None
    encode: Callable[[str], list[int]] = _chat(encoder) if chats else encoder.prompt_ids
    before, after = (
        continue_prompts(
            network, prompts, encode, encoder.decode,
            max_new_tokens=settings.max_new_tokens, eos_token_ids=encoder.settings.eos_token_ids,
        )
        for network in (base, own)
    )  # fmt: skip
    return side_by_side(prompts, before, after)


def _chat(encoder: LanguageEncoder) -> Callable[[str], list[int]]:
    return lambda prompt: encoder.chat_ids([("user", prompt)])


def _memorisation(
    given: Finished, encoder: LanguageEncoder, base: nn.Module, own: nn.Module
) -> Mapping[str, Any] | None:
    settings = given.recipe.evaluation.memorisation
    inputs: Sequence[LanguageInput] = given.data.train.inputs  # type: ignore[assignment]
    check: MemorisationCheck | None = prepare_check(
        [row.ids for row in encoder.encode(inputs)],
        samples=settings.samples, prompt_tokens=settings.prompt_tokens, ngram=settings.ngram,
        max_new_tokens=settings.max_new_tokens, eos_token_ids=encoder.settings.eos_token_ids, seed=given.recipe.seed,
    )  # fmt: skip
    if check is None:
        return None
    return check.report(check.continuations(base), check.continuations(own), encoder.decode)


def _baselines(given: Finished) -> dict[str, Any]:
    examples = given.setup.plain
    assert isinstance(examples, BlockExamples)
    vocabulary = given.module.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    return unigram_baselines(
        [row.targets for row in examples.sequences],
        [row.targets for row in given.test.inputs],
        vocabulary,
        given.metrics,
    )


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

"""What a language model is asked beside its perplexity, before training and after: other texts, fixed prompts, training texts.

All of it is prepared before training, so that what cannot be asked is said at once and not when hours have gone by.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from finetune.bundle import MODEL_FOLDER
from finetune.bundle.unchanged import unchanged_files
from finetune.data import LabelledData, Split
from finetune.data.blocks import Blocks, blocks_of
from finetune.data.general import read_texts
from finetune.errors import DataError, RecipeError
from finetune.evaluation import unigram_baselines
from finetune.explain.continuations import continue_prompts, opening_prompts, side_by_side
from finetune.explain.memorise import MemorisationCheck, prepare_check
from finetune.modality.spec import Finished
from finetune.model.causal import load_causal_lm
from finetune.preflight import general_source
from finetune.preprocess.language import Conversation, LanguageEncoder, LanguageInput
from finetune.preprocess.language import Sequence as Tokens
from finetune.recipe import Recipe
from finetune.tasks import TASKS
from finetune.train.blocks import BlockExamples
from finetune.train.job import Rows
from finetune.train.predict import in_order, predict_answers

_CONVERSATION = re.compile(r"conversation (\d+): ")


@dataclass(frozen=True)
class Questions:
    """general: texts of another domain; prompts: what is continued greedily, with its ids; check: whether training text is recited."""

    general: Rows | None
    prompts: tuple[str, ...]
    ids: dict[str, list[int]]
    check: MemorisationCheck | None


def rows_of(encoder: LanguageEncoder, blocks: Blocks) -> Rows:
    """Sequences as rows that can be measured."""
    return Rows(blocks.sequences, [len(row.ids) for row in blocks.sequences], encoder.targets(blocks.sequences))


def encode_named(encoder: LanguageEncoder, split: Split) -> list[Tokens]:
    """A split's sequences; DataError names the place of a conversation that cannot be written or learned."""
    inputs: Sequence[Any] = split.inputs
    try:
        return encoder.encode(inputs)
    except DataError as error:
        named = _CONVERSATION.sub(lambda found: f"{split.places[int(found[1])]}: ", str(error), count=1)
        raise DataError(named) from error


def prepare_questions(recipe: Recipe, encoder: LanguageEncoder, data: LabelledData, context: int | None) -> Questions:
    """Everything that will be asked; context: the most tokens that the model takes, None when nothing says.

    RecipeError and DataError name the key of evaluation that cannot be followed.
    """
    settings = recipe.evaluation.generation
    inputs: Sequence[LanguageInput] = data.validation.inputs  # type: ignore[assignment]
    borrowed = not settings.prompts
    prompts = settings.prompts or opening_prompts(inputs)
    chats = any(isinstance(item, Conversation) for item in inputs) and encoder.settings.chat_template is not None
    encode: Callable[[str], list[int]] = (
        (lambda prompt: encoder.chat_ids([("user", prompt)])) if chats else encoder.prompt_ids
    )
    ids = {prompt: encode(prompt) for prompt in prompts}
    room = None if context is None else context - settings.max_new_tokens
    for prompt in prompts:
        if borrowed and room is not None and room > 0:
            ids[prompt] = ids[prompt][:room]
        if not ids[prompt]:
            raise RecipeError(
                "evaluation.generation.prompts: a prompt without any token cannot be continued; remove it"
            )
        if room is not None and len(ids[prompt]) > room:
            raise RecipeError(
                f"evaluation.generation: {len(ids[prompt])} tokens of a prompt and {settings.max_new_tokens} new ones are "
                f"more than the {context} that the model takes; lower max_new_tokens or shorten the prompt"
            )
    return Questions(_general(recipe, encoder), tuple(prompts), ids, _check(recipe, encoder, data, context))


def _general(recipe: Recipe, encoder: LanguageEncoder) -> Rows | None:
    settings = recipe.evaluation.general
    if settings is None:
        return None
    texts = read_texts(
        general_source(recipe), text_column=settings.text_column, limit=settings.limit, seed=recipe.seed,
        encoding=recipe.data.encoding,
    )  # fmt: skip
    blocks = blocks_of(
        encoder.encode(texts), recipe.data.max_length, packing=False,
        overlong="truncate" if recipe.data.overlong == "truncate" else "split",
        places=[f"text {number} of evaluation.general" for number in range(len(texts))], begin=encoder.begin,
    )  # fmt: skip
    return rows_of(encoder, blocks)


def _check(
    recipe: Recipe, encoder: LanguageEncoder, data: LabelledData, context: int | None
) -> MemorisationCheck | None:
    settings = recipe.evaluation.memorisation
    asked = settings.prompt_tokens + settings.max_new_tokens
    if settings.samples and context is not None and asked > context:
        raise RecipeError(
            f"evaluation.memorisation: {settings.prompt_tokens} tokens of a beginning and {settings.max_new_tokens} new ones are "
            f"more than the {context} that the model takes; lower either"
        )
    # Pieces as they were trained on: what was cut off was never seen.
    learned = blocks_of(
        encode_named(encoder, data.train), recipe.data.max_length,
        packing=False, overlong=recipe.data.overlong, places=data.train.places, begin=encoder.begin,
    )  # fmt: skip
    return prepare_check(
        [row.ids for row in learned.sequences],
        samples=settings.samples, prompt_tokens=settings.prompt_tokens, ngram=settings.ngram,
        max_new_tokens=settings.max_new_tokens, eos_token_ids=encoder.settings.eos_token_ids, seed=recipe.seed,
    )  # fmt: skip


@dataclass(frozen=True)
class _Answers:
    """What one network answers to the questions."""

    measured: dict[str, Any]
    continuations: list[str]
    recited: list[list[int]]


def report(given: Finished) -> dict[str, Any]:
    """report["baselines"] and report["language"]: the base model beside the trained one, on the same texts.

    The base is measured first and let go of, so that two networks are never at work at once.
    """
    recipe, setup, questions = given.recipe, given.setup, given.setup.facts["questions"]
    encoder: Any = setup.encoder
    own = given.module.to("cpu")
    base = load_causal_lm(setup.folder, seed=recipe.seed).module.to(given.device).eval()
    before = _asked(given, "base model", base, None)
    base.to("cpu")
    del base
    after = _asked(given, "trained model", own.to(given.device).eval(), given.answers)
    own.to("cpu")
    check: MemorisationCheck | None = questions.check
    return {
        "baselines": _baselines(given) if recipe.evaluation.baselines else None,
        "language": {
            "before": before.measured,
            "after": after.measured,
            "general_source": recipe.evaluation.general.source if recipe.evaluation.general else None,
            "generations": side_by_side(questions.prompts, before.continuations, after.continuations),
            "memorisation": None if check is None else check.report(before.recited, after.recited, encoder.decode),
            "memory": setup.facts["memory"],
            "unchanged": unchanged_files(setup.folder, given.folder / MODEL_FOLDER),
        },
    }


def _asked(given: Finished, name: str, network: nn.Module, known: np.ndarray | None) -> _Answers:
    """name: of the network, for the console; known: its answers to the test rows, if they were found already."""
    questions: Questions = given.setup.facts["questions"]
    encoder: Any = given.setup.encoder
    given.tell(f"{name}: perplexity")
    test = _tallies(given, network, given.test) if known is None else known
    general = questions.general
    measured = {
        "test": given.measure(test, given.test),
        "general": None if general is None else given.measure(_tallies(given, network, general), general),
    }
    given.tell(f"{name}: continuing {len(questions.prompts)} prompts")
    continuations = continue_prompts(
        network, questions.prompts, questions.ids.__getitem__, encoder.decode,
        max_new_tokens=given.recipe.evaluation.generation.max_new_tokens,
        eos_token_ids=encoder.settings.eos_token_ids,
    )  # fmt: skip
    if questions.check is None:
        return _Answers(measured, continuations, [])
    given.tell(f"{name}: continuing {len(questions.check.beginnings)} beginnings of training texts")
    return _Answers(measured, continuations, questions.check.continuations(network))


def _tallies(given: Finished, network: nn.Module, rows: Rows) -> np.ndarray:
    found = predict_answers(
        network, rows.inputs, rows.lengths, rows.labels, given.setup.encoder.collate,
        answers=TASKS[given.recipe.task].target.answers, batch_size=given.recipe.train.eval_batch_size,
        device=torch.device(given.device),
    )  # fmt: skip
    return in_order(found)


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

"""What a language model learns from, as the data layer sees it: documents, prompts with answers, conversations."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from finetune.data.examined import Examined
from finetune.data.label_cells import as_unicode
from finetune.data.near import is_empty, near_pairs, normalise
from finetune.data.rows import Input
from finetune.data.texts import as_text, text_cell
from finetune.errors import DataError
from finetune.preprocess.conversation import ASSISTANT, Conversation, conversation_of
from finetune.recipe.types import DataSettings

ReadCell = Callable[[Sequence[object], str, Path | None], tuple[Input, str]]
_SYSTEM = "system"


def input_columns(settings: DataSettings) -> tuple[tuple[str, str], ...]:
    """The text's column, the prompt's and the answer's, or the messages', each after the recipe's key for it.

    DataError for a prompt without an answer or the other way round, and for more than one kind of record.
    """
    pair = {"prompt_column": settings.prompt_column, "answer_column": settings.answer_column}
    given = {key: name for key, name in pair.items() if name is not None}
    if len(given) == 1:
        (there,) = given
        (missing,) = set(pair) - set(given)
        raise DataError(
            f"data.{there} is set without data.{missing}; a prompt is learned with its answer, so name both"
        )
    if given and settings.messages_column is not None:
        raise DataError(
            "data.messages_column and data.prompt_column are both set, but a row is a conversation or a prompt with its answer; remove one of them"
        )
    if settings.messages_column is not None:
        given = {"messages_column": settings.messages_column}
    if given and settings.text_column != type(settings).model_fields["text_column"].default:
        raise DataError(
            f"data.text_column and data.{next(iter(given))} are both set; keep the one that is learned from"
        )
    return tuple(given.items()) or (("text_column", settings.text_column),)


def cell_reader(settings: DataSettings) -> ReadCell:
    """What reads a row's cells: by the first of the columns that `input_columns` names."""
    return _READERS[input_columns(settings)[0][0]]


def pair_cells(cells: Sequence[object], place: str, root: Path | None) -> tuple[Input, str]:
    """A prompt and its answer; null is an empty text."""
    prompt, answer = cells
    return Conversation.pair(as_text(prompt, place, "prompt_column"), as_text(answer, place, "answer_column")), place


def messages_cell(cells: Sequence[object], place: str, root: Path | None) -> tuple[Input, str]:
    """A conversation: a list of {"role", "content"}, or such a list written as JSON, as in a CSV file. Null is an empty one.

    DataError for anything else, and for a conversation in which the assistant says nothing that could be learned.
    """
    (value,) = cells
    if isinstance(value, str):
        value = _from_json(value, place)
    if value is None or value == []:
        return Conversation(()), place
    if isinstance(value, Mapping) and {"role", "content"} <= set(value):  # how the hub keeps a list of structs
        value = list(zip(value["role"], value["content"], strict=False))
    try:
        found = conversation_of(value)  # type: ignore[arg-type]
    except DataError as error:
        raise DataError(f"{place}: {error}; check data.messages_column") from error
    for _, content in found.messages:
        as_unicode(content, place, "message")
    roles = [role for role, _ in found.messages]
    if ASSISTANT not in roles:
        raise DataError(
            f"{place}: the roles of the conversation are {', '.join(dict.fromkeys(roles))}, and only what the role '{ASSISTANT}' says is learned; rename its role or remove the row"
        )
    return found, place


def _from_json(text: str, place: str) -> object:
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f'{place}: the conversation is neither a list nor valid JSON; write a list of {{"role", "content"}}'
        ) from error


_READERS: dict[str, ReadCell] = {
    "text_column": text_cell,
    "prompt_column": pair_cells,
    "messages_column": messages_cell,
}


def is_empty_input(item: Input) -> bool:
    """Whether a document holds nothing visible, or a message of a conversation that is not the system's."""
    if not isinstance(item, Conversation):
        return is_empty(str(item))
    said = [content for role, content in item.messages if role != _SYSTEM]
    return not said or any(is_empty(content) for content in said)


def examine_language(items: Sequence[Input], settings: DataSettings) -> Examined:
    """Two inputs are identical if their normalised forms are, roles included."""
    identities = tuple(normalise(str(item)) for item in items)
    return Examined(identities, said={name: _said(item) for name, item in zip(identities, items, strict=True)})


def _said(item: Input) -> str:
    """What makes a conversation its own: one long system prompt in all of them would make all of them alike."""
    if not isinstance(item, Conversation):
        return str(item)
    return "\n".join(content for role, content in item.messages if role != _SYSTEM)


def near_language(
    identities: Sequence[str], examined: Examined, settings: DataSettings
) -> list[tuple[int, int, float]]:
    """Pairs of distinct inputs with many word 8-grams in common, the system's prompts set aside."""
    return near_pairs([examined.said[name] for name in identities], settings.audit.near_duplicate_similarity)


def content_of(item: Input) -> str:
    """What of an input enters the fingerprint: all of it."""
    return json.dumps(item.messages, ensure_ascii=False) if isinstance(item, Conversation) else str(item)

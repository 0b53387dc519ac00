"""Documents, prompts with answers, and conversations to token ids and to what a language model should say next; in numpy.

The same code feeds training and serving. Needs tokenizers, numpy and, for a chat template, jinja2; imports neither torch nor
transformers. Special tokens that a text spells out become those tokens, as in AutoTokenizer.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finetune.errors import BundleError, DataError
from finetune.preprocess.conversation import ASSISTANT, Conversation, conversation_of
from finetune.preprocess.sequence import IGNORED, Sequence, padding_mask, segment_mask
from finetune.preprocess.stored import stored_fields, tuples
from finetune.preprocess.text import open_tokenizer, refuse_what_is_no_text

if TYPE_CHECKING:
    from tokenizers import Encoding

__all__ = [
    "IGNORED",
    "Conversation",
    "LanguageEncoder",
    "LanguageInput",
    "LanguagePreprocess",
    "Sequence",
    "conversation_of",
]

LanguageInput = str | Conversation
"""A document, or a conversation."""


@dataclass(frozen=True)
class LanguagePreprocess:
    """How a text becomes the model's inputs; kept in the bundle's `preprocess.json`.

    `max_length` counts the tokens of a block. `special` holds the text of each special token that a chat template may name
    (`bos_token`, `eos_token`, …); the id of its `eos_token`, else the first of `eos_token_ids`, ends documents and answers.
    """

    max_length: int
    pad_token_id: int
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    add_bos: bool = False
    chat_template: str | None = None
    special: Mapping[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, (fits, meaning) in _FIELDS.items():
            if not fits(getattr(self, name)):
                raise BundleError(
                    f"the language preprocessing's '{name}' must be {meaning}, not {getattr(self, name)!r}"
                )
        if self.add_bos and self.bos_token_id is None:
            raise BundleError("the language preprocessing begins texts with a bos token, but has no 'bos_token_id'")

    def to_json(self) -> dict[str, object]:
        """Plain values that JSON can hold; `from_json` reads them back."""
        return {**asdict(self), "eos_token_ids": list(self.eos_token_ids), "special": dict(self.special)}

    @classmethod
    def from_json(cls, fields: object) -> LanguagePreprocess:
        """The settings that `to_json` wrote; BundleError names a field that is missing, unknown or of a wrong type."""
        return cls(**tuples(stored_fields(cls, fields, "the language section of preprocess.json")))


class LanguageEncoder:
    """Texts and conversations to ids, token for token what AutoTokenizer gives; immutable, safe to share between threads."""

    def __init__(self, tokenizer_file: Path, settings: LanguagePreprocess) -> None:
        """Read `tokenizer.json`; SourceError if it cannot be read, DataError for a chat template that is no Jinja."""
        tokenizer = open_tokenizer(tokenizer_file)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.settings = settings
        self._tokenizer = tokenizer
        self._chat = None
        if settings.chat_template is not None:
            from finetune.preprocess.chat import ChatTemplate

            self._chat = ChatTemplate(settings.chat_template, settings.special)
        self._begin = [settings.bos_token_id] if settings.add_bos and settings.bos_token_id is not None else []
        self._end = self._end_of_text()

    def _end_of_text(self) -> list[int]:
        eos = self.settings.special.get("eos_token")
        found = None if eos is None else self._tokenizer.token_to_id(eos)
        return [found] if found is not None else list(self.settings.eos_token_ids[:1])

    @property
    def begin(self) -> tuple[int, ...]:
        """What every text begins with: the bos token of a model that wants one, else nothing."""
        return tuple(self._begin)

    def encode(self, items: abc.Sequence[LanguageInput]) -> list[Sequence]:
        """One sequence per input, whole: nothing is packed, split or truncated; `rows` are the places in `items`.

        A document is learned from its second token on, and ends with the eos token. Of a conversation the tokens of each
        assistant message are learned and the token that ends it, of no other. Without a chat template it must be a prompt and
        an answer, which is followed by eos. DataError names an item that cannot be encoded.
        """
        documents = [row for row, item in enumerate(items) if not isinstance(item, Conversation)]
        encoded = dict(zip(documents, self._documents([items[row] for row in documents]), strict=True))
        return [
            self._conversation(item, row) if isinstance(item, Conversation) else _document(encoded[row], row)
            for row, item in enumerate(items)
        ]

    def _documents(self, texts: abc.Sequence[Any]) -> list[list[int]]:
        found = [self._begin + encoding.ids for encoding in self._encode(texts)]
        return [ids if ids[-1:] == self._end else ids + self._end for ids in found]

    def _conversation(self, conversation: Conversation, row: int) -> Sequence:
        try:
            ids, learned = self._chat_ids(conversation) if self._chat else self._pair_ids(conversation)
        except DataError as error:
            raise DataError(f"conversation {row}: {error}") from error
        following = zip(ids[1:], learned[1:], strict=True)
        targets = [token if counts else IGNORED for token, counts in following] + [IGNORED]
        return Sequence(ids, targets[: len(ids)], [0] * len(ids), (row,))

    def _chat_ids(self, conversation: Conversation) -> tuple[list[int], list[bool]]:
        """Token ids of a rendered conversation, and which of them the assistant says."""
        assert self._chat is not None
        text, spans = self._chat.answers(conversation.messages)
        (encoding,) = self._encode([text])
        learned = [False] * len(encoding.ids)
        for start, end in spans:
            # A token that begins before an answer and reaches into it is the assistant's too.
            said = [at for at, (first, last) in enumerate(encoding.offsets) if last > start and first < end]
            for at in said[: self._until_end([encoding.ids[at] for at in said])]:
                learned[at] = True
        return encoding.ids, learned

    def _until_end(self, said: abc.Sequence[int]) -> int:
        """How many of an answer's tokens there are up to the last that ends it; a template's line break after it is not said."""
        ends = {*self.settings.eos_token_ids, *self._end}
        return max((at + 1 for at, token in enumerate(said) if token in ends), default=len(said))

    def _pair_ids(self, conversation: Conversation) -> tuple[list[int], list[bool]]:
        """Prompt, answer and eos. The prompt's tokens are those that it has alone, as when an answer is asked for."""
        roles = [role for role, _ in conversation.messages]
        if roles != ["user", ASSISTANT]:
            raise DataError(
                f"the model has no chat template, so a conversation must be one prompt of the user and one answer, not {', '.join(roles) or 'nothing'}"
            )
        prompt, answer = (content for _, content in conversation.messages)
        first, both = (encoding.ids for encoding in self._encode([prompt, prompt + answer]))
        said = both[len(first) :] if both[: len(first)] == first else self.tokens(answer)
        ids = [*self._begin, *first, *said, *self._end]
        return ids, [at >= len(self._begin) + len(first) for at in range(len(ids))]

    def _encode(self, texts: abc.Sequence[Any]) -> list[Encoding]:
        try:
            return self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        except TypeError:
            refuse_what_is_no_text(texts)
            raise

    def tokens(self, text: str) -> list[int]:
        """Ids of a text as it is; nothing is added."""
        return self._encode([text])[0].ids

    def prompt_ids(self, text: str) -> list[int]:
        """Ids of a text to be continued: as `tokens`, after the bos token of a model that wants one."""
        return self._begin + self.tokens(text)

    def chat_ids(self, messages: Conversation | abc.Sequence[Any]) -> list[int]:
        """Ids of a conversation to be continued by an answer, as `render_chat` writes it."""
        return self.tokens(self.render_chat(messages, add_generation_prompt=True))

    def render_chat(self, messages: Conversation | abc.Sequence[Any], *, add_generation_prompt: bool) -> str:
        """A conversation in the words of the model's chat template, which transformers' apply_chat_template gives.

        messages: a Conversation, or a list of (role, content) or of {"role", "content"}. DataError where the model has no
        chat template, or where its template refuses the conversation.
        """
        if self._chat is None:
            raise DataError("the model has no chat template, so it takes a plain prompt and no conversation")
        return self._chat.render(conversation_of(messages).messages, add_generation_prompt=add_generation_prompt)

    def decode(self, ids: abc.Sequence[int], *, special: bool = False) -> str:
        """The text of some ids, without special tokens unless they are asked for."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=not special)

    def collate(self, rows: abc.Sequence[Sequence]) -> dict[str, NDArray[Any]]:
        """`input_ids`, `attention_mask` and `position_ids`, padded on the right to the longest row (at least 1).

        ids and positions are int64 (B, T). The mask is int64 (B, T), 1 for tokens, if every row is one segment; else bool
        (B, 1, T, T), true where the query (third axis) may see the key: not after it, and in its own segment. Positions
        begin at 0 in every segment. Padding sees only itself, so that no softmax is over nothing.
        """
        shape = (len(rows), max((len(row.ids) for row in rows), default=0) or 1)
        ids = np.full(shape, self.settings.pad_token_id, dtype=np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row.ids)] = row.ids
        packed = any(row.segments and row.segments[-1] != row.segments[0] for row in rows)
        mask, positions = (segment_mask if packed else padding_mask)(rows, shape)
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}

    def targets(self, rows: abc.Sequence[Sequence]) -> NDArray[np.int64]:
        """What should follow each token: int64 (B, T), `IGNORED` in padding and where no loss is taken."""
        targets = np.full((len(rows), max((len(row.ids) for row in rows), default=0) or 1), IGNORED, dtype=np.int64)
        for index, row in enumerate(rows):
            targets[index, : len(row.targets)] = row.targets
        return targets

    def size_of(self, row: Sequence) -> int:
        """Tokens of a row."""
        return len(row.ids)

    def __call__(self, items: abc.Sequence[LanguageInput]) -> dict[str, NDArray[Any]]:
        """`collate(encode(items))`."""
        return self.collate(self.encode(items))


def _document(ids: list[int], row: int) -> Sequence:
    return Sequence(ids, [*ids[1:], IGNORED][: len(ids)], [0] * len(ids), (row,))


def _is_whole(value: object, least: int = 0) -> bool:
    return type(value) is int and value >= least


_FIELDS: dict[str, tuple[Any, str]] = {
    "max_length": (lambda value: _is_whole(value, 1), "a whole number of tokens"),
    "pad_token_id": (_is_whole, "a token id"),
    "bos_token_id": (lambda value: value is None or _is_whole(value), "a token id or null"),
    "eos_token_ids": (lambda value: isinstance(value, tuple) and all(map(_is_whole, value)), "token ids"),
    "add_bos": (lambda value: isinstance(value, bool), "true or false"),
    "chat_template": (lambda value: value is None or isinstance(value, str), "a text or null"),
    "special": (
        lambda value: (
            isinstance(value, Mapping)
            and all(isinstance(k, str) and (v is None or isinstance(v, str)) for k, v in value.items())
        ),
        "texts by name",
    ),
}

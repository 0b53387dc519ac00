"""What people and a model say to each other, as plain text with roles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.errors import DataError

ASSISTANT = "assistant"


@dataclass(frozen=True)
class Conversation:
    """What was said, in order: each message is a role (`system`, `user`, `assistant`) and its content."""

    messages: tuple[tuple[str, str], ...]

    @classmethod
    def pair(cls, prompt: str, answer: str) -> Conversation:
        """A prompt of the user and the assistant's answer."""
        return cls((("user", prompt), (ASSISTANT, answer)))

    def __str__(self) -> str:
        """For people, and for finding duplicates; not what the network sees."""
        return "\n".join(f"{role}: {content}" for role, content in self.messages)


def conversation_of(messages: Conversation | Sequence[Any]) -> Conversation:
    """A conversation from a list of (role, content) or of {"role", "content"}; DataError names a message that is neither."""
    if isinstance(messages, Conversation):
        return messages
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise DataError(
            f"a conversation is of type {type(messages).__name__}; it must be a list of messages with role and content"
        )
    return Conversation(tuple(_message(message, at) for at, message in enumerate(messages, start=1)))


def _message(message: object, at: int) -> tuple[str, str]:
    if isinstance(message, Mapping):
        message = (message.get("role"), message.get("content"))
    if isinstance(message, tuple | list) and len(message) == 2:
        role, content = message
        if isinstance(role, str) and isinstance(content, str):
            return role, content
    raise DataError(f'message {at} of a conversation must have a "role" and a "content", both of them text')

"""Tokens to text as they come: whole characters only, and never a part of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from finetune.errors import DataError

CUT = "\ufffd"  # what tokenizers write for bytes that are no character, or not one yet
CONTEXT = 6  # of the prompt, so that a decoder that drops a text's leading blank keeps the first one said


class Detokeniser:
    """Text of one token after the other: joined, what `decode` gives for all of them, without an unfinished character.

    A character may be cut across tokens, so text that ends in bytes without a meaning is held until they have one.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int]) -> None:
        self._decode = decode
        self._ids = list(prompt[-CONTEXT:])
        self._window = 0  # from here on tokens are decoded again: some that were said already, and those held back
        self._said = len(self._ids)

    def push(self, token: int) -> str:
        """The text that became whole with this token; "" when none did."""
        self._ids.append(token)
        before, text = self._texts()
        if len(text) <= len(before) or text.endswith(CUT):
            return ""
        self._window, self._said = self._said, len(self._ids)
        return text[len(before) :]

    def flush(self) -> str:
        """What was held back, without the character that was never finished."""
        before, text = self._texts()
        self._window = self._said = len(self._ids)
        return text.rstrip(CUT)[len(before) :]

    def _texts(self) -> tuple[str, str]:
        return self._decode(self._ids[self._window : self._said]), self._decode(self._ids[self._window :])


class StopStrings:
    """Text up to the first of some strings; text that may be the beginning of one is held until it is known."""

    def __init__(self, stops: Sequence[str]) -> None:
        """DataError for an empty string, which would stop before the first word."""
        if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
            raise DataError("stop must be a list of texts, none of them empty")
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Text that may be said now, and whether a stop string was met; nothing of that string is said."""
        self._held += text
        met = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if met:  # the one that was whole first, so that it does not matter how the text came in pieces
            said, self._held = self._held[: min(met)[1]], ""
            return said, True
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        border = len(self._held) - keep
        said, self._held = self._held[:border], self._held[border:]
        return said, False

    def flush(self) -> str:
        """What was held back, at the end, where it can begin no stop string any more."""
        said, self._held = self._held, ""
        return said


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, but for the whole of it."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)

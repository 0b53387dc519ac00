"""A command line whose options may stand anywhere, and whose mistakes are one sentence each."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from finetune.errors import FinetuneError


class Parser(argparse.ArgumentParser):
    """Options may stand before, between and after other words, and what is wrong is said in one sentence.

    gathers: the positional that takes all words that are left, if one does.
    """

    gathers: str | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:  # type: ignore[override]
        found, left = super().parse_known_args(args, namespace)
        words, unknown = _words(left) if self.gathers else ([], left)
        if unknown:
            self.error(f"unknown argument '{unknown[0]}'")
        if self.gathers:
            # argparse gives a list up at the first option after it.
            setattr(found, self.gathers, [*(getattr(found, self.gathers) or []), *words])
        return found, []

    def error(self, message: str) -> NoReturn:
        place = self.prog.removeprefix("finetune").strip()
        raise FinetuneError(f"{place and f'{place}: '}{message}; see {self.prog} --help")


def _words(left: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words and the unknown options in what argparse left over; all are words after `--`."""
    end = left.index("--") if "--" in left else len(left)
    words = [word for word in left[:end] if word == "-" or not word.startswith("-")]
    return [*words, *left[end + 1 :]], [word for word in left[:end] if word not in words]

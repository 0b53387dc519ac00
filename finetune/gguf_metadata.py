"""What a GGUF file says of itself: its metadata, and names and sizes of its tensors, read without loading a weight.

The format is llama.cpp's (ggml/docs/gguf.md), little-endian, versions 2 and 3. Needs the standard library only.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import SourceError

GGUF_SUFFIX = ".gguf"
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_CUT = "it is cut short or damaged"


@dataclass(frozen=True)
class GgufHeader:
    """Metadata by name, and the tensors' names. A list of strings that was not asked for is only counted.

    parameters: numbers in all tensors together.
    """

    metadata: Mapping[str, Any]
    tensors: tuple[str, ...]
    parameters: int

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the network (`llama`, `gpt2`), which is also the prefix of its dimensions."""
        return str(self.metadata["general.architecture"])

    def dimension(self, name: str) -> int | None:
        """A whole number of the architecture, such as `context_length`; the largest where each layer has its own."""
        value = self.metadata.get(f"{self.architecture}.{name}")
        numbers = value if isinstance(value, list) else [value]
        return max((n for n in numbers if type(n) is int), default=None)


def is_gguf(path: Path) -> bool:
    """Whether a path names a GGUF file, by its ending; reading it tells whether it is one."""
    return path.suffix == GGUF_SUFFIX and path.is_file()


def read_gguf(path: Path, *, lists: Iterable[str] = ()) -> GgufHeader:
    """The header of a GGUF file; `lists` names the lists of strings (tokens, merges) to keep in full.

    SourceError when it is no GGUF file of a known version, or is cut short.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Reader(content, frozenset(lists)).header()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except (ValueError, struct.error, RecursionError) as error:  # mmap's word for an empty file is ValueError too
        reason = error if isinstance(error, ValueError) else _CUT
        raise SourceError(f"{path} is not readable as GGUF ({reason}); take a whole copy of the model") from error


class _Reader:
    """A cursor over the header, which is a sequence of values each of which says where the next begins."""

    def __init__(self, content: mmap.mmap, wanted: frozenset[str]) -> None:
        self.content, self.wanted, self.at = content, wanted, 0

    def header(self) -> GgufHeader:
        if self.content[:4] != _MAGIC:
            raise ValueError("it does not begin with the letters GGUF")
        self.at = 4
        version = self._scalar("I")
        if version not in _VERSIONS:
            raise ValueError(f"its version is {version}, not {' or '.join(map(str, _VERSIONS))}")
        tensors, entries = self._scalar("Q"), self._scalar("Q")
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            name = self._string()
            metadata[name] = self._value(self._scalar("I"), keep=name in self.wanted)
        if not isinstance(metadata.get("general.architecture"), str):
            raise ValueError("it names no architecture")
        found = [self._tensor() for _ in range(tensors)]
        return GgufHeader(metadata, tuple(name for name, _ in found), sum(size for _, size in found))

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.content, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def _string(self) -> str:
        begin, end = self._skip_string()
        return self.content[begin:end].decode("utf-8")

    def _skip_string(self) -> tuple[int, int]:
        length = self._scalar("Q")
        begin, self.at = self.at, self.at + length
        if self.at > len(self.content):
            raise ValueError(_CUT)
        return begin, self.at

    def _value(self, kind: int, *, keep: bool) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise ValueError(f"its metadata holds a value of the unknown type {kind}")
        member, count = self._scalar("I"), self._scalar("Q")
        if member == _STRING and not keep:
            for _ in range(count):
                self._skip_string()
            return count
        one: Callable[[], Any] = self._string if member == _STRING else lambda: self._value(member, keep=keep)
        return [one() for _ in range(count)]

    def _tensor(self) -> tuple[str, int]:
        """A tensor's name and the number of its elements."""
        name = self._string()
        size = math.prod([self._scalar("Q") for _ in range(self._scalar("I"))])
        self._scalar("I")
        self._scalar("Q")
        return name, size

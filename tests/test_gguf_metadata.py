"""The header of a GGUF file, read from bytes that are written here by hand."""

from __future__ import annotations

import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import SourceError
from finetune.gguf_metadata import read_gguf

KINDS = {"B": 0, "b": 1, "H": 2, "h": 3, "I": 4, "i": 5, "f": 6, "?": 7, "Q": 10, "q": 11, "d": 12}


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(kind: str, content: Any) -> bytes:
    """A typed value: a scalar by its struct code, `s` a string, `[x` a list of kind x."""
    if kind == "s":
        return struct.pack("<I", 8) + text(content)
    if kind.startswith("["):
        member = kind[1:]
        one = text if member == "s" else lambda item: struct.pack(f"<{member}", item)
        number = 8 if member == "s" else KINDS[member]
        return struct.pack("<IIQ", 9, number, len(content)) + b"".join(map(one, content))
    return struct.pack("<I", KINDS[kind]) + struct.pack(f"<{kind}", content)


def header(entries: dict[str, tuple[str, Any]], tensors: tuple[str, ...] = (), *, version: int = 3) -> bytes:
    body = b"".join(text(name) + value(*entry) for name, entry in entries.items())
    table = b"".join(text(name) + struct.pack("<IQQIQ", 2, 4, 8, 0, 64 * i) for i, name in enumerate(tensors))
    return b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries)) + body + table


LLAMA: dict[str, tuple[str, Any]] = {"general.architecture": ("s", "llama")}


def test_every_kind_of_value(tmp_path: Path) -> None:
    scalars = {f"x.{code}": (code, 1) for code in KINDS}
    entries = {**LLAMA, **scalars, "a.words": ("[s", ["é", ""]), "a.more": ("[s", ["b"]), "a.numbers": ("[i", [3, -4])}
    file = tmp_path / "m.gguf"
    file.write_bytes(header(entries, ("one.weight", "two.weight")) + bytes(64))
    found = read_gguf(file, lists=("a.words",))
    assert found.tensors == ("one.weight", "two.weight")
    assert found.parameters == 2 * 4 * 8
    assert found.metadata["a.words"] == ["é", ""]
    assert found.metadata["a.more"] == 1  # only counted
    assert found.metadata["a.numbers"] == [3, -4]
    assert all(found.metadata[name] == 1 for name in scalars)


def test_dimensions_of_the_architecture(tmp_path: Path) -> None:
    entries = {
        **LLAMA, "llama.block_count": ("I", 4), "llama.attention.head_count": ("[I", [2, 8, 4]), "gpt2.block_count": ("I", 9),
        "llama.name": ("s", "4"), "llama.flag": ("?", True),
    }  # fmt: skip
    file = tmp_path / "m.gguf"
    file.write_bytes(header(entries))
    found = read_gguf(file)
    assert found.architecture == "llama"
    wanted = ("block_count", "attention.head_count", "context_length", "name", "flag")
    assert [found.dimension(name) for name in wanted] == [4, 8, None, None, None]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty file"),
        (b"PK\x03\x04", "does not begin with the letters GGUF"),
        (header(LLAMA, version=1), "its version is 1, not 2 or 3"),
        (header({"general.name": ("s", "x")}), "names no architecture"),
        (header(LLAMA)[:-1], "cut short"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("x") + struct.pack("<I", 99), "unknown type 99"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63), "cut short"),
        (header(LLAMA)[:20], "cut short"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("x") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000,
            "cut short or damaged",
        ),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    with pytest.raises(SourceError) as caught:
        read_gguf(file)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read"):
        read_gguf(tmp_path / "none.gguf")


WHOLE = header({**LLAMA, "a.words": ("[s", ["x", "y"]), "a.numbers": ("[H", [1, 2])}, ("one.weight",))


@given(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=8))
def test_damage_is_an_error_of_ours_or_no_matter(
    tmp_path_factory: pytest.TempPathFactory, at: int, noise: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "damaged.gguf"
    for content in (WHOLE[:at], WHOLE[:at] + noise + WHOLE[at + len(noise) :]):
        file.write_bytes(content)
        with suppress(SourceError):
            read_gguf(file)


def test_it_needs_nothing_heavy() -> None:
    program = (
        "import sys, finetune.gguf_metadata\n"
        "heavy = {'torch', 'transformers', 'numpy', 'gguf'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

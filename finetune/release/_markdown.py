"""Markdown and front matter that no label name, path or description can break."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

# An underscore inside a word, an ampersand that begins no entity and a hash before a word mean nothing to Markdown.
_SPECIAL = re.compile(r"[\\`*\[\]<>|~$]|(?<![^\W_])_|_(?![^\W_])|&(?=[A-Za-z#])|#(?=\s|$)")
_BLOCK_START = re.compile(r"(?P<mark>[-+=](?=[\s=-]|$))|(?P<number>\d+)[.)](?=\s|$)")
_DROPPED = frozenset({"Cc", "Cs", "Cn"})  # control characters, lone surrogates, unassigned code points
NOT_FINITE = "⚠ not finite"


def one_line(value: object) -> str:
    """`value` as one line of printable text: white space runs become one space, control characters go."""
    joined = " ".join(str(value).split())
    kept = (c for c in joined if unicodedata.category(c) not in _DROPPED and c != "\ufeff")
    return " ".join("".join(kept).split())


def text(value: object) -> str:
    """`value` as plain inline Markdown: it is shown as it is, and starts no block, link, tag or table cell."""
    escaped = _SPECIAL.sub(lambda match: f"\\{match[0]}", one_line(value))
    start = _BLOCK_START.match(escaped)
    if start is None:
        return escaped
    if start["mark"]:
        return f"\\{escaped}"
    return f"{start['number']}\\{escaped[start.end('number') :]}"


def code(value: object) -> str:
    """`value` as a code span, whatever back-ticks it holds; not for table cells, where a pipe would still cut."""
    plain = one_line(value)
    if not plain:
        return "–"
    fence = "`" * (max((len(run) for run in re.findall("`+", plain)), default=0) + 1)
    pad = " " if plain[0] == "`" or plain[-1] == "`" else ""
    return f"{fence}{pad}{plain}{pad}{fence}"


def counted(count: int, noun: str) -> str:
    """`1 row`, `2 rows`, `2 processes`."""
    return f"{number(count)} {noun}" if count == 1 else f"{number(count)} {noun}{'es' if noun.endswith('s') else 's'}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int = 1) -> str:
    """A pipe table of finished Markdown cells; columns from `numbers_from` on are right-aligned."""
    rules = ["---" if index < numbers_from else "---:" for index in range(len(header))]
    lines = [list(header), rules, *[list(row) for row in rows]]
    if any(len(line) != len(header) for line in lines):
        raise ValueError(f"a table row does not have {len(header)} cells")
    return "\n".join(f"| {' | '.join(cell or '–' for cell in line)} |" for line in lines)


def bullets(items: Iterable[str]) -> str:
    """A list of finished Markdown lines."""
    return "\n".join(f"- {item}" for item in items)


def fenced(language: str, body: str) -> str:
    """A fenced code block whose fence is longer than any run of back-ticks in it."""
    fence = "`" * max(3, max((len(run) for run in re.findall("`+", body)), default=0) + 1)
    return f"{fence}{language}\n{body}\n{fence}"


def number(value: object, digits: int = 3) -> str:
    """A number with `digits` decimals, a dash for None, and a visible mark for NaN or infinity."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return text(value)
    if not math.isfinite(value):
        return NOT_FINITE
    if isinstance(value, int):
        return f"{value:,}"
    if value != 0 and abs(value) < 10**-digits:
        return f"{value:.1e}"
    return f"{value:,.{digits}f}"


def share(value: object) -> str:
    """A fraction as a percentage with one decimal."""
    if isinstance(value, int | float) and math.isfinite(value):
        return f"{100 * value:.1f} %"
    return number(value)


def interval(measured: Mapping[str, Any] | float | None, digits: int = 3) -> str:
    """A value with its confidence interval: `0.978 (0.951–0.990)`."""
    if not isinstance(measured, Mapping):
        return number(measured, digits)
    low, high = measured.get("low"), measured.get("high")
    if low is None or high is None:
        return number(measured.get("value"), digits)
    return f"{number(measured.get('value'), digits)} ({number(low, digits)}–{number(high, digits)})"


def megabytes(size: object) -> str:
    """A size in bytes as megabytes (10⁶)."""
    return f"{size / 1e6:,.1f} MB" if isinstance(size, int | float) and math.isfinite(size) else number(size)


def front_matter(metadata: Mapping[str, Any]) -> str:
    """YAML front matter between its `---` lines. Strings become one line, so none can close the block early."""
    dumped = yaml.safe_dump(_plain(metadata), sort_keys=False, allow_unicode=True, width=2**20)
    return f"---\n{dumped}---\n"


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value

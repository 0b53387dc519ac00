"""Strict YAML: the 1.2 core schema, plain data only, every value with the line it stands on.

PyYAML reads YAML 1.1, where `no` is false, `017` is fifteen, `1:30` is ninety and `2e-5` is a string. Here only the
rules of the YAML 1.2 core schema turn a plain scalar into something other than text. Tags, merge keys, duplicate keys
and several documents are refused, and size, depth and the number of values after alias expansion are bounded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from finetune.errors import RecipeError

KeyPath = tuple[str | int, ...]
Place = Callable[[int], str]
"""From a line number, counted from 1, to the words that begin an error message."""

MAX_BYTES = 1 << 20
MAX_DEPTH = 20
MAX_NODES = 10_000
_MAX_DIGITS = 400

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}

# What PyYAML says, and what the user should read instead.
_SYNTAX = (
    ("found character '\\t'", "a tab stands where YAML wants spaces; replace it with spaces"),
    (
        "mapping values are not allowed",
        "a ':' where no key can be; mend the indentation or quote the text that holds it",
    ),
    ("could not find expected ':'", "a key without ':'; write 'key: value', and indent what belongs to a longer text"),
    ("found unexpected end of stream", "a quote is opened here and never closed; close it"),
    ("found undefined alias", "an alias ('*name') without its anchor; quote the text if no alias is meant"),
    ("found duplicate anchor", "an anchor ('&name') is defined twice; rename one"),
    ("found another document", "a second document begins; a recipe is one document, so remove the '---'"),
    (
        "expected <block end>",
        "the indentation does not fit the lines above; give keys of one section the same indentation",
    ),
    ("expected ',' or", "a bracket is opened and never closed, or a comma is missing; mend the list or mapping"),
    (
        "did not find expected <document start>",
        "a second document begins; a recipe is one document, so remove the '...'",
    ),
    ("cannot start any token", "a text begins with a character that YAML reserves; put the text in quotes"),
    (
        "found unknown escape character",
        "an unknown escape in double quotes; use single quotes or write \\\\ for a backslash",
    ),
)


@dataclass(frozen=True)
class Document:
    """A recipe file as plain data, with the line (from 1) of each key and list item; `()` is the file itself."""

    data: dict[str, Any]
    lines: dict[KeyPath, int]


def read_document(path: Path) -> Document:
    """Read a recipe file; RecipeError ('path:LINE: …') for anything but one mapping in strict YAML."""
    try:
        if not path.is_file():
            raise RecipeError(f"{path}: {'not a file' if path.exists() else 'no such recipe file'}; check the path")
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RecipeError(
            f"{path}: the recipe cannot be read ({reason}); check the path and its permissions"
        ) from error
    return parse_document(raw, lambda line: f"{path}:{line}")


def parse_document(raw: bytes, place: Place) -> Document:
    """Parse the bytes of a recipe file; see `read_document`."""
    if len(raw) > MAX_BYTES:
        raise RecipeError(f"{place(1)}: the file is larger than 1 MiB; a recipe holds settings, not data")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{place(line)}: not UTF-8 text; save the recipe as UTF-8") from error
    data, lines = parse_value(text, place)
    if data is None:
        raise RecipeError(f"{place(1)}: the recipe is empty; `finetune new` writes one to start from")
    if not isinstance(data, dict):
        raise RecipeError(
            f"{place(lines[()])}: a recipe is a mapping of keys such as 'task: text_classification', found {found(data)}"
        )
    return Document(data, lines)


def parse_value(text: str, place: Place) -> tuple[Any, dict[KeyPath, int]]:
    """One YAML value as plain data, with its lines; RecipeError for anything that is not strict YAML."""
    builder = _Builder(place)
    node = _compose(text, place)
    data = None if node is None else builder.build(node, ())
    return data, {(): 1, **builder.lines}


def resolve_plain(text: str) -> Any:
    """What a scalar without quotes means in the YAML 1.2 core schema; ValueError says why a number is refused."""
    if text in _WORDS:
        return _WORDS[text]
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"'{text}' is not a finite number")
    if _INT.fullmatch(text) or _FLOAT.fullmatch(text):
        if len(text) > _MAX_DIGITS:
            raise ValueError(f"a number of {len(text)} characters is too long")
        if _INT.fullmatch(text):
            base = {"0o": 8, "0x": 16}.get(text[:2], 10)
            return int(text, base)  # base 10 for 017: no octal surprise
        if math.isinf(float(text)):
            raise ValueError(f"{text} is too large for a number")
        return float(text)
    return check_text(text)


def check_text(text: str) -> str:
    """The text itself; ValueError if it holds half a surrogate pair, which no UTF-8 file can store."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("the text holds half of a surrogate pair, which is no character") from error
    return text


def found(value: object) -> str:
    """A value in the words of an error message: "the string 'fast'", "the number 3", "a list"."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the string '{shorten(value)}'" if value else "an empty string"
    if isinstance(value, int | float):
        return f"the number {shorten(repr(value))}"
    return "a list" if isinstance(value, list) else "a mapping"


def shorten(text: str, limit: int = 60) -> str:
    """One line of at most `limit` characters."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def dotted(path: KeyPath) -> str:
    """`transfer.phases[0].epochs`, the spelling of key paths in messages and overrides."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


class _Loader(yaml.SafeLoader):
    """PyYAML's parser up to the node graph; values are resolved by `_Builder`, so no resolver is needed."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own class attribute

    def __init__(self, text: str, place: Place) -> None:
        super().__init__(text)
        self._place = place
        self._depth = 0
        self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """As in PyYAML, but bounded, since it recurses, and without tags."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        place = self._place(event.start_mark.line + 1)
        if getattr(event, "tag", None) is not None:
            raise RecipeError(f"{place}: YAML tags such as '{shorten(event.tag)}' are refused; write the plain value")
        self._nodes += 1
        if self._nodes > 2 * MAX_NODES:  # a mapping's keys are nodes as well
            raise RecipeError(f"{place}: more than {MAX_NODES} values; a recipe holds settings, not data")
        self._depth += 1
        if self._depth > MAX_DEPTH + 1:
            raise RecipeError(f"{place}: nested deeper than {MAX_DEPTH} levels; a recipe needs five at most")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _compose(text: str, place: Place) -> yaml.Node | None:
    loader: _Loader | None = None
    try:
        loader = _Loader(text, place)
        return loader.get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError(
            f"{place(line)}: the control character U+{ord(text[error.position]):04X} is not allowed; remove it"
        ) from error
    except yaml.MarkedYAMLError as error:
        raise RecipeError(_syntax_error(error, place)) from error
    except (ValueError, OverflowError) as error:  # PyYAML lets these out for escapes such as "\UFFFFFFFF"
        line = loader.line + 1 if loader else 1
        raise RecipeError(
            f"{place(line)}: an escape or a directive that names no character or version; remove it"
        ) from error


def _syntax_error(error: yaml.MarkedYAMLError, place: Place) -> str:
    problem = error.problem or error.context or "unreadable"
    mark = error.problem_mark or error.context_mark
    if problem in ("found unexpected end of stream", "could not find expected ':'") and error.context_mark:
        mark = error.context_mark  # where the quote was opened, or the key begun
    line = mark.line + 1 if mark else 1
    for theirs, ours in _SYNTAX:
        if theirs in problem:
            return f"{place(line)}: {ours}"
    return f"{place(line)}: not valid YAML ({shorten(problem, 120)}); check quotes, brackets and indentation there"


class _Builder:
    """Nodes to plain data, noting lines; counts every value, so that nested aliases cannot grow without bound."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.lines: dict[KeyPath, int] = {}
        self._values = 0

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        self._values += 1
        if self._values > MAX_NODES:
            self._refuse(line, (), f"more than {MAX_NODES} values once aliases are expanded; write out fewer")
        if len(path) > MAX_DEPTH:
            self._refuse(
                line, (), f"nested deeper than {MAX_DEPTH} levels, or an alias that contains itself; write it out"
            )
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, i)) for i, item in enumerate(node.value)]
        return self._mapping(node, path)

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        try:
            return resolve_plain(node.value) if node.style is None else check_text(node.value)
        except ValueError as error:
            self._refuse(node.start_mark.line + 1, path, f"{error}; write another value")

    def _mapping(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = self._key(key_node, path, line)
            here = (*path, key)
            if key in result:
                self._refuse(line, here, f"given twice, first on line {self.lines[here]}; remove one")
            self.lines[here] = line
            result[key] = self.build(value_node, here)
        return result

    def _key(self, node: yaml.Node, path: KeyPath, line: int) -> str:
        if not isinstance(node, yaml.ScalarNode):
            self._refuse(
                line, path, "a list or mapping cannot be a key; if {…} or […] is meant as text, put it in quotes"
            )
        if node.style is None and node.value == "<<":
            self._refuse(line, path, "merge keys ('<<') are not part of YAML 1.2; write the keys out")
        key: object = self._scalar(node, path)
        if not isinstance(key, str):
            self._refuse(
                line, path, f"a key must be text, found {found(key)}; put it in quotes: '{shorten(node.value)}'"
            )
        return key

    def _refuse(self, line: int, path: KeyPath, what: str) -> NoReturn:
        raise RecipeError(": ".join(filter(None, (self.place(line), shorten(dotted(path), 160), what))))

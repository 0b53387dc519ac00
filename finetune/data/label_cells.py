"""Reading the label of a row from its cells: a name, a set of names, or a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from finetune.data.rows import RawLabel
from finetune.errors import DataError

_MOST_SHOWN = 60
_FLAGS = {"true": True, "false": False}


@dataclass(frozen=True)
class LabelRules:
    """What the recipe says of label cells: one column per label, what separates labels in one cell, whether values are mapped."""

    columns: tuple[str, ...] | None = None
    separator: str = ","
    mapped: bool = False


ReadLabel = Callable[[Sequence[object], str, LabelRules], RawLabel]


def one_label(cells: Sequence[object], place: str, rules: LabelRules) -> str:
    """The one label of a row."""
    (value,) = cells
    return as_label(value, place, fractions=rules.mapped)


def as_label(value: object, place: str, *, fractions: bool = False) -> str:
    """A label as its name, without outer white space; DataError when it is missing or no string or integer.

    With `fractions` a number with a fraction is a value too: one that a label map names.
    """
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{place}: the label is missing; add it or remove the row")
    if isinstance(value, float) and not fractions:
        raise DataError(f"{place}: the label {value!r} is a fraction; a class is named by a string or an integer")
    if not isinstance(value, str | int | float):
        raise DataError(
            f"{place}: the label is of type {type(value).__name__}; a row needs one label, a string or an integer"
        )
    return as_unicode(str(value).strip(), place, "label")


def label_set(cells: Sequence[object], place: str, rules: LabelRules) -> tuple[str, ...]:
    """The labels of a row, sorted, each once; none is an answer too.

    With one column per label a 1 says that the row has it. In a single column the labels are a list, or one string with
    separators; an empty cell, an empty list and null mean no label.
    """
    if rules.columns is not None:
        found = [name for name, cell in zip(rules.columns, cells, strict=True) if _flag(cell, name, place)]
        return tuple(sorted(found))
    (value,) = cells
    if isinstance(value, str):
        parts: Sequence[object] = [part for part in value.split(rules.separator) if part.strip()]
    elif isinstance(value, list | tuple):
        parts = value
    else:
        parts = [] if value is None else [value]
    return tuple(sorted({as_label(part, place, fractions=rules.mapped) for part in parts}))


def _flag(cell: object, column: str, place: str) -> bool:
    """A cell of a label's own column: 0 or 1, in any of the ways that files write them."""
    value = _FLAGS.get(cell.strip().lower(), cell) if isinstance(cell, str) else cell
    if (number := as_number(value)) in (0.0, 1.0):
        return number == 1.0
    raise DataError(
        f"{place}: the column '{column}' of data.label_columns holds {shown(cell)}; write 0 or 1 in every row"
    )


def number(cells: Sequence[object], place: str, rules: LabelRules) -> float:
    """The number that a row of a regression has; DataError when it is missing, no number, or not finite."""
    (value,) = cells
    if value is None or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{place}: the label is missing; add it or remove the row")
    found = None if isinstance(value, bool) else as_number(value)
    if found is None:
        raise DataError(
            f"{place}: the label {shown(value)} is no number, which a regression needs; mend it (data.label_column, or the name of the class folder)"
        )
    if not math.isfinite(found):
        raise DataError(f"{place}: the label {shown(value)} is not finite; mend or remove the row")
    if abs(found) > 3e38:  # labels are kept in 32 bits
        raise DataError(f"{place}: the label {shown(value)} is too large for 32-bit numbers; write it in larger units")
    return found


def shown(cell: object) -> str:
    """A cell inside a message, cut where it is long: a wrong column may hold whole documents or pictures."""
    text = repr(cell)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def as_number(value: object) -> float | None:
    """The number that a value is or spells, None for anything else."""
    if not isinstance(value, str | int | float):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def as_unicode(text: str, place: str, what: str) -> str:
    """The text, if all of it is Unicode; JSON can smuggle in half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{place}: the {what} holds half of a surrogate pair, which is no character; repair it"
        ) from None
    return text


def refuse_fractions(labels: Sequence[RawLabel], places: Sequence[str], column: str) -> None:
    """CSV has no types: labels that are all numbers but not all whole are measurements, not classes."""
    numbers = {str(label): as_number(label) for label in labels}  # in the order of the rows
    if any(number is None for number in numbers.values()):
        return
    fractions = [label for label, value in numbers.items() if "." in label or not float(value or 0).is_integer()]
    if fractions:
        first = fractions[0]
        raise DataError(
            f"{places[labels.index(first)]}: the label {first} in column '{column}' is a fraction; "
            "a class is named by a string or an integer, so name each value in data.label_map, or choose a regression"
        )

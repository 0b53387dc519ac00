"""What the values of a column mean, as data.label_map and data.weight_map say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Generic, TypeVar

from finetune.data.label_cells import as_number
from finetune.errors import DataError

SAME_NUMBER = 1e-9  # a third written with 16 digits and with 10 is one value
T = TypeVar("T")


class ValueMap(Generic[T]):
    """Looks values up and remembers which were met. Values are the same if they are spelled alike or are one number."""

    def __init__(self, key: str, meaning: str, entries: Mapping[str, T]) -> None:
        """key, meaning: the recipe's key, and what it gives a value, for messages; DataError when two entries are one number."""
        self._key, self._meaning = key, meaning
        self._entries: dict[str, T] = {}
        for value, entry in entries.items():
            if value.strip() in self._entries:
                raise DataError(f"{key} names '{value.strip()}' twice, with and without white space; keep one of them")
            self._entries[value.strip()] = entry
        numbers = {value: as_number(value) for value in self._entries}
        self._numbers = {value: number for value, number in numbers.items() if number is not None}
        ordered = sorted(self._numbers, key=self._numbers.__getitem__)
        for one, other in pairwise(ordered):
            if abs(self._numbers[one] - self._numbers[other]) <= SAME_NUMBER:
                raise DataError(f"{key} names the number {one} twice, also as {other}; keep one of them")
        self._met: Counter[str] = Counter()
        self._known: dict[str, T] = {}

    def look_up(self, value: str, place: str) -> T:
        """What a value means; DataError when the map does not say."""
        if value not in self._known:
            self._known[value] = self._entries[self._entry(value, place)]
        return self._known[value]

    def _entry(self, value: str, place: str) -> str:
        number = as_number(value)
        for key in self._entries:
            near = number is not None and key in self._numbers and abs(self._numbers[key] - number) <= SAME_NUMBER
            if key == value or near:
                self._met[key] += 1
                return key
        raise DataError(f"{place}: {self._key} has no {self._meaning} for the value '{value}'; add it")

    def refuse_unused(self) -> None:
        """DataError when a value of the map was never met."""
        for value in self._entries:
            if not self._met[value]:
                raise DataError(
                    f"{self._key} names the value '{value}', but no row has it; remove it or mend its spelling"
                )

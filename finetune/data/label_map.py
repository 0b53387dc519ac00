"""Names for the values of a label column, as data.label_map gives them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

from finetune.data.label_cells import as_number
from finetune.errors import DataError

SAME_NUMBER = 1e-9  # a third written with 16 digits and with 10 is one value


class LabelMap:
    """Looks values up and remembers which were met. Values are the same if they are spelled alike or are one number."""

    def __init__(self, names: Mapping[str, str]) -> None:
        """DataError when two keys stand for the same number."""
        self._names = {key.strip(): name for key, name in names.items()}
        numbers = {key: as_number(key) for key in self._names}
        self._numbers = {key: number for key, number in numbers.items() if number is not None}
        ordered = sorted(self._numbers, key=self._numbers.__getitem__)
        for one, other in pairwise(ordered):
            if abs(self._numbers[one] - self._numbers[other]) <= SAME_NUMBER:
                raise DataError(f"data.label_map names the number {one} twice, also as {other}; keep one of them")
        self._met: Counter[str] = Counter()
        self._known: dict[str, str] = {}

    def name(self, value: str, place: str) -> str:
        """The label name of a value; DataError when the map has none."""
        if value not in self._known:
            self._known[value] = self._names[self._key(value, place)]
        return self._known[value]

    def _key(self, value: str, place: str) -> str:
        number = as_number(value)
        for key in self._names:
            near = number is not None and key in self._numbers and abs(self._numbers[key] - number) <= SAME_NUMBER
            if key == value or near:
                self._met[key] += 1
                return key
        raise DataError(f"{place}: data.label_map has no name for the value '{value}'; add it")

    def refuse_unused(self) -> None:
        """DataError when a value of the map was never met."""
        for key in self._names:
            if not self._met[key]:
                raise DataError(
                    f"data.label_map names the value '{key}', but no row has it; remove it or mend its spelling"
                )

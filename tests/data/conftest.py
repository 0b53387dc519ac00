from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

WORDS = [f"w{i}" for i in range(400)]


def sentence(number: int, words: int = 20) -> str:
    return " ".join(random.Random(number).choices(WORDS, k=words))


@pytest.fixture
def write_csv(tmp_path: Path) -> Callable[..., Path]:
    """Write rows of (text, label) to a CSV file in the test's folder."""

    def write(rows: list[tuple[str, str]], name: str = "data.csv") -> Path:
        import csv

        path = tmp_path / name
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows(rows)
        return path

    return write


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write {class: [text, ...]} as a folder per class."""

    def write(classes: dict[str, list[str]], name: str = "corpus") -> Path:
        for label, texts in classes.items():
            (tmp_path / name / label).mkdir(parents=True)
            for number, text in enumerate(texts):
                (tmp_path / name / label / f"{number:03d}.txt").write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


@pytest.fixture
def two_classes() -> list[tuple[str, str]]:
    """Sixty different rows, half of them of each label."""
    return [(sentence(number), "even" if number % 2 == 0 else "odd") for number in range(60)]

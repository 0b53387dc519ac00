"""How much each row counts: reading, naming, keeping beside its row, describing, and what is refused."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import local

from finetune.data import LabelledData, Split, inspect_data, prepare_data
from finetune.data.weights import describe_weights, map_weights
from finetune.errors import DataError
from finetune.recipe.types import DataSettings
from finetune.tasks import TASKS

TASK = TASKS["text_classification"]
SPLITS = ("train", "validation", "test")


def sentence(number: int) -> str:
    rng = np.random.default_rng(number)
    return " ".join(f"w{word}" for word in rng.integers(0, 400, 12))


def chosen(path: Path, **data: Any) -> DataSettings:
    return DataSettings.model_validate({"source": str(path), "weight_column": "sure", **data}, strict=False)


def prepare(path: Path, **data: Any) -> LabelledData:
    return prepare_data(TASK, chosen(path, **data), local(path), {}, 0)


def refused(path: Path, words: str, **data: Any) -> None:
    """By loading and by the early look, in one sentence."""
    for call in (lambda: prepare(path, **data), lambda: inspect_data(TASK, chosen(path, **data), local(path))):
        with pytest.raises(DataError) as caught:
            call()
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def table(folder: Path, weights: list[str], name: str = "d.csv") -> Path:
    """Rows of alternating labels whose text says which row they are."""
    path = folder / name
    rows = [f"{sentence(row)},{'ab'[row % 2]},{weight}" for row, weight in enumerate(weights)]
    path.write_text("\n".join(["text,label,sure", *rows]) + "\n", encoding="utf-8")
    return path


def weight_of_text(data: LabelledData) -> dict[str, float]:
    """The weights as they were written, of which the data have ratios to the mean over training rows."""
    mean = data.audit["weights"]["splits"]["train"] / len(data.train)
    parts: list[Split] = [getattr(data, split) for split in SPLITS]
    found: dict[str, float] = {}
    for part in parts:
        assert part.weights is not None
        assert part.weights.dtype == np.float64
        found |= dict(zip(map(str, part.inputs), (part.weights * mean).round(9).tolist(), strict=True))
    return found


def test_a_training_row_counts_one_on_average_whatever_the_unit_of_the_weights(tmp_path: Path) -> None:
    numbers = np.random.default_rng(1).uniform(0.1, 5, 60)
    found = [prepare(table(tmp_path, [repr(float(number * unit)) for number in numbers])) for unit in (1, 1e-20, 1e25)]
    for data in found:
        for split in SPLITS:
            part, first = getattr(data, split), getattr(found[0], split)
            np.testing.assert_allclose(part.weights, first.weights, rtol=1e-12)
        assert data.train.weights is not None
        assert data.train.weights.mean() == pytest.approx(1)


def test_every_row_keeps_its_weight_in_whatever_split_it_comes(tmp_path: Path) -> None:
    weights = [0.25 + row for row in range(40)]
    data = prepare(table(tmp_path, [str(weight) for weight in weights]))
    assert weight_of_text(data) == {sentence(row): weight for row, weight in enumerate(weights)}


def test_weights_stay_with_their_rows_where_others_are_dropped(tmp_path: Path) -> None:
    path = table(tmp_path, [str(row + 1) for row in range(40)])
    lines = path.read_text("utf-8").splitlines()
    # A row without a text, and a copy of the first row with a weight of its own, before all others.
    path.write_text("\n".join([lines[0], ",a,77", f"{sentence(3)},b,88", *lines[1:]]) + "\n", "utf-8")
    data = prepare(path, audit={"exact_duplicates": "drop"})
    assert weight_of_text(data) == {sentence(row): 88.0 if row == 3 else row + 1.0 for row in range(40)}


def test_a_sample_keeps_the_weights_of_its_rows(tmp_path: Path) -> None:
    data = prepare(table(tmp_path, [str(row + 1) for row in range(60)]), limit=30)
    found = weight_of_text(data)
    assert len(found) == 30
    assert all(found[sentence(row)] == row + 1 for row in range(60) if sentence(row) in found)


def test_without_a_column_no_row_has_a_weight(tmp_path: Path) -> None:
    data = prepare(table(tmp_path, ["1"] * 40), weight_column=None)
    assert [data.train.weights, data.validation.weights, data.test.weights] == [None, None, None]
    assert data.audit["weights"] is None


def test_values_become_weights_by_name_however_numbers_are_written(tmp_path: Path) -> None:
    """As in ELPV, where one column is the label and says how sure it is."""
    path = tmp_path / "d.csv"
    values = ["0.0", "0.3333333333333333", "0.6666666666666666", "1.0"]
    rows = [f"{sentence(row)},{values[row % 4]}" for row in range(80)]
    path.write_text("\n".join(["text,p", *rows]) + "\n", "utf-8")
    names = {"0": "whole", "0.3333333333": "broken", "0.6666666667": "broken", "1": "broken"}
    weights = {"0": 1.0, "0.3333333333": 0.25, "0.6666666667": 0.5, "1": 2.0}
    data = prepare(path, label_column="p", label_map=names, weight_column="p", weight_map=weights)
    assert weight_of_text(data) == {sentence(row): [1.0, 0.25, 0.5, 2.0][row % 4] for row in range(80)}
    assert data.labels == ("broken", "whole")
    assert data.audit["weights"]["rows"] == [{"weight": weight, "rows": 20} for weight in (0.25, 0.5, 1.0, 2.0)]


def test_words_have_weights_too_and_json_and_parquet_give_what_csv_gives(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    words = ["sure", "unsure"]
    rows = [{"text": sentence(row), "label": "ab"[row % 2], "sure": words[row // 2 % 2]} for row in range(40)]
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    table(tmp_path, [words[row // 2 % 2] for row in range(40)])
    meanings = {"sure": 1, "unsure": 0.5}
    found = [prepare(tmp_path / name, weight_map=meanings) for name in ("d.csv", "d.jsonl", "d.parquet")]
    assert weight_of_text(found[0]) == {row["text"]: float(meanings[row["sure"]]) for row in rows}
    assert len({data.fingerprint for data in found}) == 1


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("", "d.csv:6: the weight is missing; give every row one in data.weight_column"),
        (
            "high",
            "d.csv:6: the weight 'high' is no number; mend data.weight_column, or name its values in data.weight_map",
        ),
        ("0", "d.csv:6: the weight 0 is not a number above 0; mend it or remove the row"),
        ("-1", "d.csv:6: the weight -1 is not a number above 0"),
        ("nan", "d.csv:6: the weight nan is not a number above 0"),
        ("inf", "d.csv:6: the weight inf is not a number above 0"),
        ("1e31", "d.csv:6: the weight 1e+31 is beyond 1e-30 to 1e+30; only ratios of weights matter, so scale all"),
        ("1e-31", "d.csv:6: the weight 1e-31 is beyond 1e-30 to 1e+30"),
        ("many words " * 20, "the weight 'many words many words many words many words many words many… is no number"),
    ],
)
def test_what_is_no_weight_is_refused_at_its_place(tmp_path: Path, cell: str, words: str) -> None:
    refused(table(tmp_path, ["1"] * 4 + [cell] + ["1"] * 20), words)


def test_true_and_null_are_no_weights(tmp_path: Path) -> None:
    for cell, words in ((True, "the weight True is no number"), (None, "the weight is missing")):
        rows = [{"text": sentence(row), "label": "ab"[row % 2], "sure": 1} for row in range(20)]
        rows[7]["sure"] = cell  # type: ignore[assignment]
        path = tmp_path / "d.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
        refused(path, f"d.jsonl:8: {words}")


def test_a_map_that_does_not_fit_its_column_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path, ["1", "2"] * 20)
    refused(path, "d.csv:3: data.weight_map has no weight for the value '2'; add it", weight_map={"1": 1.0})
    refused(path, "names the value '3', but no row has it", weight_map={"1": 1.0, "2": 0.5, "3": 0.1})
    refused(path, "names the number 1 twice, also as 1.0", weight_map={"1": 1.0, "1.0": 0.5, "2": 1.0})
    refused(path, "names '2' twice, with and without white space", weight_map={"1": 1.0, "2": 0.5, " 2": 1.0})
    refused(path, "d.csv:3: the weight 1e+300 is beyond", weight_map={"1": 1.0, "2": 1e300})


def test_decimals_of_parquet_are_numbers_and_what_is_neither_text_nor_number_is_told_by_its_type(
    tmp_path: Path,
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write(cells: list[Any]) -> Path:
        rows = {"text": [sentence(row) for row in range(40)], "label": ["a", "b"] * 20, "sure": cells}
        pq.write_table(pa.table(rows), tmp_path / "d.parquet")
        return tmp_path / "d.parquet"

    path = write([Decimal("0.50"), Decimal("2.00")] * 20)
    assert set(weight_of_text(prepare(path)).values()) == {0.5, 2.0}
    assert set(weight_of_text(prepare(path, weight_map={"0.5": 1, "2": 3})).values()) == {1.0, 3.0}
    path = write([[1.0], [2.0]] * 20)
    refused(path, "d.parquet:1: the weight [1.0] is no number")
    refused(path, "[1.0] is of type list; data.weight_map names texts and numbers", weight_map={"1": 1})


def test_a_value_of_the_map_may_occur_in_one_of_several_tables(tmp_path: Path) -> None:
    def cut(name: str, first: int, words: list[str]) -> Path:
        path = tmp_path / name
        rows = [f"{sentence(first + row)},{'ab'[row % 2]},{word}" for row, word in enumerate(words)]
        path.write_text("\n".join(["text,label,sure", *rows]) + "\n", encoding="utf-8")
        return path

    train, valid, test = (
        cut("train.csv", 0, ["yes", "no"] * 10), cut("valid.csv", 100, ["yes"] * 6), cut("test.csv", 200, ["yes", "perhaps"] * 3)
    )  # fmt: skip
    settings = chosen(
        train, weight_map={"yes": 1, "no": 0.25, "perhaps": 0.5},
        splits={"train": str(train), "validation": str(valid), "test": str(test)},
    )  # fmt: skip
    named = {"train": local(train), "validation": local(valid), "test": local(test)}
    data = prepare_data(TASK, settings, local(train), named, 0)
    found = weight_of_text(data)
    assert [found[sentence(row)] for row in (0, 1, 100, 200, 201)] == [1.0, 0.25, 1.0, 1.0, 0.5]


def test_a_column_that_is_not_there_and_a_folder_per_class_are_refused(tmp_path: Path) -> None:
    refused(table(tmp_path, ["1"] * 20), "no column 'certain'", weight_column="certain")
    folder = tmp_path / "texts"
    for label in "ab":
        (folder / label).mkdir(parents=True)
        for row in range(10):
            (folder / label / f"{row}.txt").write_text(f"{sentence(row)} {label}", "utf-8")
    refused(folder, "data.weight_column names columns, but")


def test_the_fingerprint_tells_weights_apart_and_their_absence(tmp_path: Path) -> None:
    plain, changed = ["1"] * 40, ["1"] * 39 + ["0.5"]
    same = {prepare(table(tmp_path, plain)).fingerprint for _ in range(2)}
    others = {
        prepare(table(tmp_path, changed)).fingerprint,
        prepare(table(tmp_path, plain), weight_column=None).fingerprint,
    }
    assert len(same) == 1
    assert len(same | others) == 3


@given(st.lists(st.floats(0.01, 100), min_size=3, max_size=60))
def test_the_description_adds_up(values: list[float]) -> None:
    weights = np.array(values)
    splits = [SPLITS[row % 3] for row in range(len(values))]
    found = describe_weights("sure", weights, splits)
    assert found["least"] == min(values)
    assert found["greatest"] == max(values)
    assert found["least"] * 0.999999 <= found["mean"] <= found["greatest"] * 1.000001
    assert sum(found["splits"].values()) == pytest.approx(sum(values))
    if len(set(values)) > 10:
        assert found["rows"] is None
    else:
        assert sum(one["rows"] for one in found["rows"]) == len(values)
        assert sum(one["rows"] * one["weight"] for one in found["rows"]) == pytest.approx(sum(values))


def test_numbers_without_a_map_are_the_weights_themselves() -> None:
    assert map_weights([0.5, 2.0], ["a", "b"], None) == (0.5, 2.0)
    assert map_weights([], [], None) == ()

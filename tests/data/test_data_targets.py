"""Several labels per row and numbers as labels: reading, naming, stratifying, describing, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import local

from finetune.data import LabelledData, inspect_data, prepare_data
from finetune.data.targets import LABELLINGS
from finetune.errors import DataError
from finetune.recipe.types import DataSettings
from finetune.tasks import TASKS

SINGLE, MULTI, NUMBER = "text_classification", "text_multi_label_classification", "text_regression"
TOPICS = ("art", "sport", "trade")


def sentence(number: int) -> str:
    rng = np.random.default_rng(number)
    return " ".join(f"w{word}" for word in rng.integers(0, 400, 12))


def chosen(path: Path, **data: Any) -> DataSettings:
    return DataSettings.model_validate({"source": str(path), **data}, strict=False)


def prepare(path: Path, task: str, **data: Any) -> LabelledData:
    return prepare_data(TASKS[task], chosen(path, **data), local(path), {}, 0)


def refused(path: Path, task: str, *words: str, **data: Any) -> None:
    """By loading and by the early look, in one sentence."""
    for call in (
        lambda: prepare(path, task, **data),
        lambda: inspect_data(TASKS[task], chosen(path, **data), local(path)),
    ):
        with pytest.raises(DataError) as caught:
            call()
        for word in words:
            assert word in str(caught.value)
        assert "\n" not in str(caught.value)


def csv(folder: Path, header: str, rows: list[str], name: str = "d.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def labelled(folder: Path, labels: list[str], header: str = "text,label") -> Path:
    return csv(folder, header, [f"{sentence(number)},{label}" for number, label in enumerate(labels)])


def sets(data: LabelledData) -> dict[str, set[str]]:
    """Label names by text, over all splits."""
    return {
        str(text): {data.labels[at] for at in np.flatnonzero(row)}
        for part in (data.train, data.validation, data.test)
        for text, row in zip(part.inputs, part.labels, strict=True)
    }


def topics(number: int) -> set[str]:
    """Labels of a row by its number: every combination of the three, none of them included."""
    return {topic for at, topic in enumerate(TOPICS) if number >> at & 1}


def test_label_sets_come_alike_from_one_column_many_columns_lists_and_parquet(tmp_path: Path) -> None:
    numbers = range(80)
    texts = [sentence(number) for number in numbers]
    expected = {text: topics(number) for text, number in zip(texts, numbers, strict=True)}
    joined = [f"{text}, {' ; '.join(sorted(topics(n)))}" for n, text in enumerate(texts)]
    one = csv(tmp_path, "text,label", joined)
    flags = [[int(topic in topics(n)) for topic in TOPICS] for n in numbers]
    ones = [f"{text},{','.join(map(str, row))}" for text, row in zip(texts, flags, strict=True)]
    many = csv(tmp_path, "text,art,sport,trade", ones, "many.csv")
    lists = tmp_path / "d.jsonl"
    records = [{"text": text, "label": sorted(topics(n)) or None} for n, text in enumerate(texts)]
    lists.write_text("\n".join(map(json.dumps, records)))
    found = [
        prepare(one, MULTI, label_separator=";"),
        prepare(many, MULTI, label_columns=TOPICS),
        prepare(lists, MULTI),
    ]
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"text": texts, "label": [sorted(topics(n)) for n in numbers]})
    pq.write_table(table, tmp_path / "d.parquet")
    found.append(prepare(tmp_path / "d.parquet", MULTI))
    for data in found:
        assert data.labels == TOPICS
        assert data.train.labels.dtype == np.float32
        assert data.train.labels.shape == (len(data.train), 3)
        assert sets(data) == expected
    assert len({data.fingerprint for data in found}) == 1


def test_label_columns_keep_their_order_and_may_be_written_in_several_ways(tmp_path: Path) -> None:
    ways = ["1,0", "0,1", "1.0,0.0", "True,false", "0,TRUE", "0,0"] * 8
    data = prepare(labelled(tmp_path, ways, "text,zebra,ant"), MULTI, label_columns=("zebra", "ant"))
    assert data.labels == ("zebra", "ant")
    assert data.audit["labels"] == {"zebra": 24, "ant": 16}
    named = prepare(tmp_path / "d.csv", MULTI, label_columns=("zebra", "ant"), labels=("ant", "zebra"))
    assert named.labels == ("ant", "zebra")


def test_the_audit_of_label_sets_counts_rows_per_label_and_rows_without(tmp_path: Path) -> None:
    audit = prepare(labelled(tmp_path, ["a b", "a", "", "b b"] * 20), MULTI, label_separator=" ").audit
    assert json.loads(json.dumps(audit, allow_nan=False)) == audit
    assert (audit["labels"], audit["without_label"], audit["labels_per_row"]) == ({"a": 40, "b": 40}, 20, 1.0)
    assert audit["imbalance"] == 1.0
    test = audit["splits"]["test"]
    assert (test["rows"], test["labels"], test["without_label"]) == (8, {"a": 4, "b": 4}, 2)


def test_every_combination_of_labels_keeps_its_share_and_a_rare_one_follows_its_commonest_label(tmp_path: Path) -> None:
    rows = ["a"] * 100 + ["a,b"] * 100 + ["c"] * 40 + ["a,c"] + ["b,c"]
    data = prepare(labelled(tmp_path, [f'"{row}"' for row in rows]), MULTI)
    counts = Counter(tuple(row) for row in data.test.labels.astype(int).tolist())
    assert counts[1, 0, 0] == counts[1, 1, 0] == 10
    assert counts[0, 0, 1] == 4
    assert abs(len(data.test) - 24.2) <= 1


@given(st.lists(st.sets(st.integers(0, 4)), min_size=1, max_size=80), st.sampled_from([0.05, 0.1, 0.25]))
def test_only_combinations_with_rows_for_every_split_are_strata(rows: list[set[int]], share: float) -> None:
    labels = np.zeros((len(rows), 5), np.float32)
    for at, row in enumerate(rows):
        labels[at, sorted(row)] = 1
    strata = LABELLINGS["multi_label"].strata(labels, share)
    common = {frozenset(row) for row in rows if sum(row == other for other in rows) >= 1 / share or not row}
    assert len(set(strata)) <= len(common) + 5
    for a, one in zip(strata, rows, strict=True):
        for b, other in zip(strata, rows, strict=True):
            if one == other:
                assert a == b
            elif frozenset(one) in common:
                assert a != b


@pytest.mark.parametrize(
    ("header", "rows", "data", "words"),
    [
        ("text,a,b", ["x,1,2"], {"label_columns": ("a", "b")}, ["d.csv:2", "column 'b'", "'2'", "write 0 or 1"]),
        ("text,a,b", ["x,1,"], {"label_columns": ("a", "b")}, ["d.csv:2", "write 0 or 1"]),
        ("text,a,b", ["x,1,0", "y,1,0"], {"label_columns": ("a", "b")}, ["no row has a 1 for the label 'b'"]),
        ("text,a", ["x,1"], {"label_columns": ("a", "b")}, ["no column 'b'", "data.label_columns"]),
        ("text,label", ["x,", "y,"], {}, ["no row has any label", "data.label_separator"]),
        ("text,label", ["x,a", "y,"], {}, ["the only label of any row is 'a'"]),
        ("text,label", ["x,a|c", "y,b"], {"label_separator": "|", "labels": ("a", "b")}, ["'c' is not in data.labels"]),
    ],
)
def test_label_sets_that_do_not_fit_are_refused(
    tmp_path: Path, header: str, rows: list[str], data: dict[str, Any], words: list[str]
) -> None:
    refused(csv(tmp_path, header, rows), MULTI, *words, **data)


def test_several_labels_in_one_column_can_be_indices_into_the_listed_names(tmp_path: Path) -> None:
    data = prepare(labelled(tmp_path, ["0 1", "1", "2"] * 20), MULTI, label_separator=" ", labels=TOPICS)
    assert data.labels == TOPICS
    assert data.audit["labels"] == {"art": 20, "sport": 40, "trade": 20}


def test_a_label_that_only_a_named_test_table_has_is_refused(tmp_path: Path) -> None:
    rows = [f'{sentence(n)},"a,b"' if n % 2 else f"{sentence(n)},b" for n in range(30)]
    named = {
        "train": local(csv(tmp_path, "text,label", rows[:20], "train.csv")),
        "validation": local(csv(tmp_path, "text,label", rows[20:], "val.csv")),
        "test": local(csv(tmp_path, "text,label", ['w1 w2 w3,"b,z"'], "test.csv")),
    }
    splits = {"train": "train.csv", "validation": "val.csv", "test": "test.csv"}
    with pytest.raises(DataError, match=r"test\.csv:2: no training row has the label 'z'"):
        prepare_data(TASKS[MULTI], chosen(tmp_path, splits=splits), local(tmp_path), named, 0)


def test_numbers_are_read_from_text_and_json_alike(tmp_path: Path) -> None:
    values = [round(number * 0.37 - 5, 2) for number in range(60)]
    table = labelled(tmp_path, [str(value) for value in values])
    lines = tmp_path / "d.jsonl"
    lines.write_text("\n".join(json.dumps({"text": sentence(n), "label": v}) for n, v in enumerate(values)))
    one, two = prepare(table, NUMBER), prepare(lines, NUMBER)
    assert one.fingerprint == two.fingerprint
    assert one.labels == ()
    found = {
        text: float(value)
        for part in (one.train, one.validation, one.test)
        for text, value in zip(part.inputs, part.labels, strict=True)
    }
    assert found == pytest.approx({sentence(n): v for n, v in enumerate(values)})
    assert one.train.labels.dtype == np.float32
    assert one.train.labels.ndim == 1


def test_every_split_has_small_and_large_numbers(tmp_path: Path) -> None:
    data = prepare(labelled(tmp_path, [str(number**2) for number in range(400)]), NUMBER)
    for part in (data.train, data.validation, data.test):
        counts = np.histogram(np.sqrt(part.labels), bins=10, range=(0, 400))[0]
        assert counts.min() >= 0.8 * len(part) / 10


def test_few_distinct_numbers_are_strata_of_their_own() -> None:
    labels = np.array([0.0] * 150 + [0.3] * 10 + [1.0] * 40, np.float32)
    assert Counter(LABELLINGS["regression"].strata(labels, 0.1)) == {0: 150, 1: 10, 2: 40}


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=300))
def test_bins_of_numbers_follow_their_order(values: list[float]) -> None:
    labels = np.array(values, np.float32)
    strata = np.array(LABELLINGS["regression"].strata(labels, 0.1))
    assert (np.diff(strata[np.argsort(labels, kind="stable")]) >= 0).all()
    assert len(set(strata.tolist())) <= 10


def test_the_audit_of_numbers_says_their_spread(tmp_path: Path) -> None:
    audit = prepare(labelled(tmp_path, ["0", "1", "2", "3"] * 20), NUMBER).audit
    assert json.loads(json.dumps(audit, allow_nan=False)) == audit
    assert audit["values"] == {"min": 0.0, "median": 1.5, "max": 3.0, "mean": 1.5, "std": pytest.approx(1.11803)}
    assert (audit["labels"], audit["imbalance"]) == ({}, None)
    assert audit["splits"]["test"]["values"]["mean"] == 1.5


def test_copies_with_other_numbers_are_conflicts(tmp_path: Path) -> None:
    path = csv(tmp_path, "text,label", [*(f"{sentence(n)},{n}" for n in range(40)), f"{sentence(0)},7.5"])
    data = prepare(path, NUMBER)
    assert data.audit["conflicts"] == [{"places": ["d.csv:2", "d.csv:42"], "labels": [0.0, 7.5]}]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["x,1", "y,high"], ["d.csv:3", "'high' is no number", "data.label_column"]),
        (["x,1", "y,nan"], ["d.csv:3", "not finite"]),
        (["x,1", "y,-inf"], ["d.csv:3", "not finite"]),
        (["x,1", "y,1e300"], ["d.csv:3", "too large"]),
        (["x,1", "y,"], ["d.csv:3", "label is missing"]),
        (["x,0.5", "y,0.50"], ["every row has the label 0.5", "values that differ"]),
    ],
)
def test_labels_that_are_no_numbers_are_refused(tmp_path: Path, rows: list[str], words: list[str]) -> None:
    refused(csv(tmp_path, "text,label", rows), NUMBER, *words)


@pytest.mark.parametrize("value", ["true", "null", "[1]", "NaN", '"x"'])
def test_json_values_that_are_no_numbers_are_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(f'{{"text": "a", "label": 1}}\n{{"text": "b", "label": {value}}}\n')
    refused(path, NUMBER, "d.jsonl:2")


def test_values_are_named_and_merged_by_a_label_map(tmp_path: Path) -> None:
    path = labelled(tmp_path, ["0", "0.3333333333333333", "0.666666666666667", "1.0"] * 15)
    names = {"0.0": "sound", "0.3333333333": "broken", "0.6666666666666666": "broken", "1": "broken"}
    data = prepare(path, SINGLE, label_map=names)
    assert data.labels == ("broken", "sound")
    assert data.audit["labels"] == {"broken": 45, "sound": 15}
    assert inspect_data(TASKS[SINGLE], chosen(path, label_map=names), local(path)).labels == data.labels
    assert prepare(path, SINGLE, label_map=names, labels=("sound", "broken")).labels == ("sound", "broken")


def test_a_label_map_names_words_and_members_of_sets(tmp_path: Path) -> None:
    path = labelled(tmp_path, ["cat dog", "pine", "oak"] * 15)
    names = {"cat": "animal", "dog": "animal", "pine": "tree", "oak": "tree"}
    data = prepare(path, MULTI, label_separator=" ", label_map=names)
    assert data.audit["labels"] == {"animal": 15, "tree": 30}
    named = {"zebra": "stripes", "ant": "legs"}
    table = labelled(tmp_path, ["1,0", "0,1"] * 15, "text,zebra,ant")
    assert prepare(table, MULTI, label_columns=("zebra", "ant"), label_map=named).labels == ("stripes", "legs")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"0": "a", "1": "b"}, ["d.csv:4: data.label_map has no name for the value '0.5'; add it"]),
        ({"0": "a", "1": "b", "0.5": "b", "2": "c"}, ["names the value '2', but no row has it"]),
        ({"0": "a", "1": "b", "0.5": "b", "0.50": "c"}, ["names the number 0.5 twice, also as 0.50"]),
        ({"0": "a", "1": "a", "0.5": "a"}, ["every row has the label 'a'"]),
    ],
)
def test_gaps_in_a_label_map_are_refused(tmp_path: Path, names: dict[str, str], words: list[str]) -> None:
    refused(labelled(tmp_path, ["0", "1", "0.5"] * 4), SINGLE, *words, label_map=names)


def test_conflicts_are_judged_after_values_were_merged(tmp_path: Path) -> None:
    rows = [f"{sentence(n)},{n % 3}" for n in range(40)]
    path = csv(tmp_path, "text,label", [*rows, f"{sentence(1)},2"])
    assert prepare(path, SINGLE).audit["conflicting_label_groups"] == 1
    assert prepare(path, SINGLE, label_map={"0": "a", "1": "b", "2": "b"}).audit["conflicting_label_groups"] == 0


def test_columns_to_stratify_by_keep_their_share_together(tmp_path: Path) -> None:
    rows = [f"{sentence(n)},{'xy'[n % 2]},{'pqr'[n % 3]}" for n in range(240)]
    path = csv(tmp_path, "text,label,kind", rows)
    data = prepare(path, SINGLE, stratify_by=("label", "kind"))
    kinds = {sentence(n): ("xy"[n % 2], "pqr"[n % 3]) for n in range(240)}
    assert Counter(kinds[str(text)] for text in data.test.inputs) == dict.fromkeys(set(kinds.values()), 4)
    alone = csv(tmp_path, "text,label,kind", [*rows, "one more,x,s"], "alone.csv")
    assert prepare(alone, SINGLE, stratify_by=("kind",)).audit["rows_used"] == 241, "a lonely value goes to train"


def test_stratifying_by_what_is_not_there_is_refused(tmp_path: Path) -> None:
    path = labelled(tmp_path, ["a", "b"] * 20)
    refused(path, SINGLE, "no column 'kind'", "set data.stratify_by", stratify_by=("kind",))
    off = {"stratify": False}
    refused(path, SINGLE, "data.splits.stratify is false", stratify_by=("label",), splits=off)
    for label in "ab":
        (tmp_path / "corpus" / label).mkdir(parents=True)
        for number in range(9):
            (tmp_path / "corpus" / label / f"{number}.txt").write_text(sentence(number + ord(label)))
    for key in ("stratify_by", "label_columns"):
        refused(tmp_path / "corpus", MULTI, f"data.{key} names columns", "folder per class", **{key: ("a", "b")})
    refused(tmp_path / "corpus", SINGLE, "data.delimiter is for CSV", delimiter="tab")


def test_folder_names_are_numbers_of_a_regression(tmp_path: Path) -> None:
    for label in ("1.5", "2"):
        (tmp_path / label).mkdir()
        for number in range(20):
            (tmp_path / label / f"{number}.txt").write_text(sentence(number + 50 * len(label)))
    assert prepare(tmp_path, NUMBER).audit["values"]["min"] == 1.5

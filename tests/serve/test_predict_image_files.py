"""Folders, patterns and tables of images into files of answers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from finetune.errors import BundleError, DataError
from finetune.serve import Outcome, Predictor, predict_file, predict_images, stream_images
from finetune.serve.image_paths import find_images

ADDED = ["label", "score", "probability_business", "probability_politics", "probability_sport", "error"]


@pytest.fixture(scope="module")
def predictor(image_bundle) -> Predictor:
    return Predictor(image_bundle, threads=2)


@pytest.fixture
def scans(tmp_path) -> Path:
    """Seven pictures in a folder and one below it; hidden files and a note beside them."""
    folder = tmp_path / "scans"
    (folder / "more").mkdir(parents=True)
    (folder / ".cache").mkdir()
    names = ["b.png", "a.JPG", "c[1].png", "d.webp", "e.tiff", "more/f.gif", "more/g.bmp"]
    for index, name in enumerate([*names, ".hidden.png", ".cache/x.png"]):
        array = np.random.default_rng(index).integers(0, 256, (10, 11, 3), dtype=np.uint8)
        Image.fromarray(array).save(folder / name)
    (folder / "notes.txt").write_text("nothing to see")
    return folder


SORTED = ["a.JPG", "b.png", "c[1].png", "d.webp", "e.tiff", "more/f.gif", "more/g.bmp"]


def read_rows(path: Path) -> list[dict]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def spoil(scans: Path) -> None:
    (scans / "b.png").write_bytes((scans / "b.png").read_bytes()[:60])
    (scans / "more" / "f.gif").write_bytes(b"GIF of nothing")


# What a name stands for -----------------------------------------------------------------------------------------------


def test_files_folders_and_patterns_stand_for_sorted_files_in_the_order_named(scans):
    assert [path.relative_to(scans).as_posix() for path in find_images([scans])] == SORTED
    named = find_images([f"{scans}/more/*", scans / "b.png", scans / "notes.txt", f"{scans}/**/*.png"])
    assert [path.relative_to(scans).as_posix() for path in named] == [
        "more/f.gif", "more/g.bmp", "b.png", "notes.txt", "b.png", "c[1].png",
    ]  # fmt: skip
    assert find_images(str(scans / "c[1].png")) == [scans / "c[1].png"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("*.xyz", r"\*\.xyz: no file matches this pattern"),
        ("nowhere.png", "nowhere.png: no such file or folder"),
        ("empty", "empty: no image file in this folder or below it"),
        ("more*", "no file matches this pattern"),
        ("x" * 400, "cannot be read"),
    ],
)
def test_a_name_that_stands_for_no_file_is_named(scans, predictor, name, words):
    (scans / "empty").mkdir()
    with pytest.raises((DataError, BundleError), match=words):
        find_images([scans / "b.png", scans / name])
    with pytest.raises((DataError, BundleError), match=words):
        predict_images(predictor, [scans / name], scans / "out.csv")
    assert not (scans / "out.csv").exists()


def test_no_names_at_all_are_refused(predictor, tmp_path):
    with pytest.raises(DataError, match="no image is named"):
        predict_images(predictor, [], tmp_path / "out.csv")


# Files out of pictures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_picture_of_a_folder_gets_a_row(predictor, scans, tmp_path, suffix):
    out = tmp_path / f"out{suffix}"
    assert predict_images(predictor, [scans], out, batch_size=3) == Outcome(7)
    rows = read_rows(out)
    assert list(rows[0]) == ["image", *ADDED]
    assert [row["image"] for row in rows] == [str(scans / name) for name in SORTED]
    for row, answer in zip(rows, predictor.predict([scans / name for name in SORTED]), strict=True):
        assert row["label"] == answer.label
        assert float(row["score"]) == pytest.approx(answer.score, abs=1e-6)
        assert not row["error"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_an_unreadable_picture_is_a_row_with_its_reason_and_the_others_are_answered(predictor, scans, tmp_path, suffix):
    whole = predict_images(predictor, scans, tmp_path / f"whole{suffix}")
    spoil(scans)
    outcome = predict_images(predictor, [scans], tmp_path / f"out{suffix}")
    assert (whole.unreadable, outcome.rows, outcome.unreadable) == (0, 7, 2)
    assert outcome.first is not None
    assert str(scans / "b.png") in outcome.first
    before, after = read_rows(tmp_path / f"whole{suffix}"), read_rows(tmp_path / f"out{suffix}")
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        assert list(old) == list(new)
        if index in (1, 5):
            assert SORTED[index] in new["error"]
            assert not any(new[name] for name in ADDED[:-1])
        else:
            assert new["label"] == old["label"]
            assert float(new["score"]) == pytest.approx(float(old["score"]), abs=1e-6)


def test_a_first_chunk_of_nothing_readable_is_written_too(predictor, scans, tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.serve.files.BATCHES_PER_CHUNK", 1)
    (scans / "z.png").write_bytes(b"no picture")
    names = [scans / "notes.txt", scans / "notes.txt", scans / "z.png", scans / "a.JPG"]
    for suffix in (".parquet", ".csv", ".jsonl", ".txt"):
        outcome = predict_images(predictor, names, tmp_path / f"out{suffix}", batch_size=2)
        assert (outcome.rows, outcome.unreadable) == (4, 3)
        assert outcome.first is not None
        assert "notes.txt" in outcome.first
    label = read_rows(tmp_path / "out.parquet")[3]["label"]
    assert pq.read_schema(tmp_path / "out.parquet").field("score").type == pa.float64()
    assert (tmp_path / "out.txt").read_text() == f"\n\n\n{label}\n"


def test_a_refused_picture_ends_the_call_and_leaves_the_earlier_output(predictor, scans, tmp_path):
    (tmp_path / "out.csv").write_text("earlier\n")
    spoil(scans)
    with pytest.raises(DataError, match=r"b\.png"):
        predict_images(predictor, [scans], tmp_path / "out.csv", unreadable="refuse")
    assert (tmp_path / "out.csv").read_text() == "earlier\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "scans"]
    with pytest.raises(DataError, match=r"b\.png"):
        list(stream_images(predictor, [scans], unreadable="refuse"))


def test_records_come_a_batch_at_a_time_and_go_on_past_the_unreadable(predictor, scans, monkeypatch):
    spoil(scans)
    asked = []
    real = Predictor.attempt
    monkeypatch.setattr(Predictor, "attempt", lambda self, items, n: asked.append(len(items)) or real(self, items, n))
    records = stream_images(predictor, scans, batch_size=3)
    first = next(records)
    assert asked == [3]
    rest = list(records)
    assert asked == [3, 3, 1]
    assert list(first) == ["image", "label", "score", "probabilities"]
    assert list(rest[0]) == ["image", "error"]
    assert [record["image"] for record in (first, *rest)] == [str(scans / name) for name in SORTED]
    json.dumps([first, *rest])


def test_pictures_are_read_a_chunk_at_a_time(predictor, scans, tmp_path):
    told = []
    predict_images(predictor, [scans / "b.png"] * 40, tmp_path / "out.csv", batch_size=1, progress=told.append)
    assert told == [16, 32, 40]


# Tables of pictures ---------------------------------------------------------------------------------------------------


def test_a_table_s_paths_are_relative_to_the_table(predictor, scans, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"id": 1, "file": "scans/a.JPG"}, {"id": 2, "file": str(scans / "b.png")}, {"id": 3, "file": "a.JPG"}]
    (scans.parent / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(scans)
    outcome = predict_file(predictor, Path("../in.jsonl"), tmp_path / "out.jsonl", image_column="file")
    assert (outcome.rows, outcome.unreadable) == (3, 1)
    assert outcome.first is not None
    assert "in.jsonl:3: a.JPG" in outcome.first
    out = read_rows(tmp_path / "out.jsonl")
    assert [{key: row[key] for key in ("id", "file")} for row in out] == rows
    expected = predictor.predict([scans / "a.JPG", scans / "b.png"])
    assert [row["label"] for row in out] == [*(answer.label for answer in expected), None]


def test_encoded_pictures_in_parquet_are_read_and_kept(predictor, scans, tmp_path):
    """Both ways that pictures lie in Parquet: bytes, and the struct that the datasets library writes."""
    data = (scans / "b.png").read_bytes()
    expected = predictor.predict(data)[0].label
    plain = pa.table({"image": [data, data[:50], None]})
    struct = pa.table({"image": [{"bytes": data, "path": "b.png"}, {"bytes": None, "path": "scans/b.png"}, None]})
    for table, unreadable in ((plain, 2), (struct, 1)):
        pq.write_table(table, tmp_path / "in.parquet")
        outcome = predict_file(predictor, tmp_path / "in.parquet", tmp_path / "out.parquet")
        assert (outcome.rows, outcome.unreadable) == (3, unreadable)
        out = pq.read_table(tmp_path / "out.parquet")
        assert out.select(["image"]).equals(table)
        assert out["label"][0].as_py() == expected
        assert "row 3: 'image' is missing" in out["error"][2].as_py()
    predict_file(predictor, tmp_path / "in.parquet", tmp_path / "out.csv")
    assert read_rows(tmp_path / "out.csv")[0]["image"] == json.dumps({"bytes": f"<{len(data)} bytes>", "path": "b.png"})


def test_a_plain_file_is_a_path_a_line(predictor, scans, tmp_path):
    (tmp_path / "in.txt").write_text("scans/a.JPG\nscans/b.png\n")
    assert predict_file(predictor, tmp_path / "in.txt", tmp_path / "out.txt", image_column="ignored").rows == 2
    answers = predictor.predict([scans / "a.JPG", scans / "b.png"])
    assert (tmp_path / "out.txt").read_text().splitlines() == [answer.label for answer in answers]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"picture": "a.png"}], "no column 'image'"),
        ([{"image": "a.png", "error": "x"}], "'error' would be written twice; give a prefix"),
        ([{"image": "a.png", "label": "x"}], "'label' would be written twice"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_before_anything_is_written(predictor, tmp_path, rows, words):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=words):
        predict_file(predictor, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


def test_a_number_where_a_path_should_be_is_one_row_s_error(predictor, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"image": 5}\n{"image": ""}\n')
    outcome = predict_file(predictor, tmp_path / "in.jsonl", tmp_path / "out.jsonl", prefix="p_")
    assert (outcome.rows, outcome.unreadable) == (2, 2)
    assert [row["p_error"].split(": ")[-1] for row in read_rows(tmp_path / "out.jsonl")] == [
        "'image' is of type int, not the path or the bytes of an image",
        "'image' is missing, not the path or the bytes of an image",
    ]


def test_pictures_for_a_bundle_of_texts_are_refused(bundle, scans, tmp_path):
    with pytest.raises(DataError, match="reads texts, not images"):
        predict_images(Predictor(bundle), [scans], tmp_path / "out.csv")


# Every target ---------------------------------------------------------------------------------------------------------


def test_several_labels_are_a_list_where_the_format_has_lists(make_bundle, scans, tmp_path):
    predictor = Predictor(make_bundle(image=True, target="multi_label"))
    wanted = [list(answer.labels) for answer in predictor.predict([scans / name for name in SORTED])]
    assert max(map(len, wanted)) > 1
    for suffix in (".jsonl", ".parquet", ".csv", ".tsv", ".txt"):
        predict_images(predictor, scans, tmp_path / f"out{suffix}")
    for suffix in (".jsonl", ".parquet"):
        rows = read_rows(tmp_path / f"out{suffix}")
        assert [row["labels"] for row in rows] == wanted
        assert list(rows[0]) == ["image", "labels", *ADDED[2:]]
    for suffix in (".csv", ".tsv"):
        assert [row["labels"] for row in read_rows(tmp_path / f"out{suffix}")] == [", ".join(part) for part in wanted]
    assert (tmp_path / "out.txt").read_text().split("\n")[:-1] == [", ".join(part) for part in wanted]


@pytest.mark.parametrize("interval", [None, 0.5])
def test_a_value_has_its_bounds_beside_it(make_bundle, scans, tmp_path, interval):
    predictor = Predictor(make_bundle(image=True, target="regression", interval=interval))
    (answer,) = predictor.predict(scans / "a.JPG")
    for suffix in (".jsonl", ".parquet", ".csv"):
        predict_images(predictor, scans / "a.JPG", tmp_path / f"out{suffix}")
        (row,) = read_rows(tmp_path / f"out{suffix}")
        assert list(row) == ["image", "value", "low", "high", "error"]
        assert float(row["value"]) == answer.value
        found = [float(row[name]) if row[name] not in (None, "") else None for name in ("low", "high")]
        assert found == [answer.low, answer.high]


def test_tables_of_texts_have_the_columns_of_their_target_and_no_error(make_bundle, tmp_path):
    (tmp_path / "in.csv").write_text("text\nball\nmoney\n")
    columns = {"multi_label": ["labels", *ADDED[2:5]], "regression": ["value", "low", "high"]}
    for target, wanted in columns.items():
        assert predict_file(Predictor(make_bundle(target=target)), tmp_path / "in.csv", tmp_path / "out.csv").rows == 2
        assert list(read_rows(tmp_path / "out.csv")[0]) == ["text", *wanted]

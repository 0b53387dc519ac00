from __future__ import annotations

import csv
import errno
import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.errors import BundleError, DataError
from finetune.serve import Outcome, Predictor, predict_file

ROWS = [
    {"id": "1", "text": "ball, goal"},
    {"id": "2", "text": 'the "bank"\nand\tmoney'},
    {"id": "3", "text": "vote مرحبا 👍🏽"},
    {"id": "4", "text": ""},
]
ADDED = ["label", "score", "probability_business", "probability_politics", "probability_sport"]


@pytest.fixture(scope="module")
def predictor(bundle) -> Predictor:
    return Predictor(bundle, threads=1)


def write_rows(path: Path, rows: list[dict]) -> Path:
    kind = path.suffix
    if kind == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif kind == ".txt":
        path.write_text("".join(row["text"] + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if kind == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def read_rows(path: Path) -> list[dict]:
    kind = path.suffix
    if kind == ".parquet":
        import pyarrow.parquet as pq

        return pq.read_table(path).to_pylist()
    if kind == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if kind == ".tsv" else ","))


def left_over(folder: Path, *known: str) -> list[str]:
    return sorted({path.name for path in folder.iterdir()} - set(known))


@pytest.mark.parametrize("target", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("source", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_in_and_out_keeps_the_columns_and_adds_the_answers(predictor, tmp_path, source, target):
    given_file = write_rows(tmp_path / f"in{source}", ROWS)
    out = tmp_path / f"out{target}"
    assert predict_file(predictor, given_file, out, batch_size=1) == Outcome(len(ROWS))
    rows = read_rows(out)
    answers = predictor.predict([row["text"] for row in ROWS], batch_size=1)
    assert [{name: row[name] for name in ("id", "text")} for row in rows] == ROWS
    assert list(rows[0]) == ["id", "text", *ADDED]
    for row, answer in zip(rows, answers, strict=True):
        assert row["label"] == answer.label
        assert float(row["score"]) == answer.score
        assert [float(row[f"probability_{label}"]) for label in predictor.labels] == list(answer.probabilities.values())
    assert left_over(tmp_path, given_file.name, out.name) == []


def test_plain_text_is_a_text_a_line_and_gives_a_label_a_line(predictor, tmp_path):
    (tmp_path / "in.txt").write_text("ball\n\nmoney\nvote", encoding="utf-8")
    assert predict_file(predictor, tmp_path / "in.txt", tmp_path / "out.txt", text_column="ignored") == Outcome(4)
    answers = [answer.label for answer in predictor.predict(["ball", "", "money", "vote"])]
    assert (tmp_path / "out.txt").read_text() == "".join(f"{label}\n" for label in answers)
    assert answers[0] == "sport"
    predict_file(predictor, tmp_path / "in.txt", tmp_path / "out.csv")
    assert [row["text"] for row in read_rows(tmp_path / "out.csv")] == ["ball", "", "money", "vote"]


def test_parquet_columns_keep_their_types(predictor, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "text": pa.array(["ball", "money", "vote"], pa.large_string()),
            "when": pa.array([1, None, 3], pa.timestamp("ns", "UTC")),
            "kind": pa.array(["a", "b", "a"]).dictionary_encode(),
            "scores": pa.array([[1], None, []], pa.list_(pa.int8())),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=2)
    predict_file(predictor, tmp_path / "in.parquet", tmp_path / "out.parquet")
    out = pq.read_table(tmp_path / "out.parquet")
    assert out.select(table.column_names).equals(table)
    assert out.schema.field("score").type == pa.float64()


def test_json_values_keep_their_types(predictor, tmp_path):
    rows = [{"text": "ball", "n": 1, "ok": True, "tags": ["a", "é"], "none": None}, {"text": "money", "n": 2}]
    write_rows(tmp_path / "in.jsonl", rows)
    for suffix in (".jsonl", ".parquet"):
        predict_file(predictor, tmp_path / "in.jsonl", tmp_path / f"out{suffix}")
        first, second = read_rows(tmp_path / f"out{suffix}")
        assert {key: first[key] for key in rows[0]} == rows[0]
        assert second["n"] == 2
        assert second["tags"] is None
    predict_file(predictor, tmp_path / "in.jsonl", tmp_path / "out.csv")
    first = read_rows(tmp_path / "out.csv")[0]
    assert (first["n"], first["ok"], first["tags"], first["none"]) == ("1", "true", '["a", "é"]', "")


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(max_size=30), min_size=1, max_size=5),
    suffix=st.sampled_from([".csv", ".tsv", ".jsonl", ".parquet"]),
)
def test_any_text_comes_back_as_it_went_in(predictor, tmp_path, texts, suffix):
    rows = [{"id": str(index), "text": text} for index, text in enumerate(texts)]
    predict_file(predictor, write_rows(tmp_path / f"in{suffix}", rows), tmp_path / f"out{suffix}")
    assert [row["text"] for row in read_rows(tmp_path / f"out{suffix}")] == texts


def test_a_byte_order_mark_and_windows_line_ends_are_read(predictor, tmp_path):
    (tmp_path / "in.csv").write_bytes("\ufefftext,id\r\nball,1\r\n\r\nmoney,2\r\n".encode())
    assert predict_file(predictor, tmp_path / "in.csv", tmp_path / "out.csv") == Outcome(2)
    assert [row["label"] for row in read_rows(tmp_path / "out.csv")] == ["sport", "business"]


def test_rows_are_read_a_chunk_at_a_time(predictor, tmp_path, monkeypatch):
    """No call to the model sees more than a chunk, and progress is told after each."""
    seen, told = [], []
    real = Predictor.attempt
    monkeypatch.setattr(
        Predictor, "attempt", lambda self, texts, size: seen.append(len(texts)) or real(self, texts, size)
    )
    for suffix in (".csv", ".jsonl", ".parquet"):
        seen.clear()
        told.clear()
        given_file = write_rows(tmp_path / f"in{suffix}", [{"text": "ball"}] * 100)
        assert predict_file(predictor, given_file, tmp_path / "out.csv", batch_size=2, progress=told.append).rows == 100
        assert seen == [32, 32, 32, 4]
        assert told == [32, 64, 96, 100]


BAD_INPUTS = {
    "ragged": ("in.csv", b"id,text\n1,ball\n2,a,b\n", r"in\.csv:3: 3 fields where the header has 2"),
    "short": ("in.tsv", b"id\ttext\n1\n", r"in\.tsv:2: 1 fields where the header has 2"),
    "empty csv": ("in.csv", b"", "holds no rows"),
    "only a header": ("in.csv", b"id,text\n", "holds no rows"),
    "empty jsonl": ("in.jsonl", b"\n\n", "holds no rows"),
    "empty txt": ("in.txt", b"", "holds no rows"),
    "latin-1": ("in.csv", "id,text\n1,caf\u00e9\n".encode("latin-1"), r"not UTF-8 text \(byte 0xe9\)"),
    "utf-16": ("in.txt", "ball".encode("utf-16"), "not UTF-8"),
    "missing column": ("in.csv", b"id,texts\n1,ball\n", r"no column 'text'; did you mean 'texts'\?"),
    "twice the same column": ("in.csv", b"text,text\na,b\n", "column 'text' appears twice"),
    "open quote": ("in.csv", b'id,text\n1,"ball\n', "not readable as CSV"),
    "huge field": ("in.csv", b"id,text\n1," + b"x" * 200_000 + b"\n", "field larger than field limit"),
    "not json": ("in.jsonl", b'{"text": "a"}\n{"text": \n', r"in\.jsonl:2: not valid JSON"),
    "no object": ("in.jsonl", b'["text"]\n', r"in\.jsonl:1: not a JSON object"),
    "key missing": ("in.jsonl", b'{"text": "a", "id": 1}\n{"id": 2}\n', r"in\.jsonl:2: 'text' is missing"),
    "key added": (
        "in.jsonl",
        b'{"text": "a"}\n{"text": "b", "more": 2}\n',
        r"in\.jsonl:2: the key 'more' is not in the first line",
    ),
    "number": ("in.jsonl", b'{"text": 5}\n', r"in\.jsonl:1: 'text' is of type int, not a text"),
    "surrogate": (
        "in.jsonl",
        b'{"text": "a"}\n{"text": "\\ud800"}\n',
        r"in\.jsonl:2: 'text' holds half of a surrogate pair",
    ),
    "not parquet": ("in.parquet", b"PAR1 it is not", "not a readable Parquet file"),
    "label column": ("in.csv", b"text,label\nball,sport\n", "column 'label' would be written twice; give a prefix"),
    "probability column": ("in.csv", b"text,probability_sport\nball,1\n", "'probability_sport' would be written twice"),
    "unknown extension": ("in.xlsx", b"", r"extension '\.xlsx' is not known"),
    "nearly known extension": ("in.jsnl", b"", r"did you mean '\.jsonl'\?"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_ends_in_one_sentence_and_leaves_no_output(predictor, tmp_path, case):
    name, content, words = BAD_INPUTS[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        predict_file(predictor, tmp_path / name, tmp_path / "out.csv")
    assert "\n" not in str(caught.value)
    assert left_over(tmp_path, name) == []


def test_a_late_bad_row_leaves_the_earlier_output_alone(predictor, tmp_path):
    (tmp_path / "out.csv").write_text("earlier\n")
    (tmp_path / "in.csv").write_text("text,id\n" + "ball,1\n" * 100 + "ball\n")
    with pytest.raises(DataError, match="in.csv:102"):  # noqa: RUF043
        predict_file(predictor, tmp_path / "in.csv", tmp_path / "out.csv", batch_size=1)
    assert (tmp_path / "out.csv").read_text() == "earlier\n"
    assert left_over(tmp_path, "in.csv", "out.csv") == []


def test_a_prefix_keeps_the_true_labels_beside_the_answers(predictor, tmp_path):
    write_rows(tmp_path / "in.csv", [{"text": "ball", "label": "sport"}])
    predict_file(predictor, tmp_path / "in.csv", tmp_path / "out.csv", prefix="predicted_")
    (row,) = read_rows(tmp_path / "out.csv")
    assert list(row) == ["text", "label", *(f"predicted_{name}" for name in ADDED)]
    assert row["predicted_label"] == row["label"] == "sport"


@pytest.mark.parametrize("column", ["probability_a b,\"c'", "score"])
def test_a_label_whose_column_collides_with_an_input_column_is_refused(make_bundle, tmp_path, column):
    own = Predictor(make_bundle(labels=["a b,\"c'", "", "ü"]))
    write_rows(tmp_path / "in.jsonl", [{"text": "ball", column: 1}])
    with pytest.raises(DataError, match="would be written twice"):
        predict_file(own, tmp_path / "in.jsonl", tmp_path / "out.csv")
    write_rows(tmp_path / "in.csv", [{"text": "ball"}])
    predict_file(own, tmp_path / "in.csv", tmp_path / "out.csv")
    assert list(read_rows(tmp_path / "out.csv")[0]) == [
        "text",
        "label",
        "score",
        "probability_a b,\"c'",
        "probability_",
        "probability_ü",
    ]


def test_values_that_change_type_are_refused_by_parquet_with_their_place(predictor, tmp_path):
    rows = [{"text": "ball", "id": 1}] * 16 + [{"text": "ball", "id": "x"}]
    write_rows(tmp_path / "in.jsonl", rows)
    with pytest.raises(DataError, match=r"in\.jsonl:17: the rows from here on do not fit a Parquet column"):
        predict_file(predictor, tmp_path / "in.jsonl", tmp_path / "out.parquet", batch_size=1)
    assert left_over(tmp_path, "in.jsonl") == []


def test_a_missing_input_and_an_impossible_output_are_named(predictor, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        predict_file(predictor, tmp_path / "in.csv", tmp_path / "out.csv")
    write_rows(tmp_path / "in.csv", ROWS)
    with pytest.raises(BundleError, match="cannot be written"):
        predict_file(predictor, tmp_path / "in.csv", tmp_path / "nowhere" / "out.csv")
    with pytest.raises(DataError, match="same file"):
        predict_file(predictor, tmp_path / "in.csv", tmp_path / "in.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        predict_file(predictor, tmp_path / "in.csv", tmp_path / "folder.csv")
    with pytest.raises(DataError, match="batch_size is 0"):
        predict_file(predictor, tmp_path / "in.csv", tmp_path / "out.csv", batch_size=0)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_full_disk_is_one_sentence_and_leaves_no_output(predictor, tmp_path, monkeypatch, suffix):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_rows(tmp_path / "in.csv", ROWS)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BundleError, match="the disk is full"):
        predict_file(predictor, tmp_path / "in.csv", tmp_path / f"out{suffix}")
    assert left_over(tmp_path, "in.csv") == []


def test_parquet_without_pyarrow_names_the_extra(predictor, tmp_path, monkeypatch):
    write_rows(tmp_path / "in.parquet", ROWS)
    write_rows(tmp_path / "in.csv", ROWS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for source, target in (("in.parquet", "out.csv"), ("in.csv", "out.parquet")):
        with pytest.raises(BundleError, match=r"pip install 'finetune-recipes\[parquet\]'"):
            predict_file(predictor, tmp_path / source, tmp_path / target)
    assert left_over(tmp_path, "in.parquet", "in.csv") == []

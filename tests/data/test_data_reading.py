from __future__ import annotations

import codecs
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.data.layout import DOCUMENT_FILES, find_layout
from finetune.data.read import read_rows, reading_of
from finetune.data.rows import Rows
from finetune.errors import DataError
from finetune.recipe.types import DataSettings
from finetune.tasks import TASKS


def read(path: Path, encoding: str = "utf-8", wanted: str = "auto", **data: Any) -> Rows:
    reading = reading_of(TASKS["text_classification"], DataSettings(source=str(path), encoding=encoding, **data))
    return read_rows(find_layout(path, wanted), reading)


def refused(path: Path, *words: str, encoding: str = "utf-8", **data: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(path, encoding, **data)
    message = str(caught.value)
    for word in words:
        assert word in message
    assert "\n" not in message
    return message


def written(folder: Path, text: str | bytes, name: str = "d.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_csv_keeps_line_numbers_across_quoted_line_breaks_and_blank_lines(tmp_path: Path) -> None:
    rows = read(written(tmp_path, 'text,label\n"a\nb",x\n\n\nc,y\n'))
    assert rows.inputs == ("a\nb", "c")
    assert rows.places == ("d.csv:2", "d.csv:6")


def test_csv_words_that_other_readers_take_for_null_stay_words(tmp_path: Path) -> None:
    rows = read(written(tmp_path, "text,label\nnull,NA\nNone,nan\n2020-01-01,01\n"))
    assert rows.inputs == ("null", "None", "2020-01-01")
    assert rows.labels == ("NA", "nan", "01")


def test_tsv_is_split_at_tabs(tmp_path: Path) -> None:
    assert read(written(tmp_path, "label\ttext\nx\ta, b\n", "d.tsv")).inputs == ("a, b",)


def test_outer_white_space_of_labels_and_column_names_is_dropped(tmp_path: Path) -> None:
    assert read(written(tmp_path, "text, label\n a , x \n")).labels == ("x",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["d.csv is empty"]),
        ("text,label\n", ["holds no rows"]),
        ("text,lable\na,x\n", ["no column 'label'", "text, lable", "did you mean 'lable'", "data.label_column"]),
        ("body,label\na,x\n", ["no column 'text'", "body, label", "data.text_column"]),
        ("text;label\na;x\n", ["no column 'text'", "separated by something else"]),
        ("text,text,label\na,b,x\n", ["2 columns named 'text'"]),
        ("text,label\na,x\nb,c,y\n", ["d.csv:3 has 3 fields", "header has 2"]),
        ("text,label\na\n", ["d.csv:2 has 1 fields"]),
        ("text,label\na,\n", ["d.csv:2", "label is missing"]),
        ("text,label\na,  \n", ["d.csv:2", "label is missing"]),
        ('text,label\na,x\n"b,y\nc,z\n', ["d.csv:3", "not valid CSV"]),
        ("text,label\na,0.333\nb,1\n", ["d.csv:2", "0.333", "fraction"]),
        ("text,label\na,1.0\nb,0.0\n", ["fraction"]),
        ("text,label\na,1\nb,0.6\nc,0.25\n", ["d.csv:3: the label 0.6"]),
        (
            "text,lable,more\na,1,2\n",
            ["(its columns: text, lable, more; did you mean 'lable'?); set data.label_column"],
        ),
    ],
)
def test_malformed_csv_is_refused_in_one_sentence_with_the_place(
    tmp_path: Path, content: str, words: list[str]
) -> None:
    refused(written(tmp_path, content), *words)


def test_unused_columns_may_share_a_name(tmp_path: Path) -> None:
    assert read(written(tmp_path, "text,label,,\na,x,,\n")).labels == ("x",)


def test_fields_beyond_the_csv_modules_limit_are_read_and_the_limit_is_put_back(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    assert len(read(written(tmp_path, f"text,label\n{'a' * 300_000},x\n")).inputs[0]) == 300_000
    assert csv.field_size_limit() == before


def test_wrong_encoding_names_file_byte_offset_and_setting(tmp_path: Path) -> None:
    path = written(tmp_path, "text,label\ncaf\xe9,x\n".encode("latin-1"))
    refused(path, "d.csv is not valid utf-8", "0xe9", "offset 14", "data.encoding")
    assert read(path, "latin-1").inputs == ("café",)


def test_offset_counts_the_byte_order_mark(tmp_path: Path) -> None:
    refused(written(tmp_path, codecs.BOM_UTF8 + b"text,label\n\xff,x\n"), "offset 14")


def test_several_encodings_are_tried_in_turn_and_the_fallback_is_told(tmp_path: Path) -> None:
    for name, data in (("a", "£1".encode()), ("b", "£2".encode("cp1252"))):
        (tmp_path / name).mkdir()
        written(tmp_path / name, data, "1.txt")
    rows = read(tmp_path, "utf-8,cp1252")
    assert rows.inputs == ("£1", "£2")
    assert len(rows.notes) == 1
    assert "b/1.txt" in rows.notes[0]


def test_unknown_encoding_is_named(tmp_path: Path) -> None:
    for name in ("utf-9", "rot13"):
        refused(written(tmp_path, "text,label\na,x\n"), name, "data.encoding", encoding=name)


def test_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    assert read(written(tmp_path, codecs.BOM_UTF8 + b"text,label\na,x\n")).columns == ("text", "label")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r")),
            st.text(st.characters(categories=["L"]), min_size=1),
        ),
        min_size=1,
    )
)
def test_csv_and_json_lines_give_back_what_was_written(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([("text", "label"), *rows])
    lines = "\n".join(json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows)
    for path in (written(tmp_path, buffer.getvalue()), written(tmp_path, lines, "d.jsonl")):
        found = read(path)
        assert found.inputs == tuple(text for text, _ in rows)
        assert found.labels == tuple(label.strip() for _, label in rows)


def test_json_lines_skip_blank_lines_and_count_them(tmp_path: Path) -> None:
    lines = '{"text": "a\\u2028b", "label": 1}\n\n{"text": null, "label": 2}\n{"label": 1}\n'
    rows = read(written(tmp_path, lines, "d.jsonl"))
    assert rows.inputs == ("a\u2028b", "", "")
    assert rows.labels == ("1", "2", "1")
    assert rows.places == ("d.jsonl:1", "d.jsonl:3", "d.jsonl:4")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["d.jsonl is empty"]),
        ('[{"text": "a"}]', ["d.jsonl:1", "JSON list", "one JSON object per line"]),
        ('{"text": "a", "label": "x"}\n{"text": ', ["d.jsonl:2", "not valid JSON"]),
        ('{"txt": "a", "label": "x"}', ["no column 'text'", "did you mean 'txt'"]),
        ('{"text": "a", "label": "x"}\n{"text": "b"}', ["d.jsonl:2", "no column 'label'"]),
        ('{"text": "a", "label": null}', ["d.jsonl:1", "label is missing"]),
        ('{"text": "a", "label": NaN}', ["label is missing"]),
        ('{"text": "a", "label": 0.5}', ["0.5", "fraction"]),
        ('{"text": "a", "label": ["x"]}', ["list", "one label"]),
        ('{"text": 5, "label": "x"}', ["d.jsonl:1", "type int"]),
        ('{"text": "a", "label": 1}\n{"text": "b", "label": "x"}', ["mixed types", "d.jsonl:1", "d.jsonl:2"]),
        ('{"text": "\\ud83d", "label": "x"}', ["d.jsonl:1", "surrogate"]),
        ("[" * 100_000, ["d.jsonl:1", "not valid JSON"]),
    ],
)
def test_malformed_json_lines_are_refused_with_the_place(tmp_path: Path, content: str, words: list[str]) -> None:
    refused(written(tmp_path, content, "d.jsonl"), *words)


def test_parquet_gives_texts_labels_and_row_numbers(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"text": ["a", None], "label": [True, False], "more": [1.0, 2.0]})
    pq.write_table(table, tmp_path / "d.parquet")
    rows = read(tmp_path / "d.parquet")
    assert (rows.inputs, rows.labels) == (("a", ""), ("True", "False"))
    assert (rows.places[1], rows.columns) == ("d.parquet:2", ("text", "label", "more"))
    pq.write_table(pa.table({"text": ["a"], "label": [None]}), tmp_path / "d.parquet")
    refused(tmp_path / "d.parquet", "d.parquet:1", "label is missing")
    pq.write_table(pa.table({"text": [1.5], "label": [1]}), tmp_path / "d.parquet")
    refused(tmp_path / "d.parquet", "type float")
    refused(written(tmp_path, b"PAR1 no", "broken.parquet"), "broken.parquet", "not a readable Parquet")


def test_folder_per_class_ignores_and_counts_strays_and_skips_hidden_files(tmp_path: Path) -> None:
    for place in ("b/2.txt", "b/1.txt", "a/10003", "a/note.pdf", "a/.hidden.txt", ".git/x.txt", "readme.md"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(place.encode() + b"\r\nx")
    rows = read(tmp_path)
    assert rows.places == ("a/10003", "b/1.txt", "b/2.txt")
    assert rows.labels == ("a", "b", "b")
    assert rows.inputs[1] == "b/1.txt\nx"
    assert rows.notes == ("2 files or folders were not read: a/note.pdf, readme.md",)


def test_order_does_not_depend_on_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (3, 1, 2):
        written(tmp_path, f"text,label\nt{number},x\n", f"{number}.csv")
    listed = Path.iterdir
    texts = read(tmp_path).inputs
    monkeypatch.setattr(Path, "iterdir", lambda self: sorted(listed(self), reverse=True))
    assert read(tmp_path).inputs == texts == ("t1", "t2", "t3")


def test_folder_without_classes_points_to_the_level_that_has_them(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    written(tmp_path / "train" / "a", "t", "1.txt")
    refused(tmp_path, "no class folders", "/train does", "data.splits")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "neither class folders", "; fill it, or give another data.source")
    written(tmp_path / "empty", "t", "1.txt")
    refused(tmp_path / "empty", "holds .txt files, but no class folders; move the files of each label into a folder")


def test_links_that_lead_nowhere_are_counted_and_folders_without_texts_are_named(tmp_path: Path) -> None:
    for name in ("good", "bad", "empty"):
        (tmp_path / name).mkdir()
    for name in ("good", "bad"):
        written(tmp_path / name, "t", "1.txt")
    (tmp_path / "bad" / "self.txt").symlink_to("self.txt")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "self").symlink_to("self")
    rows = read(tmp_path)
    assert rows.places == ("bad/1.txt", "good/1.txt")
    assert rows.notes == (
        "the folder empty/ holds no .txt files, so it is no label; fill or remove it",
        "3 files or folders were not read: bad/self.txt, gone, self",
    )
    assert find_layout(tmp_path, "auto", class_files=DOCUMENT_FILES).ignored == ("gone", "self", "bad/self.txt")
    for name in ("empty", "good"):
        written(tmp_path, "text,label\na,x\n", f"{name}.csv")
    assert len(find_layout(tmp_path, "csv", exclude=[tmp_path / "self", tmp_path / "good.csv"]).files) == 1
    (tmp_path / "up").symlink_to(".")
    assert read(tmp_path).notes[0].endswith("so they are no labels; fill or remove them: empty/, up/")


def test_a_source_is_named_as_the_user_wrote_it(tmp_path: Path) -> None:
    path = written(tmp_path, "text,label\n")
    reading = reading_of(TASKS["text_classification"], DataSettings(source="x"))
    for content, words in (("", "is empty"), ("text,label\n", "holds no rows"), ("a,b\n", "has no column 'text'")):
        path.write_text(content)
        with pytest.raises(DataError, match=rf"^my data/d\.csv {words}"):
            read_rows(find_layout(path, "auto", called="my data/d.csv"), reading)
    path.write_text("text,label\na,x,y\n")
    with pytest.raises(DataError, match=r"^d\.csv:2 has 3 fields"):
        read_rows(find_layout(path, "auto", called="my data/d.csv"), reading)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"^the folder \./none/ holds neither"):
        find_layout(tmp_path / "none", "auto", called="./none/")


def test_ambiguous_and_unfitting_formats_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "text,label\na,x\n")
    with pytest.raises(DataError, match=r"data\.format is folder"):
        find_layout(path, "folder")
    with pytest.raises(DataError, match="no jsonl file"):
        find_layout(tmp_path, "jsonl")
    with pytest.raises(DataError, match=r"cannot tell the format of .*d\.xlsx \("):
        find_layout(written(tmp_path, "x", "d.xlsx"), "auto")
    written(tmp_path, "{}", "d.jsonl")
    with pytest.raises(DataError, match="csv and jsonl files"):
        find_layout(tmp_path, "auto")


@pytest.mark.parametrize(
    ("delimiter", "content"),
    [
        ("comma", "text,label\na b,x\n"),
        ("semicolon", "text;label\na b;x\n"),
        ("tab", "text\tlabel\na b\tx\n"),
    ],
)
def test_the_delimiter_may_differ_from_the_formats(tmp_path: Path, delimiter: str, content: str) -> None:
    rows = read(written(tmp_path, content), delimiter=delimiter)
    assert (rows.inputs, rows.labels) == (("a b",), ("x",))


def test_fields_between_blanks_need_no_header(tmp_path: Path) -> None:
    rows = read(
        written(tmp_path, "a/b.png  1.5e0 \t mono\n\n  c.png 0 poly\n"),
        delimiter="whitespace", columns=("text", "number", "label"), stratify_by=("label", "number"),
    )  # fmt: skip
    assert rows.inputs == ("a/b.png", "c.png")
    assert rows.labels == ("mono", "poly")
    assert rows.places == ("d.csv:1", "d.csv:3")
    assert len(set(rows.strata)) == 2


def test_rows_of_a_table_without_header_must_fit_the_named_columns(tmp_path: Path) -> None:
    three = ("text", "label", "more")
    path = written(tmp_path, "a x 1\nb x 2 3\n")
    refused(path, "d.csv:2 has 4 fields where data.columns names 3", "blank", delimiter="whitespace", columns=three)
    path = written(tmp_path, "text,label\na,x\n")
    refused(path, "d.csv:1 is a header", "remove data.columns", columns=("text", "label"))
    refused(path, "no column 'label' (its columns: text, tag)", columns=("text", "tag"))
    refused(written(tmp_path, "", "e.csv"), "holds no rows", columns=("text", "label"))
    refused(written(tmp_path, "\n \n"), "d.csv is empty", delimiter="whitespace")
    lines = written(tmp_path, '{"text": "a", "label": "x"}', "d.jsonl")
    refused(lines, "data.columns is for CSV and TSV files, but ", "d.jsonl is read as jsonl", columns=("text", "label"))

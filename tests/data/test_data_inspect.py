from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import finetune.data.inspect as inspection
from finetune.data import inspect_data, prepare_data
from finetune.errors import DataError
from finetune.recipe.types import DataSettings
from finetune.sources import Source
from finetune.tasks import TASKS

TEXT = TASKS["text_classification"]
Rows = list[tuple[str, str]]


def local(path: Path) -> Source:
    return Source(str(path), "folder" if path.is_dir() else "file", path)


def look(path: Path, task: str = "text_classification", **data: Any) -> inspection.Inspection:
    return inspect_data(
        TASKS[task], DataSettings.model_validate({"source": str(path), **data}, strict=False), local(path)
    )


def test_inspection_sees_what_loading_sees(
    write_csv: Callable[..., Path], write_folder: Callable[..., Path], two_classes: Rows
) -> None:
    classes = {label: [text for text, at in two_classes if at == label] for label in ("even", "odd")}
    for path in (write_csv(two_classes), write_folder(classes)):
        seen = look(path)
        data = prepare_data(TEXT, DataSettings(source=str(path)), local(path), {}, 0)
        assert seen.labels == data.labels
        assert seen.rows == data.audit["rows"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"text,label\n", "holds no rows"),
        (b"text,lable\na,x\n", "no column 'label'"),
        (
            b"text,label\na,x\nb,x\n",
            r"d\.csv: every row has the label 'x'; .* add rows with another, or check data\.source",
        ),
        (b"text,label\na,x\nb,x\nc,y\n", "only one row has the label 'y'"),
        (b"text,label\n\xff,x\n", "not valid utf-8"),
    ],
)
def test_inspection_refuses_what_loading_refuses(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        look(path)
    with pytest.raises(DataError, match=words):
        prepare_data(TEXT, DataSettings(source="d.csv"), local(path), {}, 0)


@pytest.mark.parametrize(
    ("limit", "late"),
    [
        (1, r"^data\.limit is 1, so every row that it takes has the label '\w+' and there is nothing to learn; raise it or remove it$"),
        (2, r"^only one of the 2 rows that data\.limit takes each has the labels '\w+', '\w+', so they cannot be in every split; "
            r"raise data\.limit or set data\.splits\.stratify to false$"),
        (3, r"^only one of the 3 rows that data\.limit takes has the label '\w+', so it cannot be in every split; raise data\.limit or"),
        (4, r"^the test split has no rows; raise data\.limit, which takes 4 rows, or change data\.splits$"),
    ],
)  # fmt: skip
def test_a_limit_that_is_too_small_is_named_as_the_cause_and_early(
    write_csv: Callable[..., Path], two_classes: Rows, limit: int, late: str
) -> None:
    path = write_csv(two_classes)
    told = rf"^data\.limit is {limit}, too few rows for 3 splits with each of the 2 labels; raise it to 5 or more, or remove it$"
    with pytest.raises(DataError, match=told):
        look(path, limit=limit)
    with pytest.raises(DataError, match=late):
        prepare_data(TEXT, DataSettings(source=str(path), limit=limit), local(path), {}, 0)


def test_what_the_look_says_of_a_limit_holds_for_every_seed(write_csv: Callable[..., Path], two_classes: Rows) -> None:
    rows = [*two_classes[:30], *((f"{text} again", "third") for text, _ in two_classes[40:45])]
    path = write_csv(rows)
    accepted = []
    for limit in range(1, 16):
        try:
            look(path, limit=limit)
            accepted.append(limit)
        except DataError:
            for seed in range(5):
                with pytest.raises(DataError, match=r"data\.limit"):
                    prepare_data(TEXT, DataSettings(source=str(path), limit=limit), local(path), {}, seed)
    assert accepted == list(range(8, 16))
    assert look(path, limit=3, stratify_by=["label"]).rows == look(path, limit=100).rows == 35
    with pytest.raises(DataError, match=r"^data\.limit is 2, too few rows for 3 splits; raise it or remove it$"):
        look(path, limit=2, splits={"stratify": False})


def test_named_splits_are_looked_at_together(write_csv: Callable[..., Path], two_classes: Rows) -> None:
    names = {"train": two_classes[:40], "validation": two_classes[40:50], "test": two_classes[50:]}
    named = {split: local(write_csv(rows, f"{split}.csv")) for split, rows in names.items()}
    settings = DataSettings.model_validate(
        {"source": ".", "splits": {split: f"{split}.csv" for split in named}}, strict=False
    )
    seen = inspect_data(TEXT, settings, local(Path(str(named["train"].path)).parent), named)
    assert (seen.rows, seen.labels, seen.columns) == (60, ("even", "odd"), ("text", "label"))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_of_a_large_source_only_the_structure_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(inspection, "READ_WHOLE_BYTES", 10)
    path = tmp_path / f"d.{kind}"
    if kind == "csv":
        path.write_text("text,label\na,x\nb,x\n", encoding="utf-8")
    else:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.table({"text": ["a"], "label": ["x"]}), path)
    seen = look(path)
    assert (seen.labels, seen.rows) == (None, None)
    assert "large" in seen.notes[0]
    with pytest.raises(DataError, match="no column 'body'"):
        look(path, text_column="body")


def test_a_column_of_captions_taken_for_paths_is_refused(write_csv: Callable[..., Path]) -> None:
    rows = [("a long caption about the picture " * 12, str(number % 2)) for number in range(4)]
    table = write_csv(rows)
    with pytest.raises(DataError, match=r"4 of 4 images cannot be read: .*cannot be opened.*check data\.image_column"):
        look(table, task="image_classification", image_column="text")


def test_a_hub_data_set_is_left_for_loading() -> None:
    settings = DataSettings(source="owner/name")
    seen = inspect_data(TEXT, settings, Source("owner/name", "hub", None))
    assert (seen.columns, seen.labels, seen.rows) == ((), None, None)
    with pytest.raises(DataError, match=r"data\.format is csv, but 'owner/name' is a hub data set"):
        inspect_data(TEXT, settings.model_copy(update={"format": "csv"}), Source("owner/name", "hub", None))


def test_inspection_imports_neither_torch_nor_datasets(write_csv: Callable[..., Path], two_classes: Rows) -> None:
    program = (
        "import sys; from pathlib import Path; from finetune.data import inspect_data\n"
        "from finetune.recipe.types import DataSettings; from finetune.sources import Source\n"
        "from finetune.tasks import TASKS\n"
        "inspect_data(TASKS['text_classification'], DataSettings(source='d'), Source('d', 'file', Path(sys.argv[1])))\n"
        "heavy = {'torch', 'datasets', 'transformers', 'datasketch', 'scipy', 'sklearn', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program, str(write_csv(two_classes))], check=True, cwd=root)

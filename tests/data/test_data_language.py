from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.data import LabelledData, inspect_data, prepare_data, read_texts
from finetune.data.inspect import Inspection
from finetune.data.near import normalise
from finetune.errors import DataError
from finetune.preprocess import Conversation
from finetune.recipe.types import DataSettings
from finetune.sources import Source
from finetune.tasks import TASKS

WORDS = [f"w{number}" for number in range(400)]
TASK = TASKS["causal_lm"]
PAIR = {"prompt_column": "question", "answer_column": "reply"}
CHAT = {"messages_column": "messages"}
Chat = list[dict[str, str]]


def sentence(number: int, words: int = 20) -> str:
    import random

    return " ".join(random.Random(number).choices(WORDS, k=words))


def local(path: Path) -> Source:
    return Source(str(path), "folder" if path.is_dir() else "file", path)


def settings_of(path: Path, **data: Any) -> DataSettings:
    return DataSettings.model_validate({"source": str(path), **data}, strict=False)


def prepare(path: Path, named: dict[str, Path] | None = None, seed: int = 0, **data: Any) -> LabelledData:
    found = {split: local(place) for split, place in (named or {}).items()}
    return prepare_data(TASK, settings_of(path, **data), local(path), found, seed)


def look(path: Path, **data: Any) -> Inspection:
    return inspect_data(TASK, settings_of(path, **data), local(path))


def by_place(data: LabelledData) -> dict[str, Any]:
    return {
        place: item
        for part in (data.train, data.validation, data.test)
        for item, place in zip(part.inputs, part.places, strict=True)
    }


@pytest.fixture
def write_documents(tmp_path: Path) -> Callable[..., Path]:
    """Write {path: text} below a folder."""

    def write(texts: dict[str, str], name: str = "corpus") -> Path:
        for place, text in texts.items():
            path = tmp_path / name / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    def write(rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


def chat(*contents: str, system: str | None = None) -> Chat:
    roles = ["user", "assistant"] * len(contents)
    said = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return [{"role": "system", "content": system}, *said] if system else said


def test_every_text_file_below_a_folder_is_a_document(write_documents: Callable[..., Path]) -> None:
    texts = {
        f"{folder}{number:02d}.txt": sentence(number) for number in range(20) for folder in ("", "a/", "a/b/c/", "z/")
    }
    texts = {place: sentence(at) for at, place in enumerate(texts)}
    folder = write_documents({**texts, "a/b.md": "not read", ".hidden/x.txt": "not read", "a/.x.txt": "not read"})
    data = prepare(folder)
    assert by_place(data) == texts
    assert [len(part) for part in (data.train, data.validation, data.test)] == [64, 8, 8]
    assert data.labels == ()
    for part in (data.train, data.validation, data.test):
        assert part.labels.dtype == np.float32
        assert part.labels.tolist() == [0.0] * len(part)
    assert "1 file or folder was not read: a/b.md" in data.audit["warnings"]
    seen = look(folder)
    assert (seen.labels, seen.rows) == ((), 80)


def test_a_folder_of_texts_alone_needs_no_sub_folder(write_documents: Callable[..., Path]) -> None:
    texts = {f"{number:02d}.txt": sentence(number) for number in range(20)}
    assert by_place(prepare(write_documents(texts))) == texts
    assert by_place(prepare(write_documents(texts), format="folder")) == texts


def test_the_order_of_documents_does_not_depend_on_the_file_system(write_documents: Callable[..., Path]) -> None:
    texts = {place: sentence(at) for at, place in enumerate(["b/2.txt", "a/1.txt", "c.txt", "a/0/9.txt"])}
    folder = write_documents(texts)
    assert read_texts(local(folder)) == [texts[place] for place in ("c.txt", "a/1.txt", "a/0/9.txt", "b/2.txt")]


def test_a_folder_that_is_a_link_is_not_entered(write_documents: Callable[..., Path]) -> None:
    folder = write_documents({"a/1.txt": "one", "a/2.txt": "two"})
    (folder / "a" / "back").symlink_to(folder, target_is_directory=True)
    assert look(folder).rows == 2


def test_splits_may_be_folders_or_single_files(write_documents: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_documents(
        {f"own/{number}.txt": sentence(number) for number in range(6)} | {"held/x.txt": sentence(9)}
    )
    (tmp_path / "test.txt").write_text(sentence(10), encoding="utf-8")
    named = {"validation": folder / "held", "test": tmp_path / "test.txt", "train": folder / "own"}
    splits = {"train": "own", "validation": "held", "test": "test.txt"}
    data = prepare(folder, named, splits=splits)
    assert data.validation.inputs == (sentence(9),)
    assert data.test.inputs == (sentence(10),)
    assert len(data.train) == 6


def test_a_folder_left_out_for_another_split_is_not_read_twice(write_documents: Callable[..., Path]) -> None:
    folder = write_documents(
        {f"own/{number}.txt": sentence(number) for number in range(10)} | {"held/x/y.txt": sentence(20)}
    )
    data = prepare(folder, {"test": folder / "held"}, splits={"train": 0.8, "validation": 0.2, "test": "held"})
    assert data.test.inputs == (sentence(20),)
    assert sentence(20) not in (*data.train.inputs, *data.validation.inputs)


def test_line_ends_and_encodings_are_those_of_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Preis: 5 £\r\nEnde".encode("cp1252"))
    with pytest.raises(DataError, match=r"a\.txt is not valid utf-8"):
        read_texts(local(tmp_path))
    assert read_texts(local(tmp_path), encoding="utf-8,cp1252") == ["Preis: 5 £\nEnde"]


def test_documents_beside_tables_are_not_guessed_about(write_documents: Callable[..., Path]) -> None:
    folder = write_documents(
        {"readme.txt": "about the rows", "rows.csv": "text\n" + "\n".join(map(sentence, range(20)))}
    )
    with pytest.raises(DataError, match=r"holds \.txt files and csv files; set data\.format"):
        prepare(folder)
    assert len(by_place(prepare(folder, format="csv"))) == 20
    assert read_texts(local(folder / "rows.csv")) == [sentence(number) for number in range(20)]


def test_a_folder_without_texts_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text("x")
    with pytest.raises(DataError, match=r"holds neither \.txt files, at any depth, nor a CSV"):
        prepare(tmp_path)
    with pytest.raises(DataError, match=r"give the folder that holds the \.txt files"):
        prepare(tmp_path / "x.md", format="folder")


def test_identical_and_empty_documents_are_treated_as_texts_are(write_documents: Callable[..., Path]) -> None:
    texts = {f"{number}.txt": sentence(number, 40) for number in range(30)}
    texts |= {"copy.txt": sentence(3, 40), "near.txt": sentence(5, 40) + " more", "blank.txt": " \n\u200b"}
    audit = prepare(write_documents(texts)).audit
    assert (audit["rows"], audit["rows_used"], audit["empty_texts"]) == (33, 32, 1)
    assert (audit["exact_duplicate_rows"], audit["near_duplicate_rows"]) == (1, 1)
    assert (audit["labels"], audit["conflicting_label_groups"], audit["imbalance"]) == ({}, 0, None)
    assert sum(audit["leaks"].values()) == 0
    assert json.loads(json.dumps(audit, allow_nan=False)) == audit
    dropped = prepare(write_documents(texts), audit={"exact_duplicates": "drop"}).audit
    assert (dropped["rows_used"], dropped["dropped_duplicates"]) == (31, 1)


def test_leaks_between_named_splits_are_refused(write_documents: Callable[..., Path]) -> None:
    folder = write_documents(
        {f"own/{number}.txt": sentence(number) for number in range(10)} | {"held/x.txt": sentence(3)}
    )
    splits = {"train": 0.8, "validation": 0.2, "test": "held"}
    with pytest.raises(DataError, match=r"held/x\.txt|x\.txt and"):
        prepare(folder, {"test": folder / "held"}, splits=splits)


def test_documents_that_repeat_one_another_cannot_fill_every_split(write_documents: Callable[..., Path]) -> None:
    same = write_documents({f"{number}.txt": sentence(1) for number in range(10)})
    told = r"^the \w+ split has no rows, because of 10 rows only 1 differ enough .*; add rows that differ$"
    for policy in ("keep", "drop"):
        with pytest.raises(DataError, match=told):
            prepare(same, audit={"exact_duplicates": policy})


def test_few_documents_still_fill_every_split_or_are_refused(write_documents: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="split has no rows"):
        prepare(write_documents({f"{number}.txt": sentence(number) for number in range(3)}))


def test_texts_of_a_table_need_no_label(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["body", "other"], *([sentence(number), "x"] for number in range(20))])
    data = prepare(path, text_column="body")
    assert by_place(data) == {f"rows.csv:{number + 2}": sentence(number) for number in range(20)}
    with pytest.raises(DataError, match=r"has no column 'text' .* set data\.text_column"):
        prepare(path)
    assert look(path, text_column="body").columns == ("body", "other")


def test_a_limit_takes_a_seeded_sample(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text\n" + "\n".join(map(sentence, range(60))), encoding="utf-8")
    one, same, other = (set(by_place(prepare(path, limit=20, seed=seed))) for seed in (0, 0, 1))
    assert len(one) == 20
    assert one == same
    assert one != other


def pairs(count: int = 20) -> list[dict[str, Any]]:
    return [{"question": f"what is {sentence(number, 9)}?", "reply": sentence(900 + number)} for number in range(count)]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_prompts_with_answers_are_read_from_tables(write_jsonl: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    rows = pairs()
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        write_jsonl(rows)
    elif kind == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["reply", "question"], *([row["reply"], row["question"]] for row in rows)])
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        arrow = pytest.importorskip("pyarrow")
        parquet.write_table(arrow.Table.from_pylist(rows), path)
    data = prepare(path, **PAIR)
    first = 2 if kind == "csv" else 1
    assert by_place(data) == {
        f"rows.{kind}:{number + first}": Conversation.pair(row["question"], row["reply"])
        for number, row in enumerate(rows)
    }
    assert look(path, **PAIR).rows == 20


def test_pairs_without_prompt_or_answer_are_dropped_and_named(write_jsonl: Callable[..., Path]) -> None:
    rows: list[dict[str, Any]] = [
        *pairs(),
        {"question": "a?", "reply": None},
        {"question": " ", "reply": "b"},
        {"question": "c?"},
    ]
    audit = prepare(write_jsonl(rows), **PAIR).audit
    assert (audit["rows"], audit["empty_texts"]) == (23, 3)
    assert any("3 rows have an empty text and were dropped: rows.jsonl:21" in note for note in audit["warnings"])
    empty = [{"question": "a?", "reply": ""}] * 3
    with pytest.raises(DataError, match=r"every text is empty, .*check data\.prompt_column and data\.answer_column"):
        prepare(write_jsonl(empty), **PAIR)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompt_column": "question"}, r"data\.prompt_column is set without data\.answer_column"),
        ({"answer_column": "reply"}, r"data\.answer_column is set without data\.prompt_column"),
        ({**PAIR, **CHAT}, r"data\.messages_column and data\.prompt_column are both set"),
        ({**PAIR, "text_column": "body"}, r"data\.text_column and data\.prompt_column are both set"),
        ({**CHAT, "text_column": "body"}, r"data\.text_column and data\.messages_column are both set"),
        ({"prompt_column": "question", "answer_column": "answer"}, r"no column 'answer' .* set data\.answer_column"),
        ({"messages_column": "dialog"}, r"no column 'dialog' .* set data\.messages_column"),
    ],
)  # fmt: skip
def test_columns_that_do_not_go_together_or_are_missing_are_refused(
    write_jsonl: Callable[..., Path], given: dict[str, str], said: str
) -> None:
    path = write_jsonl(pairs())
    for see in (prepare, look):
        with pytest.raises(DataError, match=said):
            see(path, **given)


def test_columns_mean_nothing_in_a_folder_of_documents(write_documents: Callable[..., Path]) -> None:
    folder = write_documents({f"a/b/{number}.txt": sentence(number) for number in range(20)})
    with pytest.raises(DataError, match=r"data\.prompt_column names columns, but .*corpus is a folder of documents"):
        look(folder, **PAIR)
    with pytest.raises(DataError, match=r"data\.delimiter is for CSV and TSV files, but .*corpus is read as folder"):
        look(folder, delimiter="tab")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_conversations_are_read_from_tables(write_jsonl: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    chats = [
        chat(sentence(number, 8), sentence(100 + number), "and?", sentence(number), system="Be kind.")
        for number in range(20)
    ]
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        write_jsonl([{"messages": messages, "id": 3} for messages in chats])
    elif kind == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["messages"], *([json.dumps(messages)] for messages in chats)])
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        arrow = pytest.importorskip("pyarrow")
        parquet.write_table(arrow.Table.from_pylist([{"messages": messages} for messages in chats]), path)
    found = by_place(prepare(path, **CHAT))
    wanted = [Conversation(tuple((one["role"], one["content"]) for one in messages)) for messages in chats]
    assert sorted(found.values(), key=str) == sorted(wanted, key=str)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"from": "human", "value": "a"}], 'message 1 of a conversation must have a "role" and a "content"'),
        (chat("a", "b")[:1], "the roles of the conversation are user, and only what the role 'assistant' says"),
        ([{"role": "assistant", "content": None}], "message 1 of a conversation must have"),
        ([{"role": "assistant", "content": "\ud800"}], "the message holds half of a surrogate pair"),
        ({"role": "user"}, "must be a list of messages"),
        ("Hello", "neither a list nor valid JSON"),
        (7, "must be a list of messages"),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_refused_with_its_place(
    write_jsonl: Callable[..., Path], messages: Any, said: str
) -> None:
    rows = [{"messages": chat("a", sentence(number))} for number in range(5)]
    path = write_jsonl([*rows, {"messages": messages}])
    for see in (prepare, look):
        with pytest.raises(DataError, match=rf"rows\.jsonl:6: .*{said}"):
            see(path, **CHAT)


def test_a_conversation_with_an_empty_turn_is_dropped_but_not_one_with_an_empty_system_prompt(
    write_jsonl: Callable[..., Path],
) -> None:
    rows = [{"messages": [{"role": "system", "content": ""}, *chat(sentence(n), sentence(n + 50))]} for n in range(20)]
    rows += [{"messages": []}, {"messages": None}, {"messages": chat("a", " ")}, {"messages": chat("", "b")}]  # type: ignore[list-item]
    audit = prepare(write_jsonl(rows), **CHAT).audit
    assert (audit["rows"], audit["empty_texts"]) == (24, 4)


def test_a_long_system_prompt_shared_by_all_does_not_make_conversations_alike(write_jsonl: Callable[..., Path]) -> None:
    chats = [chat(sentence(n, 12), sentence(n + 50, 12), system=sentence(999, 200)) for n in range(30)]
    audit = prepare(write_jsonl([{"messages": messages} for messages in chats]), **CHAT).audit
    assert audit["near_duplicate_rows"] == 0
    chats.append(chat(sentence(3, 12), sentence(53, 12) + " more", system="Another one."))
    audit = prepare(write_jsonl([{"messages": messages} for messages in chats]), **CHAT).audit
    assert audit["near_duplicate_rows"] == 1


def test_the_fingerprint_tells_who_said_what(write_jsonl: Callable[..., Path]) -> None:
    def fingerprint(first: Chat) -> str:
        rows = [
            {"messages": messages} for messages in (first, *(chat(sentence(n), sentence(n + 50)) for n in range(20)))
        ]
        return prepare(write_jsonl(rows), splits={"stratify": False}, **CHAT).fingerprint

    base = chat("a", "b", "c", "d")
    joined = [{"role": "user", "content": "a\nassistant: b\nuser: c"}, {"role": "assistant", "content": "d"}]
    assert fingerprint(base) == fingerprint(base)
    assert len({fingerprint(base), fingerprint(chat("a", "b", "c", "e")), fingerprint(joined)}) == 3


def test_general_texts_come_once_each_and_by_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "general.csv"
    texts = [sentence(number) for number in range(30)]
    rows = [texts[0], " ", *texts, f"  {texts[4]} "]
    path.write_text("body\n" + "\n".join(rows), encoding="utf-8")
    assert [normalise(text) for text in read_texts(local(path), text_column="body")] == texts
    one, same, other = (read_texts(local(path), text_column="body", limit=8, seed=seed) for seed in (0, 0, 1))
    assert len(one) == 8
    assert one == same
    assert one != other
    assert [texts.index(normalise(text)) for text in one] == sorted(texts.index(normalise(text)) for text in one)


def test_complaints_about_general_texts_speak_of_their_section(tmp_path: Path) -> None:
    path = tmp_path / "general.csv"
    path.write_text("body\n  \n" + '" "', encoding="utf-8")
    with pytest.raises(
        DataError, match=r"evaluation\.general: .*no column 'text' .*set evaluation\.general\.text_column"
    ):
        read_texts(local(path))
    with pytest.raises(DataError, match=r"evaluation\.general: every text of .* is empty"):
        read_texts(local(path), text_column="body")


def test_looking_at_conversations_imports_neither_torch_nor_datasets(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl(pairs())
    program = (
        "import sys\nfrom pathlib import Path\nfrom finetune.data import inspect_data, blocks_of\n"
        "from finetune.recipe.types import DataSettings\nfrom finetune.sources import Source\nfrom finetune.tasks import TASKS\n"
        f"path = Path({str(path)!r})\n"
        "settings = DataSettings(source=str(path), prompt_column='question', answer_column='reply')\n"
        "assert inspect_data(TASKS['causal_lm'], settings, Source(str(path), 'file', path)).rows == 20\n"
        "print({'torch', 'transformers', 'datasets', 'jinja2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

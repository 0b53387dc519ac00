from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_language import CHAT_TEMPLATE, SPECIAL, make_documents, train_tokenizer

from finetune.errors import BundleError, DataError, SourceError
from finetune.preprocess.language import (
    IGNORED,
    Conversation,
    LanguageEncoder,
    LanguagePreprocess,
    Sequence,
    conversation_of,
)

END, START_OF_MESSAGE, END_OF_MESSAGE = range(3)
TEXTS = ["", " ", "plain words.", "汉字かな 👩‍👩‍👧 é\n\ttab", "said <|endoftext|> in the middle", "x" * 500]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("language") / "tokenizer.json"
    train_tokenizer(make_documents(60)).save(str(path))
    return path


@pytest.fixture(scope="module")
def plain(tokenizer_file: Path) -> LanguageEncoder:
    return LanguageEncoder(tokenizer_file, LanguagePreprocess(64, END, None, (END,)))


@pytest.fixture(scope="module")
def with_bos(tokenizer_file: Path) -> LanguageEncoder:
    return LanguageEncoder(tokenizer_file, LanguagePreprocess(64, END, START_OF_MESSAGE, (END_OF_MESSAGE, END), True))


def test_documents_become_the_tokens_of_autotokenizer_and_end_with_eos(
    tokenizer_file: Path, plain: LanguageEncoder, with_bos: LanguageEncoder
) -> None:
    transformers = pytest.importorskip("transformers")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file))
    for row, (text, one, two) in enumerate(zip(TEXTS, plain.encode(TEXTS), with_bos.encode(TEXTS), strict=True)):
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert one.ids == [*ids, END]
        assert two.ids == [START_OF_MESSAGE, *ids, END_OF_MESSAGE]
        assert plain.tokens(text) == with_bos.tokens(text) == ids
        assert (plain.prompt_ids(text), with_bos.prompt_ids(text)) == (ids, [START_OF_MESSAGE, *ids])
        for sequence in (one, two):
            assert sequence.targets == [*sequence.ids[1:], IGNORED]
            assert sequence.segments == [0] * len(sequence.ids)
            assert sequence.rows == (row,)
    assert (plain.begin, with_bos.begin) == ((), (START_OF_MESSAGE,))


def test_a_document_that_ends_with_eos_gets_no_second_one(plain: LanguageEncoder) -> None:
    assert plain.encode(["a<|endoftext|>"])[0].ids == [*plain.tokens("a"), END]


def test_the_tokenizers_own_eos_ends_a_text_whatever_the_order_of_ids(tokenizer_file: Path) -> None:
    settings = LanguagePreprocess(64, END, None, (END, END_OF_MESSAGE), special={"eos_token": SPECIAL[END_OF_MESSAGE]})
    assert LanguageEncoder(tokenizer_file, settings).encode(["a"])[0].ids[-1] == END_OF_MESSAGE
    silent = LanguageEncoder(tokenizer_file, LanguagePreprocess(64, END))
    assert silent.encode(["a"])[0].ids == silent.tokens("a")


@settings(max_examples=60)
@given(prompt=st.text(max_size=20), answer=st.text(max_size=20))
def test_a_pair_without_a_template_is_prompt_answer_and_eos_and_learns_the_last_two(
    plain: LanguageEncoder, with_bos: LanguageEncoder, prompt: str, answer: str
) -> None:
    for encoder, end in ((plain, END), (with_bos, END_OF_MESSAGE)):
        (row,) = encoder.encode([Conversation.pair(prompt, answer)])
        asked = encoder.prompt_ids(prompt)
        assert row.ids[: len(asked)] == asked  # what the network is asked with is what it learned from
        assert row.ids[-1] == end
        assert encoder.decode(row.ids[len(asked) : -1], special=True) == answer
        shifted = [*row.ids[1:], IGNORED]
        assert row.targets == [IGNORED if at + 1 < len(asked) else token for at, token in enumerate(shifted)]


def test_a_prompt_that_ends_inside_a_word_keeps_the_tokens_that_it_has_alone(plain: LanguageEncoder) -> None:
    text = make_documents(1)[0]
    merged = 0
    for cut in range(1, len(text)):
        asked = plain.prompt_ids(text[:cut])
        (row,) = plain.encode([Conversation.pair(text[:cut], text[cut:])])
        assert row.ids[: len(asked)] == asked
        assert plain.decode(row.ids[len(asked) : -1], special=True) == text[cut:]
        merged += row.ids[:-1] != plain.tokens(text)
    assert merged > 5


def test_what_is_no_pair_needs_a_template(plain: LanguageEncoder) -> None:
    for messages, said in (
        ((("system", "x"), ("user", "a"), ("assistant", "b")), "not system, user, assistant"),
        ((("assistant", "a"),), "not assistant"),
        ((), "not nothing"),
    ):
        with pytest.raises(DataError, match=f"conversation 0: the model has no chat template, .*{said}"):
            plain.encode([Conversation(messages)])
    with pytest.raises(DataError, match="has no chat template, so it takes a plain prompt"):
        plain.chat_ids([("user", "a")])


@pytest.mark.parametrize("wrong", [3, None, b"bytes", ["list"]])
def test_what_is_no_text_is_refused(plain: LanguageEncoder, wrong: Any) -> None:
    with pytest.raises(DataError, match="must be a string"):
        plain.encode(["fine", wrong])
    with pytest.raises(DataError, match="surrogate"):
        plain.tokens("\ud800")


def test_rows_of_one_segment_are_padded_on_the_right(plain: LanguageEncoder) -> None:
    rows = plain.encode(["Number", "one two three four five", ""])
    batch, targets = plain.collate(rows), plain.targets(rows)
    lengths = [plain.size_of(row) for row in rows]
    assert batch["input_ids"].shape == targets.shape == (3, max(lengths))
    for at, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        assert batch["input_ids"][at, :length].tolist() == row.ids
        assert targets[at].tolist() == row.targets + [IGNORED] * (max(lengths) - length)
        assert batch["attention_mask"][at].tolist() == [1] * length + [0] * (max(lengths) - length)
        assert batch["position_ids"][at].tolist() == list(range(max(lengths)))
    assert {name: (array.dtype, array.ndim) for name, array in batch.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "position_ids"), (np.int64, 2)
    )
    assert plain.collate([])["input_ids"].shape == (0, 1)


@settings(max_examples=60)
@given(lengths=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4), min_size=1, max_size=4))
def test_a_token_sees_its_own_segment_up_to_itself(plain: LanguageEncoder, lengths: list[list[int]]) -> None:
    lengths.append([1, 1])  # at least one row is packed
    rows = []
    for of_row in lengths:
        segments = [number for number, length in enumerate(of_row) for _ in range(length)]
        rows.append(Sequence(list(range(5, 5 + len(segments))), [IGNORED] * len(segments), segments))
    batch = plain.collate(rows)
    mask, positions = batch["attention_mask"], batch["position_ids"]
    width = max(len(row.ids) for row in rows)
    assert (mask.dtype, mask.shape) == (np.bool_, (len(rows), 1, width, width))
    assert (positions.dtype, positions.shape) == (np.int64, (len(rows), width))
    for at, row in enumerate(rows):
        for query in range(width):
            seen = np.flatnonzero(mask[at, 0, query]).tolist()
            if query >= len(row.ids):
                assert seen == [query]
                continue
            assert seen == [key for key in range(query + 1) if row.segments[key] == row.segments[query]]
            assert positions[at, query] == len(seen) - 1


def test_settings_come_back_from_json(tokenizer_file: Path) -> None:
    special = {"eos_token": SPECIAL[2], "bos_token": None}
    for kept in (LanguagePreprocess(4, 0), LanguagePreprocess(64, 0, 1, (2, 0), True, CHAT_TEMPLATE, special)):
        assert LanguagePreprocess.from_json(json.loads(json.dumps(kept.to_json()))) == kept
        assert LanguageEncoder(tokenizer_file, kept).settings == kept


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"max_length": 0}, "'max_length' must be a whole number"),
        ({"max_length": True}, "'max_length' must be"),
        ({"pad_token_id": None}, "'pad_token_id' must be a token id"),
        ({"bos_token_id": -1}, "'bos_token_id' must be"),
        ({"eos_token_ids": 3}, "'eos_token_ids' must be token ids"),
        ({"eos_token_ids": ["a"]}, "'eos_token_ids' must be token ids"),
        ({"add_bos": 1}, "'add_bos' must be true or false"),
        ({"add_bos": True, "bos_token_id": None}, "has no 'bos_token_id'"),
        ({"chat_template": 3}, "'chat_template' must be a text"),
        ({"special": ["a"]}, "'special' must be texts by name"),
        ({"special": {"eos_token": 3}}, "'special' must be texts by name"),
        ({"window": 3}, "unknown field 'window'"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_right_are_refused(changed: dict[str, Any], said: str) -> None:
    whole = LanguagePreprocess(64, 0, 1, (2,)).to_json()
    with pytest.raises(BundleError, match=said):
        LanguagePreprocess.from_json({**whole, **changed})


@pytest.mark.parametrize("absent", LanguagePreprocess.__dataclass_fields__)
def test_settings_must_be_complete(absent: str) -> None:
    whole = LanguagePreprocess(64, 0, 1, (2,)).to_json()
    del whole[absent]
    with pytest.raises(BundleError, match=f"lacks '{absent}'"):
        LanguagePreprocess.from_json(whole)
    with pytest.raises(BundleError, match="not an object"):
        LanguagePreprocess.from_json([])


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not a readable tokenizer"):
        LanguageEncoder(tmp_path / "tokenizer.json", LanguagePreprocess(64, 0))


def test_messages_are_pairs_or_objects_with_role_and_content() -> None:
    wanted = Conversation((("user", "a"), ("assistant", "b")))
    assert conversation_of(wanted) is wanted
    assert conversation_of([("user", "a"), ["assistant", "b"]]) == wanted
    assert conversation_of([{"role": "user", "content": "a", "id": 3}, {"role": "assistant", "content": "b"}]) == wanted
    assert str(wanted) == "user: a\nassistant: b"
    for wrong in ([{"from": "human", "value": "a"}], ["user"], [("user", None)], [{"role": "user", "content": ["a"]}]):
        with pytest.raises(DataError, match='message 1 of a conversation must have a "role" and a "content"'):
            conversation_of(wrong)
    for no_list in ("text", {"role": "user"}, 3, None):
        with pytest.raises(DataError, match="must be a list of messages"):
            conversation_of(no_list)  # type: ignore[arg-type]


def test_neither_torch_nor_transformers_is_imported(tokenizer_file: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom finetune.preprocess import *\n"
        "settings = LanguagePreprocess(64, 0, None, (2,), chat_template='{{ messages[0].content }}{{ messages[1].content }}')\n"
        f"encoder = LanguageEncoder(Path({str(tokenizer_file)!r}), settings)\n"
        "encoder(['a', 'b'])\nencoder.chat_ids([('user', 'a'), ('user', 'b')])\n"
        "print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

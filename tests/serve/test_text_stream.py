"""Text as it comes, token by token: no half characters, nothing of a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_language import make_documents, train_tokenizer

from finetune.errors import DataError
from finetune.serve.text_stream import CUT, Detokeniser, StopStrings

TOKENIZER = train_tokenizer(make_documents(40))
WHOLE = st.text(st.characters(codec="utf-8", exclude_characters=CUT), max_size=12)
IDS = st.lists(st.integers(0, TOKENIZER.get_vocab_size() - 1), max_size=24)


def decode(ids) -> str:
    return TOKENIZER.decode(list(ids), skip_special_tokens=True)


def pieces_of(ids, prompt=()) -> list[str]:
    stream = Detokeniser(decode, list(prompt))
    return [*(stream.push(token) for token in ids), stream.flush()]


@given(text=WHOLE)
def test_every_piece_of_a_text_is_whole_characters(text):
    pieces = pieces_of(TOKENIZER.encode(text).ids)
    assert "".join(pieces) == text
    assert all(CUT not in piece for piece in pieces)


@given(ids=IDS, prompt=WHOLE)
def test_any_tokens_give_what_decoding_them_at_once_gives_but_for_an_unfinished_end(ids, prompt):
    assert "".join(pieces_of(ids, TOKENIZER.encode(prompt).ids)) == decode(ids).rstrip(CUT)


def test_a_character_cut_across_tokens_comes_when_it_is_whole_and_not_at_all_if_it_never_is():
    ids = TOKENIZER.encode("🚀").ids
    assert len(ids) == 4
    assert pieces_of(ids) == ["", "", "", "🚀", ""]
    assert pieces_of(ids[:3]) == [""] * 4


def test_a_decoder_that_drops_the_first_blank_keeps_the_one_after_the_prompt():
    words = ["▁One", "▁two", "▁three"]
    stream = Detokeniser(lambda ids: "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" "), [0])
    assert [stream.push(1), stream.push(2), stream.flush()] == [" two", " three", ""]


def fed(stops, pieces) -> tuple[str, bool]:
    stream, said = StopStrings(stops), ""
    for piece in pieces:
        text, met = stream.push(piece)
        said += text
        if met:
            return said, True
    return said + stream.flush(), False


@given(
    pieces=st.lists(st.text("ab\n", max_size=4), max_size=12), stops=st.lists(st.text("ab\n", min_size=1, max_size=4))
)
def test_text_ends_before_the_first_stop_string_however_it_comes_in_pieces(pieces, stops):
    text = "".join(pieces)
    ends = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    wanted = (text[: min(ends)[1]], True) if ends else (text, False)
    assert fed(stops, pieces) == wanted
    assert fed(stops, list(text)) == wanted


def test_only_what_may_begin_a_stop_string_is_held_back():
    stream = StopStrings(["\nUser:"])
    assert stream.push("Hello") == ("Hello", False)
    assert stream.push(" you\nUs") == (" you", False)
    assert stream.push("ual") == ("\nUsual", False)
    assert stream.push("\nUser") == ("", False)
    assert stream.push(": hi") == ("", True)


@pytest.mark.parametrize("stops", [[""], ["a", ""], "text", [3]])
def test_what_is_no_stop_string_is_one_sentence(stops):
    with pytest.raises(DataError, match="none of them empty"):
        StopStrings(stops)

"""Escaping: whatever a label, a path or a description holds, it is shown as it is and breaks nothing."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from finetune.release._markdown import (
    bullets,
    code,
    fenced,
    front_matter,
    interval,
    number,
    one_line,
    share,
    table,
    text,
)

AWKWARD = st.text(
    st.one_of(st.sampled_from("|`*_[]()<>&#~!-+=.:'\"\\$\n\r\t\x00\x85\u2028 {}@1ab"), st.characters(codec=None)),
    max_size=30,
)
PARSER = MarkdownIt("commonmark").enable("table").enable("strikethrough")


def shown(tokens):
    """What a reader sees of inline tokens; fails on anything but plain text and code."""
    parts = []
    for token in tokens:
        assert token.type in ("text", "code_inline"), token.type
        parts.append(token.content)
    return "".join(parts)


@given(AWKWARD)
@example("1. first")
@example("- item")
@example("===")
@example("a\\|b")
@example("&amp; <b>x</b> ![i](javascript:1)")
@example("__init__ snake_case _x_")
@example("\ud800\u2028---\n# no")
@settings(deadline=None, max_examples=300)
def test_text_is_shown_as_it_is_and_starts_no_block(value):
    plain = one_line(value)
    assert "\n" not in plain
    plain.encode("utf-8")
    if not plain:
        return
    tokens = PARSER.parse(text(value))
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    assert shown(tokens[1].children) == plain


@given(st.lists(AWKWARD, min_size=2, max_size=4), st.lists(AWKWARD, min_size=2, max_size=4))
@settings(deadline=None, max_examples=200)
def test_table_cells_hold_any_text(header, row):
    width = min(len(header), len(row))
    header, row = ["Name", *header[: width - 1]], row[:width]
    rendered = table([text(cell) for cell in header], [[text(cell) for cell in row], ["last"] * width])
    cells = [token for token in PARSER.parse(rendered) if token.type == "inline"]
    assert [shown(cell.children) for cell in cells] == [
        one_line(cell) or "–" for cell in [*header, *row, *["last"] * width]
    ]


@given(AWKWARD)
@settings(deadline=None, max_examples=200)
def test_code_spans_hold_any_text(value):
    plain = one_line(value)
    if not plain:
        assert code(value) == "–"
        return
    children = PARSER.parse("x " + code(value))[1].children
    assert [token.content for token in children] == ["x ", plain]
    assert children[1].type == "code_inline"


@given(AWKWARD)
@settings(deadline=None, max_examples=100)
def test_a_list_item_stays_one_item(value):
    tokens = PARSER.parse(bullets([text(value) or "–", "last"]))
    assert sum(token.type == "list_item_open" for token in tokens) == 2
    assert tokens[-1].type == "bullet_list_close"


@given(
    st.dictionaries(
        st.sampled_from(["language", "tags", "x", "y"]),
        st.one_of(AWKWARD, st.lists(AWKWARD, max_size=3), st.integers(), st.booleans()),
    )
)
@example({"x": "---", "y": "no: yes # not a comment"})
@example({"x": "*alias", "y": "&anchor !!python/object:os.system x"})
@settings(deadline=None, max_examples=200)
def test_front_matter_reads_back_as_it_was_written(metadata):
    rendered = front_matter(metadata)
    first, *inner, last = rendered.split("\n")[:-1]
    assert (first, last) == ("---", "---")
    assert "---" not in inner
    expected = {
        key: [one_line(v) for v in value]
        if isinstance(value, list)
        else one_line(value)
        if isinstance(value, str)
        else value
        for key, value in metadata.items()
    }
    assert yaml.safe_load("\n".join(inner)) == expected


@given(st.text(st.sampled_from("`~ab "), max_size=20))
@settings(deadline=None)
def test_a_fence_is_longer_than_what_it_holds(body):
    (token,) = PARSER.parse(fenced("bash", body))
    assert token.type == "fence"
    assert token.content == f"{body}\n"


def test_numbers_say_what_they_are():
    assert number(None) == "–"
    assert number(1780) == "1,780"
    assert number(0.97654) == "0.977"
    assert number(2.1e-5) == "2.1e-05"
    assert number(0.0) == "0.000"
    assert number(math.nan) == number(-math.inf) == "⚠ not finite"
    assert share(0.9921) == "99.2 %"
    assert share(math.nan) == "⚠ not finite"
    assert interval({"value": 0.978, "low": 0.949, "high": 0.99}) == "0.978 (0.949–0.990)"
    assert interval({"value": 0.978, "low": None, "high": None}) == interval(0.978) == "0.978"
    assert interval(None) == "–"


def test_a_table_with_a_missing_cell_is_refused():
    with pytest.raises(ValueError, match="2 cells"):
        table(["a", "b"], [["1"]])

"""How numbers are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.report import units

N = units.NARROW


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (units.percent(0.97753), f"97.8{N}%"),
        (units.percent(1.0), f"100.0{N}%"),
        (units.percent(0.99996), f"99.996{N}%"),
        (units.percent(0.0001), f"0.01{N}%"),
        (units.interval(0.944, 0.988, "accuracy"), f"94.4–98.8{N}%"),
        (units.interval(0.071, 0.149, "loss"), "0.071–0.149"),
        (units.interval(None, None, "accuracy"), ""),
        (units.scientific(2e-4), "2e-4"),
        (units.scientific(2.13e-5), "2.1e-5"),
        (units.significant(0.0001234), "1.2e-4"),
        (units.significant(679.4), "679"),
        (units.significant(7.14), "7.14"),
        (units.significant(3390), "3,390"),
        (units.plain(0.8), "0.8"),
        (units.plain(32), "32"),
        (units.plain(1e-4), "1e-4"),
        (units.size(23_512_004), f"23.5{N}MB"),
        (units.size(999_950), f"1.00{N}MB"),
        (units.size(812), f"812{N}B"),
        (units.size(1.91e9), f"1.91{N}GB"),
        (units.duration(0.001), f"1.0{N}ms"),
        (units.duration(0.4), f"0.4{N}s"),
        (units.duration(59.97), f"1{N}min 00{N}s"),
        (units.duration(252), f"4{N}min 12{N}s"),
        (units.duration(3840), f"1{N}h 04{N}min"),
        (units.times(1.783), "1.8×"),
        (units.points(-0.0046), "−0.5 points"),
        (units.points(0.0), "±0.0 points"),
        (units.points(-0.0002), "±0.0 points"),
        (units.plural(1, "group"), "1 group"),
        (units.plural(2, "process"), "2 processes"),
        (units.moment("2026-11-21T14:03:22Z"), "21 November 2026, 14:03 UTC"),
        (units.moment("yesterday"), "yesterday"),
        (units.shorten("a  long label", 8), "a long…"),
        (units.metric("f1_macro", 0.5), f"50.0{N}%"),
        (units.metric("perplexity", 18.923), "18.9"),
        (units.metric("perplexity", 3.4), "3.400"),
        (units.change(18.9, 24.1), f"−21.6{N}%"),
        (units.change(24.1, 24.1), f"±0.0{N}%"),
        (units.change(2.0, 0.0), units.MISSING),
        (units.change(None, 2.0), units.MISSING),
        (units.difference("perplexity", 19.43, 19.36), f"+0.4{N}%"),
        (units.metric("evaluate:mine", 12345.0), "12,345"),
    ],
)
def test_number_is_written_for_people(written: str, expected: str) -> None:
    assert written == expected


WRITERS = [
    units.percent,
    units.significant,
    units.scientific,
    units.plain,
    units.size,
    units.duration,
    units.times,
    units.points,
    units.count,
]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -float("inf"), "text", True])
def test_what_is_no_number_is_a_dash(write: object, value: object) -> None:
    assert callable(write)
    assert write(value) == units.MISSING


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_no_float_breaks_a_writer(value: float) -> None:
    for write in WRITERS:
        words = write(value)
        assert words
        assert "nan" not in words
        assert "inf" not in words

from __future__ import annotations

import pytest

from finetune.data.labels import look_alikes, resolve_labels
from finetune.errors import DataError


def found(*labels: str) -> dict[str, str]:
    return {label: f"d.csv:{number}" for number, label in enumerate(labels, start=2)}


def test_labels_are_sorted_and_integers_by_value() -> None:
    assert resolve_labels(found("b", "a"), None, None) == (("a", "b"), {"a": 0, "b": 1})
    assert resolve_labels(found("10", "9", "-1"), None, None)[0] == ("-1", "9", "10")
    assert resolve_labels(found("10", "09"), None, None)[0] == ("09", "10")


def test_listed_labels_fix_the_order() -> None:
    assert resolve_labels(found("a", "b"), ("b", "a"), ("a", "b"))[1] == {"b": 0, "a": 1}


def test_integer_labels_index_the_listed_names() -> None:
    assert resolve_labels(found("1", "0"), ("negative", "positive"), None) == (
        ("negative", "positive"),
        {"0": 0, "1": 1},
    )


def test_declared_order_stays_and_loses_what_does_not_occur() -> None:
    assert resolve_labels(found("a", "z"), None, ("z", "m", "a"))[0] == ("z", "a")


@pytest.mark.parametrize(
    ("labels", "listed", "words"),
    [
        (("a",), None, "every row has the label 'a'"),
        (("spam", "ham"), ("spam", "hem"), "d.csv:3: the label 'ham' is not in data.labels; did you mean 'hem'"),
        (("a", "b"), ("a", "b", "c"), "names 'c', but no row"),
        (("0", "1"), ("x", "y", "z"), "names 'z', but no row"),
        (("a", "b"), ("a", "b", "a"), "'a' twice"),
        (("0", "2"), ("x", "y"), "'0' is not in data.labels"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    labels: tuple[str, ...], listed: tuple[str, ...] | None, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        resolve_labels(found(*labels), listed, None)


def test_labels_that_look_alike_are_told() -> None:
    assert len(look_alikes(("Spam", "spam", "ham"))) == 1

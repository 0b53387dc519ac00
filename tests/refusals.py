"""What a refusal of a source must be: a SourceError of one sentence."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from finetune.errors import SourceError


def one_sentence(error: Exception) -> str:
    """The error's text, if it is one line of bearable length."""
    text = str(error)
    assert "\n" not in text
    assert len(text) < 700
    return text


def refused(call: Callable[[], object]) -> str:
    """The sentence with which a call is refused."""
    with pytest.raises(SourceError) as caught:
        call()
    return one_sentence(caught.value)

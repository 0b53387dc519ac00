"""The user's own settings of transformers come back after finetune was quiet."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator

import pytest
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging

from finetune.model.quiet import quiet_transformers

LOGGER = logging.get_logger("transformers")


@pytest.fixture(autouse=True)
def as_found() -> Iterator[None]:
    level, bars, hub = LOGGER.level, logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    yield
    LOGGER.setLevel(level)
    (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
    (disable_progress_bars if hub else enable_progress_bars)()


def state() -> tuple[int, bool, bool]:
    return LOGGER.level, logging.is_progress_bar_enabled(), are_progress_bars_disabled()


@pytest.mark.parametrize("level", [logging.DEBUG, logging.WARNING, logging.CRITICAL])
@pytest.mark.parametrize("bars", [True, False])
@pytest.mark.parametrize("hub_bars", [True, False])
def test_settings_come_back(level: int, bars: bool, hub_bars: bool) -> None:
    LOGGER.setLevel(level)
    (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
    (enable_progress_bars if hub_bars else disable_progress_bars)()
    before = state()
    with quiet_transformers():
        assert LOGGER.level == max(level, logging.ERROR)
        assert not logging.is_progress_bar_enabled()
        with quiet_transformers():
            pass
        assert not logging.is_progress_bar_enabled()
    assert state() == before


def test_settings_come_back_after_an_error() -> None:
    LOGGER.setLevel(logging.INFO)
    logging.enable_progress_bar()
    before = state()
    with pytest.raises(ZeroDivisionError), quiet_transformers():
        raise ZeroDivisionError
    assert state() == before


def test_only_the_warnings_of_transformers_are_silent() -> None:
    def warn_from(module: str) -> None:
        warnings.warn_explicit("look out", FutureWarning, "file.py", 1, module=module)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with quiet_transformers():
            warn_from("transformers.models.bert")
            warn_from("transformers_of_mine")
            warn_from("finetune.model")
        warn_from("transformers")
    assert len(seen) == 3


@pytest.mark.parametrize("decided", [True, False])
def test_nothing_is_warned_about_when_the_environment_decides(monkeypatch: pytest.MonkeyPatch, decided: bool) -> None:
    # The package's attribute of that name is a class, so the module is taken from where Python keeps it.
    monkeypatch.setattr(sys.modules[disable_progress_bars.__module__], "HF_HUB_DISABLE_PROGRESS_BARS", decided)
    before = state()
    with quiet_transformers():
        assert not logging.is_progress_bar_enabled()
    assert state() == before

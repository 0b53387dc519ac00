"""The examples in the docstrings of finetune.transfer are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import finetune.transfer

MODULES = [module.name for module in pkgutil.iter_modules(finetune.transfer.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_hold(name: str) -> None:
    module = importlib.import_module(f"finetune.transfer.{name}")
    assert doctest.testmod(module, raise_on_error=True).failed == 0


def test_there_are_examples_to_run() -> None:
    modules = [importlib.import_module(f"finetune.transfer.{name}") for name in MODULES]
    found = [test for module in modules for test in doctest.DocTestFinder().find(module) if test.examples]
    assert len(found) >= 3

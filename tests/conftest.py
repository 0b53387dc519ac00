"""Fixtures for tests that run the whole pipeline without a network."""

from __future__ import annotations

import os
from pathlib import Path

# Before anything loads torch: tests run in several processes, and small networks gain nothing from more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings
from tiny_project import make_rows, write_backbone, write_csv, write_recipe

# A change must not be refused for an input that chance found in code it did not touch: the same examples every time.
# HYPOTHESIS_PROFILE=explore draws new ones, to look for more.
settings.register_profile("settled", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "settled"))


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("data") / "rows.csv", make_rows(240))


@pytest.fixture
def tiny_recipe(tmp_path: Path, tiny_backbone: Path, tiny_data: Path) -> Path:
    return write_recipe(tmp_path, tiny_backbone, tiny_data)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path, tiny_data: Path) -> Path:
    """A bundle that the pipeline made from the tiny recipe; tests must not change it."""
    from finetune import load_recipe, run

    folder = tmp_path_factory.mktemp("run")
    recipe = load_recipe(write_recipe(folder, tiny_backbone, tiny_data), [f"output={folder / 'bundle'}"])
    return run(recipe).bundle

"""Where a result may go and what may be replaced, said before anything is loaded; and what is left of a stopped run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_project import write_recipe

from finetune.cli import main
from finetune.errors import BundleError, RecipeError
from finetune.preflight import check_place, preflight
from finetune.recipe import load_recipe, training_hash
from finetune.train.checkpoint_files import FORMAT
from finetune.workspace import Workspace


def checked(recipe: Path, *overrides: str, **options: bool) -> None:
    preflight(load_recipe(recipe, overrides), **options)


def leave_a_checkpoint(recipe: Path, *overrides: str, step: int = 1200) -> Path:
    """What a stopped run of a recipe leaves, as far as it is looked at without torch; returns the state folder."""
    written = load_recipe(recipe, overrides)
    state = Workspace.of(written.name, written.output).state
    folder = state / "checkpoints" / "000004"
    folder.mkdir(parents=True)
    (folder / "progress.json").write_text(json.dumps({"global_step": step, "phase": 1}))
    key = {"recipe": training_hash(written)}
    manifest = {"format": FORMAT, "key": key, "recipe": written.model_dump(mode="json"), "files": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return state


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def _precious(folder: Path) -> Path:
    (folder / "precious").mkdir()
    (folder / "precious" / "thesis.txt").write_text("years of work")
    return folder / "precious"


def _link(folder: Path) -> Path:
    (folder / "empty").mkdir()
    (folder / "link").symlink_to(folder / "empty")
    return folder / "link"


def _file(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_precious, "holds files but is no bundle"),
        (_link, "is a link or a file"),
        (_file, "is a link or a file"),
        (lambda _: Path("/"), "is the folder that the command runs in, or holds it"),
        (lambda _: Path(), "is the folder that the command runs in, or holds it"),
        (lambda _: Path(".."), "is the folder that the command runs in, or holds it"),
        (lambda folder: _file(folder) / "bundle", "cannot be written (Not a directory)"),
        (lambda _: Path("a" * 250), "cannot be written (File name too long)"),
        (lambda _: Path("a" * 300), "cannot be written (File name too long)"),
        (lambda _: Path("new") / ("a" * 300) / "bundle", "cannot be written (File name too long)"),
    ],
)
def test_an_output_that_could_not_be_published_is_refused_at_once_and_nothing_is_written(
    make: Any, words: str, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    output, before = f"output={make(tmp_path)}", everything_below(tmp_path)
    monkeypatch.setattr("finetune.pipeline.run", lambda *_, **__: pytest.fail("torch was loaded and a run begun"))
    for command in (["validate"], ["run"], ["run", "--overwrite"]):
        assert main([*command, str(tiny_recipe), output]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
        assert "--overwrite" not in line
    assert everything_below(tmp_path) == before


def test_an_output_that_is_or_holds_or_lies_in_what_is_read_is_refused(
    tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "projects" / "data"
    for label in ("a", "b"):
        (data / label).mkdir(parents=True)
        for number in range(20):
            (data / label / f"{number}.txt").write_text(f"text {number} of {label} with words of its own")
    recipe = write_recipe(tmp_path, tiny_backbone, data)
    # A bundle, so that it may be overwritten for all that its own folder tells.
    (data.parent / "manifest.json").write_text("{}")
    (data / "manifest.json").write_text("{}")
    (tmp_path / "by another name").symlink_to(data)
    for output, words in (
        (data, "is what data.source names"),
        (data.parent, "holds what data.source names"),
        (data / "exports" / "x", "lies inside what data.source names"),
        (tmp_path / "by another name" / "x", "lies inside what data.source names"),
        (tiny_backbone / "x", "lies inside what backbone.name names"),
    ):
        with pytest.raises(BundleError, match=f"{words}, .*; name another folder with output=DIR$"):
            checked(recipe, f"output={output}", overwrite=True)
    checked(recipe, f"output={data.parent / 'x'}")
    # The folder that the command runs in may hold anything, its results as well.
    monkeypatch.chdir(data)
    checked(recipe, "data.source=.", "license.data={id: cc0-1.0, reason: written by me}", "output=exports/x")


def test_checking_a_recipe_writes_nothing(tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = everything_below(tmp_path)
    for output in ("a/b/c", "bundle", str(tmp_path / "d" / "e")):
        assert main(["validate", str(tiny_recipe), f"output={output}"]) == 0
    assert everything_below(tmp_path) == before


def test_a_folder_that_may_not_be_written_is_refused(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.workspace.os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(BundleError, match=r"x/y: cannot be written \(Permission denied\)"):
        checked(tiny_recipe, f"output={tmp_path / 'x' / 'y'}")


def test_an_unfinished_run_is_not_thrown_away_unasked(tiny_recipe: Path, tmp_path: Path) -> None:
    output = f"output={tmp_path / 'b'}"
    state = leave_a_checkpoint(tiny_recipe, output)
    with pytest.raises(
        BundleError,
        match=rf"^{state}: holds an unfinished run, which ended after 1,200 steps, in phase 2; go on with --resume, or "
        "start anew with --overwrite",
    ):
        checked(tiny_recipe, output)
    checked(tiny_recipe, output, resume=True)
    checked(tiny_recipe, output, overwrite=True)
    (state / "checkpoints" / "000004" / "progress.json").write_text("[")
    with pytest.raises(BundleError, match="holds an unfinished run, which ended after steps that its damaged"):
        checked(tiny_recipe, output)


def test_a_run_at_work_is_not_called_unfinished(tiny_recipe: Path, tmp_path: Path) -> None:
    output = f"output={tmp_path / 'b'}"
    leave_a_checkpoint(tiny_recipe, output)
    workspace = Workspace.of("tiny", str(tmp_path / "b"))
    with workspace.locked():
        checked(tiny_recipe, output)
        with pytest.raises(BundleError, match="another run is using this folder"), workspace.locked():
            pass
    with pytest.raises(BundleError, match="holds an unfinished run"):
        checked(tiny_recipe, output)


def test_a_run_that_failed_before_its_first_checkpoint_is_in_nobodys_way(tiny_recipe: Path, tmp_path: Path) -> None:
    workspace = Workspace.of("tiny", str(tmp_path / "b"))
    (workspace.checkpoints / "000000.partial").mkdir(parents=True)
    workspace.history.write_text("")
    checked(tiny_recipe, f"output={tmp_path / 'b'}")


def test_a_changed_recipe_is_told_by_its_keys_before_anything_is_loaded(tiny_recipe: Path, tmp_path: Path) -> None:
    output = f"output={tmp_path / 'b'}"
    leave_a_checkpoint(tiny_recipe, output)

    def told(*overrides: str) -> str:
        with pytest.raises(RecipeError) as caught:
            check_place(load_recipe(tiny_recipe, [output, *overrides]), resume=True, overwrite=False)
        return str(caught.value)

    one = told("seed=77")
    assert "the recipe changed since the checkpoint in" in one
    assert ": seed was 3 and is 77; restore it, or start anew with --overwrite instead of --resume" in one
    many = told(
        "seed=77", "train.batch_size=7", "transfer.decay=0.123", "evaluation.metric=f1_macro", "train.device=cpu",
        "export.int8.mode=off", "transfer.l2sp.alpha=0.5",
    )  # fmt: skip
    assert "transfer.decay was 0.9 and is 0.123" in many
    assert many.count(" was ") == 4  # three keys, and "was written"
    assert ", and 2 more; restore it" in many
    assert "device" not in many
    assert "export" not in many
    # What training does not depend on may change.
    checked(tiny_recipe, output, "export.int8.mode=off", "train.device=cpu", "description=other", resume=True)


def test_a_checkpoint_that_does_not_hold_its_recipe_is_refused_without_keys(tiny_recipe: Path, tmp_path: Path) -> None:
    output = f"output={tmp_path / 'b'}"
    path = leave_a_checkpoint(tiny_recipe, output) / "checkpoints" / "000004" / "manifest.json"
    for recipe in ({}, {"recipe": None}, {"recipe": {"tasks": "old"}}):
        manifest = {key: value for key, value in json.loads(path.read_text()).items() if key != "recipe"}
        path.write_text(json.dumps({**manifest, **recipe}))
        with pytest.raises(RecipeError, match="was written; restore it, or start anew with --overwrite"):
            checked(tiny_recipe, output, "seed=77", resume=True)

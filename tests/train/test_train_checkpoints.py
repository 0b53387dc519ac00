"""A checkpoint exists completely or not at all, and only for the run it was made in."""

from __future__ import annotations

import errno
import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from finetune.errors import BundleError, RecipeError, TrainingError
from finetune.train import checkpoint as module
from finetune.train.checkpoint import Checkpoint, CheckpointFolder, Progress

KEY: dict[str, object] = {"recipe": "r", "data": "d", "number_of_processes": 1}


def checkpoint(step: int = 1, size: int = 8) -> Checkpoint:
    value = float(step)
    return Checkpoint(
        Progress(
            global_step=step, best={"metric": 0.5, "loss": 1.0, "phase": 0, "epoch": 1}, losses=[[0.1 + 0.2, 3.0]]
        ),
        model={"w": torch.full((size,), value), "scalar": torch.tensor(value)},
        optimizer={"w|exp_avg": torch.full((size, 2), value).T, "w|step": torch.tensor(value)},
        best={"w": torch.full((size,), -value, dtype=torch.bfloat16)},
        scaler={"scale": 65536.0},
    )


def folder(path: Path, **changes: object) -> CheckpointFolder:
    return CheckpointFolder(path / "checkpoints", {**KEY, **changes})


def names(path: Path) -> list[str]:
    return sorted(p.name for p in (path / "checkpoints").iterdir())


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    written = checkpoint()
    folder(tmp_path).save(written)
    read = folder(tmp_path).load()
    assert read is not None
    assert read.progress == written.progress
    assert read.scaler == written.scaler
    for part, tensors in written.tensors.items():
        assert read.tensors[part].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(read.tensors[part][name], tensor)
            assert read.tensors[part][name].dtype == tensor.dtype


def test_only_the_newest_is_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        folder(tmp_path).save(checkpoint(step))
        assert len(names(tmp_path)) == 1
    read = folder(tmp_path).load()
    assert read is not None
    assert read.progress.global_step == 3


def test_without_a_checkpoint_there_is_nothing_to_load(tmp_path: Path) -> None:
    assert folder(tmp_path).load() is None
    (tmp_path / "checkpoints").mkdir()
    assert folder(tmp_path).load() is None


def test_no_pickle_is_written(tmp_path: Path) -> None:
    path = folder(tmp_path).save(checkpoint())
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".json"}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"recipe": "other"}, "the recipe changed"),
        ({"data": "other"}, "the data changed"),
        ({"number_of_processes": 2}, "the number of processes changed"),
        ({"backbone": "new"}, "the backbone changed"),
    ],
)
def test_another_runs_checkpoint_is_refused(tmp_path: Path, changed: dict[str, object], sentence: str) -> None:
    folder(tmp_path).save(checkpoint())
    with pytest.raises(
        RecipeError, match=f"^--resume: {sentence} since .* start anew with --overwrite instead of --resume$"
    ):
        folder(tmp_path, **changed).load()


def test_a_further_dependency_becomes_part_of_the_key(tmp_path: Path) -> None:
    folder(tmp_path).depending_on(backbone="a").save(checkpoint())
    assert folder(tmp_path).depending_on(backbone="a").load() is not None
    with pytest.raises(RecipeError, match="the backbone changed"):
        folder(tmp_path).depending_on(backbone="b").load()


def test_another_layout_of_checkpoints_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path).save(checkpoint())
    monkeypatch.setattr(module, "FORMAT", 2)
    with pytest.raises(RecipeError, match="written by another version of finetune; start anew"):
        folder(tmp_path).load()


FILES = ("model.safetensors", "optimizer.safetensors", "best.safetensors", "progress.json", "manifest.json")


DAMAGES = [(name, damage) for name in FILES for damage in ("cut", "flip", "empty", "remove")]


# Without its manifest it is no checkpoint at all, so that one is not removed here.
@pytest.mark.parametrize(("name", "damage"), DAMAGES[:-1])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    path = folder(tmp_path).save(checkpoint()) / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "flip":
        # In a manifest the bit must fall into a hash, not into white space.
        place = content.index(b"progress.json") + 20 if name == "manifest.json" else len(content) // 2
        content[place] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(
        TrainingError,
        match=r"was altered after it was written; remove that folder, or start anew with --overwrite instead of --resume$",
    ):
        folder(tmp_path).load()


@pytest.mark.parametrize("content", ["[]", "3", '{"format": 1}'])
def test_a_manifest_of_another_shape_is_refused(tmp_path: Path, content: str) -> None:
    path = folder(tmp_path).save(checkpoint())
    (path / "manifest.json").write_text(content, encoding="utf-8")
    with pytest.raises(TrainingError, match="was altered"):
        folder(tmp_path).load()


def test_a_file_that_the_manifest_does_not_list_is_no_part_of_it(tmp_path: Path) -> None:
    path = folder(tmp_path).save(checkpoint())
    manifest = json.loads((path / "manifest.json").read_text("utf-8"))
    del manifest["files"]["best.safetensors"]
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(TrainingError, match="was altered"):
        folder(tmp_path).load()


def test_what_a_killed_process_left_is_ignored_and_removed(tmp_path: Path) -> None:
    folder(tmp_path).save(checkpoint(1))
    root = tmp_path / "checkpoints"
    (root / "000007.partial").mkdir()
    (root / "000007.partial" / "model.safetensors").write_bytes(b"half")
    (root / "000009").mkdir()  # half-removed: the manifest goes first
    (root / "000009" / "model.safetensors").write_bytes(b"half")
    read = folder(tmp_path).load()
    assert read is not None
    assert read.progress.global_step == 1
    folder(tmp_path).save(checkpoint(2))
    assert names(tmp_path) == ["000001"]


def test_clearing_removes_them_all(tmp_path: Path) -> None:
    folder(tmp_path).clear()
    folder(tmp_path).save(checkpoint())
    folder(tmp_path).clear()
    assert not (tmp_path / "checkpoints").exists()


@contextmanager
def largest_file(limit_bytes: int) -> Iterator[None]:
    """Let the system refuse to write more than this into one file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def assert_the_former_one_is_whole(tmp_path: Path) -> None:
    assert names(tmp_path) == ["000000"], "nothing half-written stays"
    read = folder(tmp_path).load()
    assert read is not None
    assert read.progress.global_step == 1


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path).save(checkpoint(1))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(BundleError, match=r"^a checkpoint needs \d+ MB at .*, but only 1 MB are free; free some space"):
        folder(tmp_path).save(checkpoint(2))
    assert_the_former_one_is_whole(tmp_path)


def test_a_file_that_the_system_refuses_leaves_the_former_checkpoint(tmp_path: Path) -> None:
    folder(tmp_path).save(checkpoint(1))
    with (
        largest_file(100_000),
        pytest.raises(BundleError, match=r"000001\.partial: cannot be written \(File too large\)"),
    ):
        folder(tmp_path).save(checkpoint(2, size=100_000))
    assert_the_former_one_is_whole(tmp_path)


@pytest.mark.parametrize("stage", ["tensors", "progress", "rename", "sync"])
def test_a_disk_that_fills_up_while_writing_leaves_the_former_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    folder(tmp_path).save(checkpoint(1))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if stage == "tensors":
            patch.setattr("safetensors.torch.save_file", full_in_safetensors)
        elif stage == "progress":
            patch.setattr("os.fsync", full)
        elif stage == "rename":
            patch.setattr(Path, "rename", full)
        else:
            patch.setattr(module, "sync_tree", full)
        with pytest.raises(BundleError, match=r": the disk is full; free some space or name another folder, then run again$"):  # fmt: skip
            folder(tmp_path).save(checkpoint(2))
    assert_the_former_one_is_whole(tmp_path)
    folder(tmp_path).save(checkpoint(2))
    assert names(tmp_path) == ["000001"]


def full_in_safetensors(*_: object, **__: object) -> None:
    from safetensors import SafetensorError

    raise SafetensorError('Error while serializing: I/O error: No space left on device (os error 28) at path "x"')


def test_an_error_of_safetensors_without_a_system_code_keeps_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def strange(*_: object) -> None:
        raise SafetensorError("something strange")

    monkeypatch.setattr("safetensors.torch.save_file", strange)
    with pytest.raises(BundleError, match=r"cannot be written \(something strange\)"):
        folder(tmp_path).save(checkpoint())


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file is in the way", encoding="utf-8")
    with pytest.raises(BundleError, match="cannot be written"):
        folder(tmp_path).save(checkpoint())


def test_a_number_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    folder(tmp_path).save(checkpoint(1))
    bad = Checkpoint(Progress(losses=[[float("nan"), 1.0]]), model={}, optimizer={}, best={})
    with pytest.raises(BundleError, match=r"losses\.0\.0"):
        folder(tmp_path).save(bad)
    assert_the_former_one_is_whole(tmp_path)

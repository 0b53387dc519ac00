"""Batches come in order and with the same bits from any number of processes, which end with the iterator."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

import numpy as np
import psutil
import pytest
import torch

from finetune.errors import DataError, TrainingError
from finetune.preprocess import ImageEncoder, ImageFile, ImagePreprocess
from finetune.recipe import AugmentSettings
from finetune.train.augment import AugmentedImages
from finetune.train.job import Batch, Moment
from finetune.train.loader import Part, batches_ahead


class Numbers:
    """Rows whose pictures are their numbers; `trouble` names a row that does something else instead."""

    def __init__(self, trouble: int | None = None, what: str = "") -> None:
        self.labels, self.lengths = np.arange(100), [1] * 100
        self.trouble, self.what = trouble, what
        self.made = 0

    def batch(self, rows: Sequence[int], moment: Moment) -> Batch:
        self.made += 1
        if self.trouble in rows:
            {"data error": _data_error, "bug": _bug, "death": _death}[self.what]()
        values = np.array(rows, np.float32)[:, None] + moment.cursor / 10
        return {"pixel_values": values, "process": np.full(len(rows), os.getpid())}, self.labels[list(rows)]


def _data_error() -> None:
    raise DataError("rows.csv:7: broken.png: the image is damaged; replace or remove it")


def _bug() -> None:
    raise RuntimeError("a bug of ours")


def _death() -> None:
    os._exit(3)


def parts(count: int = 5) -> list[Part]:
    return [([n, n + 10], Moment(0, 0, 0, n, (n, n + 10))) for n in range(count)]


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("workers", [0, 1, 2, 7])
def test_batches_come_in_order_from_any_number_of_processes(workers: int) -> None:
    before = torch.get_rng_state()
    found = list(batches_ahead(Numbers(), parts(), workers))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(found) == 5
    for number, (inputs, targets) in enumerate(found):
        assert isinstance(targets, np.ndarray)
        assert targets.tolist() == [number, number + 10]
        assert inputs["pixel_values"].dtype == np.float32
        np.testing.assert_allclose(
            inputs["pixel_values"][:, 0], np.array([number, number + 10]) + number / 10, rtol=1e-6
        )
    processes = {int(inputs["process"][0]) for inputs, _ in found}
    assert len(processes) == min(max(workers, 1), 5)
    assert (os.getpid() in processes) == (workers == 0)


def test_augmented_images_are_the_same_from_any_number_of_processes() -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (20, 20, 3), dtype=np.uint8) for _ in range(8)]
    chosen = AugmentSettings(rand_augment=9, random_erasing=0.5, mixup=0.4, cutmix=1.0)
    source = AugmentedImages(images, np.arange(8), ImageEncoder(ImagePreprocess((16, 16), 18)), chosen, 8)
    wanted = [([n, n + 1], Moment(3, 1, 2, n, (n, n + 1, n + 2))) for n in range(4)]
    here, there = (list(batches_ahead(source, wanted, workers)) for workers in (0, 2))
    for (inputs, targets), (other_inputs, other_targets) in zip(here, there, strict=True):
        assert np.array_equal(inputs["pixel_values"], other_inputs["pixel_values"])
        assert np.array_equal(targets, other_targets)


def test_without_workers_batches_are_made_when_they_are_asked_for_and_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_context", lambda *_: pytest.fail("multiprocessing was used"))
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("a process was started"))
    source = Numbers()
    ahead = batches_ahead(source, parts(), 0)
    assert source.made == 0
    next(ahead)
    assert source.made == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_is_asked_of_no_parts(workers: int) -> None:
    assert list(batches_ahead(Numbers(), [], workers)) == []


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_unreadable_image_arrives_as_its_own_sentence_after_the_batches_before_it(workers: int) -> None:
    images = [np.zeros((9, 9, 3), np.uint8), ImageFile("rows.csv:3: broken.png", data=b"nothing")]
    source = AugmentedImages(images, np.arange(2), ImageEncoder(ImagePreprocess((8, 8))), AugmentSettings(), 2)
    ahead = batches_ahead(source, [([0], Moment(0, 0, 0, 0, (0,))), ([1], Moment(0, 0, 0, 1, (1,)))], workers)
    next(ahead)
    with pytest.raises(DataError) as caught:
        next(ahead)
    assert str(caught.value).startswith("rows.csv:3: broken.png: this is no image in a format that can be read (")
    assert "Traceback" not in str(caught.value)
    assert not children()


def test_a_bug_in_a_worker_is_not_taken_for_a_dead_process() -> None:
    with pytest.raises(RuntimeError, match="a bug of ours"):
        list(batches_ahead(Numbers(1, "bug"), parts(), 1))
    assert not children()


def test_a_dead_worker_is_told_in_one_sentence() -> None:
    with pytest.raises(TrainingError, match=r"set train\.workers to 0") as caught:
        list(batches_ahead(Numbers(1, "death"), parts(), 1))
    assert "\n" not in str(caught.value)


def test_processes_end_with_the_iterator() -> None:
    for leave in ("used up", "closed", "forgotten"):
        ahead = batches_ahead(Numbers(), parts(9), 1)
        next(ahead)
        assert len(children()) == 1
        if leave == "used up":
            list(ahead)
        elif leave == "closed":
            with contextlib.closing(ahead):
                pass
        else:
            del ahead
            gc.collect()
        assert not children(), leave


class Slow(Numbers):
    def batch(self, rows: Sequence[int], moment: Moment) -> Batch:
        time.sleep(0.02)
        return super().batch(rows, moment)


def _until_interrupted(pipe: Connection) -> None:
    """What a terminal starts: a process group of its own, in which Ctrl-C raises KeyboardInterrupt."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, _ in enumerate(batches_ahead(Slow(), parts(10_000), 2)):
        if number == 2:
            pipe.send("training")


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_ctrl_c_leaves_no_processes(capfd: pytest.CaptureFixture[str]) -> None:
    """As a terminal sends it: to the whole group at once."""
    ours, theirs = multiprocessing.Pipe()
    trainer = multiprocessing.get_context("fork").Process(target=_until_interrupted, args=(theirs,))
    trainer.start()
    try:
        assert ours.poll(60), "nothing was trained"
        workers = psutil.Process(trainer.pid).children(recursive=True)
        assert len(workers) == 2
        os.killpg(trainer.pid or 0, signal.SIGINT)
        trainer.join(60)
        assert trainer.exitcode
        gone, alive = psutil.wait_procs(workers, timeout=20)
        assert not alive
        assert len(gone) == 2
        assert capfd.readouterr().err.count("KeyboardInterrupt\n") == 1  # the main process's own
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(trainer.pid or 0, signal.SIGKILL)
        trainer.join()

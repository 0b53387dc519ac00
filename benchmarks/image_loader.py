"""Reading images against computing with them: images a second of the loader, of a training step and of an evaluation.

    python benchmarks/image_loader.py                  # ELPV's solar cells of the `demo` extra, about half a minute
    python benchmarks/image_loader.py --images DIR --model resnet18 --size 224 --workers 0 2 4

The network has random weights: speed does not depend on them. Each number is measured with the machine to itself, so
a ratio of r means that reading alone is r times as fast as the step: with 0 workers the two take turns, and reading takes
1/(1 + r) of the time; with workers it runs beside the step, which waits for nothing where r is above 1 and cores are
free. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import timm
import torch

from finetune.hardware import cpu
from finetune.preprocess import ImageEncoder, ImageFile, ImagePreprocess
from finetune.recipe import AugmentSettings
from finetune.sources import find_source
from finetune.train.augment import AugmentedImages
from finetune.train.job import EncodedExamples, Examples, Moment
from finetune.train.loader import batches_ahead

DEFAULT = "package:elpv-dataset/data/images"
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
CLASSES = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--images", default=DEFAULT, help="local folder or package:NAME/path, searched with its folders"
    )
    parser.add_argument("--model", default="tf_efficientnet_lite0", help="a timm architecture")
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels that the network sees")
    parser.add_argument("--batch", type=int, default=32, help="images per step")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="numbers of loader processes")
    parser.add_argument("--seconds", type=float, default=3.0, help="time per number")
    arguments = parser.parse_args()
    folder = find_source(arguments.images, kind="dataset").path
    assert folder is not None, "a folder of this machine has a path"
    images = find_images(folder)
    size, batch = arguments.size, arguments.batch
    settings = ImagePreprocess(crop=(size, size), resize=int(size / 0.875), mean=(0.5,) * 3, std=(0.5,) * 3)
    encoder, labels = ImageEncoder(settings), np.zeros(len(images), np.int64)
    sources: dict[str, Examples] = {
        "read, resize, normalise": EncodedExamples(images, [1] * len(images), labels, encoder.collate),
        "read, augment, normalise": AugmentedImages(images, labels, encoder, AugmentSettings(), CLASSES),
    }
    module = timm.create_model(arguments.model, pretrained=False, num_classes=CLASSES)
    step = rate(itertools.repeat(None), training_step(module, batch, size), batch, arguments.seconds)
    forward = rate(itertools.repeat(None), evaluation(module, batch, size), batch, arguments.seconds)
    print(
        f"{len(images)} images of {arguments.images}, {arguments.model} at {size}×{size}, batches of {batch}; "
        f"{cpu().model}, {cpu().cores} cores, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    print("| | workers | images a second | : training step | : evaluation |")
    print("|---|---|---|---|---|")
    print(f"| training step | | {step:.1f} | 1 | {step / forward:.2f} |")
    print(f"| evaluation forward | | {forward:.1f} | {forward / step:.2f} | 1 |")
    for (name, source), workers in itertools.product(sources.items(), arguments.workers):
        speed = rate(endless(source, batch, workers), lambda _: None, batch, arguments.seconds)
        print(f"| {name} | {workers} | {speed:.1f} | {speed / step:.1f} | {speed / forward:.1f} |", flush=True)


def find_images(folder: Path) -> list[ImageFile]:
    """The images of a folder and its folders, in order of their names."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise SystemExit(f"{folder}: no images ({', '.join(sorted(SUFFIXES))}); give another folder with --images")
    return [ImageFile(str(path), path=path) for path in paths]


def endless(source: Examples, batch: int, workers: int) -> Iterator[object]:
    """Batches of the rows in turn, epoch after epoch."""
    rows = len(source.lengths)
    wanted = [tuple(n % rows for n in range(start, start + batch)) for start in range(0, 1000 * batch, batch)]
    return batches_ahead(source, [(step, Moment(0, 0, 0, n, step)) for n, step in enumerate(wanted)], workers)


def rate(items: Iterator[object], work: Callable[[object], object], batch: int, seconds: float) -> float:
    """Images a second of taking an item and working on it, from the second item on, as the first warms up."""
    work(next(items))
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        work(next(items))
        count += batch
    return count / (time.perf_counter() - began)


def training_step(module: torch.nn.Module, batch: int, size: int) -> Callable[[object], object]:
    """One step of SGD on the whole network."""
    pixels, labels = torch.rand(batch, 3, size, size), torch.randint(CLASSES, (batch,))
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)

    def step(_: object) -> None:
        module.train()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(pixels), labels).backward()
        optimizer.step()

    return step


def evaluation(module: torch.nn.Module, batch: int, size: int) -> Callable[[object], object]:
    """One forward pass without gradients."""
    pixels = torch.rand(batch, 3, size, size)

    def forward(_: object) -> None:
        with torch.inference_mode():
            module.eval()(pixels)

    return forward


if __name__ == "__main__":
    main()

"""Small learnable pictures and small real convolutional networks, for tests that run the whole pipeline without a network."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = 32
CLASSES = ("dots", "rows", "columns")


def make_picture(label: str, rng: np.random.Generator) -> Image.Image:
    """Bright dots, rows or columns on noise; no two pictures are alike."""
    pixels = rng.integers(0, 90, (SIZE + 4, SIZE, 3))
    at = rng.integers(3, SIZE - 6, 4)
    for one, other in zip(at, rng.permutation(at), strict=True):
        where = {
            "dots": (slice(one, one + 3), slice(other, other + 3)),
            "rows": (slice(one, one + 2), slice(None)),
            "columns": (slice(None), slice(one, one + 2)),
        }[label]
        pixels[where] += rng.integers(120, 160, 3)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write_class_folders(folder: Path, count: int, classes: tuple[str, ...] = CLASSES) -> Path:
    """`count` PNG files in all, in a folder per class."""
    rng = np.random.default_rng(5)
    for number in range(count):
        label = classes[number % len(classes)]
        (folder / label).mkdir(parents=True, exist_ok=True)
        make_picture(label, rng).save(folder / label / f"{number:03d}.png")
    return folder


def write_picture_table(folder: Path, count: int) -> Path:
    """A CSV of picture paths with the columns image, bright (a number), rows and columns (0 or 1 each)."""
    rng, lines = np.random.default_rng(6), []
    (folder / "pictures").mkdir(parents=True)
    for number in range(count):
        label = CLASSES[number % 3]
        picture = make_picture(label, rng)
        path = f"pictures/{number:03d}.png"
        picture.save(folder / path)
        bright = float((np.asarray(picture) > 110).mean())
        lines.append((path, f"{bright:.6f}", int(label == "rows"), int(label != "dots")))
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "bright", "striped", "lined"), *lines])
    return folder / "rows.csv"


def write_convnet(folder: Path, architecture: str = "test_resnet", size: int = SIZE) -> Path:
    """A hub-style folder with a small randomly initialised network of timm's, for pictures of size × size."""
    import timm
    import torch
    from timm.models import save_for_hf

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = timm.create_model(architecture, pretrained=False, num_classes=10)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, size, size), "crop_pct": 1.0}
    save_for_hf(model, folder, safe_serialization=True)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A tiny convnet\n", encoding="utf-8")
    return folder


RECIPE = """\
name: tiny_images
task: {task}
seed: 3
backbone: {{name: {backbone}}}
data:
  source: {data}
transfer: {{unfreeze: lp_ft, head_epochs: 1, epochs: 5, learning_rate: 3.0e-3, decay: 0.9}}
train: {{batch_size: 16, augment: {{random_resized_crop: null}}}}
evaluation: {{samples: 4, gradcam: 2}}
export: {{int8: {{max_drop: 0.9, min_agreement: 0.0, calibration_rows: 100}}}}
license:
  use: research
  data: {{id: cc0-1.0, reason: "made up by the test itself"}}
"""


def write_image_recipe(folder: Path, backbone: Path, data: Path, task: str = "image_classification") -> Path:
    """The recipe that the pipeline tests for images start from."""
    path = folder / "images.yaml"
    path.write_text(RECIPE.format(task=task, backbone=backbone, data=data), encoding="utf-8")
    return path

"""Options of the benchmarks that time a training step of convolutional networks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def options(about: str, models: Sequence[str]) -> argparse.Namespace:
    """What the command line says: models, size, batch, steps. `about`: the benchmark's docstring; `models`: its own choice."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(models), help="timm architectures")
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels that the network sees")
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of each form")
    return parser.parse_args()

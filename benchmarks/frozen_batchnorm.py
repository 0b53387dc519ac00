"""A training step with frozen batch normalisation inside its convolutions against the same step layer by layer.

    python benchmarks/frozen_batchnorm.py                  # about two minutes on a CPU
    python benchmarks/frozen_batchnorm.py --models resnet50 --size 224

Both forms of one network take turns, step by step, so that whatever else the machine does hits both alike; the ratio is of
the least times. Weights are random: speed does not depend on them. Pixels lie in memory as training has them
(`train.memory_format: auto`). Prints a Markdown table.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import timm
import torch
from step_options import options
from torch import nn

from finetune.hardware import cpu
from finetune.model.quiet import quiet_transformers
from finetune.train.device import memory_format
from finetune.train.folding import find_pairs, folded

MODELS = ["tf_efficientnet_lite0", "mobilenetv3_small_100", "resnet18", "resnet50"]


class Answering(nn.Module):
    """A timm network that answers as those of transformers do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: torch.Tensor) -> Any:
        """SimpleNamespace(logits (B, C)) of pixel_values (B, 3, H, W)."""
        return SimpleNamespace(logits=self.network(pixel_values))


def main() -> None:
    arguments = options(__doc__, MODELS)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = (
        torch.cuda.get_device_name() if device.type == "cuda" else f"{cpu().model}, {torch.get_num_threads()} threads"
    )
    print(f"{where}, {arguments.batch} images of {arguments.size} px a step\n")
    print("| network | layer by layer, ms | inside convolutions, ms | ratio |\n|---|---|---|---|")
    for name in arguments.models:
        plain, inside = seconds(name, arguments.batch, arguments.size, arguments.steps, device)
        print(f"| {name} | {plain * 1e3:.0f} | {inside * 1e3:.0f} | {plain / inside:.2f} |", flush=True)


def seconds(name: str, batch: int, size: int, steps: int, device: torch.device) -> tuple[float, float]:
    """Least seconds of a forward and backward pass: layer by layer, and with BatchNorm inside the convolutions."""
    with quiet_transformers():
        network = Answering(timm.create_model(name, pretrained=False, num_classes=2)).train().to(device)
    network.to(memory_format=memory_format(network, "auto", device, frozen=True))
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval().requires_grad_(False)
    pixels, labels = (
        torch.randn(batch, 3, size, size, device=device),
        torch.zeros(batch, dtype=torch.long, device=device),
    )
    pairs = find_pairs(network, {"pixel_values": pixels[:1]})
    times: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(steps + 1):
        for inside, taken in times.items():
            with folded(pairs if inside else []):
                began = time.perf_counter()
                nn.functional.cross_entropy(network(pixels).logits, labels).backward()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if turn:  # the first step also sets things up
                    taken.append(time.perf_counter() - began)
            network.zero_grad(set_to_none=True)
    return min(times[False]), min(times[True])


if __name__ == "__main__":
    main()

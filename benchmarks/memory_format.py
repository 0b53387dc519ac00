"""A training step with channels last in memory against the same step with PyTorch's own order, on the CPU.

    python benchmarks/memory_format.py                  # about two minutes
    python benchmarks/memory_format.py --models resnet50 --size 224

Both forms of a network take turns, step by step, so that whatever else the machine does hits both alike; the ratio is of the
least times. Weights are random: speed does not depend on them. Batch normalisation keeps its statistics, as under
`transfer.batchnorm: freeze`, or trains. Prints a Markdown table.
"""

from __future__ import annotations

import time

import timm
import torch
from step_options import options
from torch import nn

from finetune.hardware import cpu
from finetune.model.quiet import quiet_transformers

MODELS = ["tf_efficientnet_lite0", "mobilenetv3_small_100", "resnet18", "convnext_atto"]


def main() -> None:
    arguments = options(__doc__, MODELS)
    print(f"{cpu().model}, {torch.get_num_threads()} threads, {arguments.batch} images of {arguments.size} px a step\n")
    print("| network | batch normalisation | contiguous, ms | channels last, ms | ratio |\n|---|---|---|---|---|")
    for name in arguments.models:
        for trains in (False, True):
            first, last = seconds(name, arguments.batch, arguments.size, arguments.steps, trains=trains)
            kind = "trains" if trains else "frozen"
            print(f"| {name} | {kind} | {first * 1e3:.0f} | {last * 1e3:.0f} | {first / last:.2f} |", flush=True)


def seconds(name: str, batch: int, size: int, steps: int, *, trains: bool) -> tuple[float, float]:
    """Least seconds of a forward and backward pass: contiguous, and channels last."""
    with quiet_transformers():
        networks = [timm.create_model(name, pretrained=False, num_classes=2).train() for _ in range(2)]
    formats = (torch.contiguous_format, torch.channels_last)
    times: list[list[float]] = [[], []]
    pixels, labels = torch.randn(batch, 3, size, size), torch.zeros(batch, dtype=torch.long)
    for network, memory_format in zip(networks, formats, strict=True):
        network.to(memory_format=memory_format)
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d) and not trains:
                part.eval()
    for turn in range(steps + 1):
        for network, taken in zip(networks, times, strict=True):
            began = time.perf_counter()
            nn.functional.cross_entropy(network(pixels), labels).backward()
            if turn:  # the first step also sets things up
                taken.append(time.perf_counter() - began)
            network.zero_grad(set_to_none=True)
    return min(times[0]), min(times[1])


if __name__ == "__main__":
    main()

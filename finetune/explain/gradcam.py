"""Grad-CAM: where in a picture the evidence for an output lies (Selvaraju et al. 2017, arXiv:1610.02391).

It works on any image network that runs as module(pixel_values): convolutional ones in both memory layouts, and
transformers, whose tokens are laid back onto their grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from finetune.model.modes import evaluating

_MOST_PREFIX_TOKENS = 5
"""Class, distillation and register tokens that stand before the patches: one class and four registers at most."""


@dataclass(frozen=True)
class GradCam:
    """A heat map, or the sentence that says why there is none."""

    heat: npt.NDArray[np.float32] | None
    """(h', w') from 0 to 1, on the grid of the layer that was looked at."""
    layer: str
    """Name of that layer inside the network."""
    reason: str
    """Empty if there is a heat map."""


def gradcam(module: nn.Module, pixel_values: npt.NDArray[np.float32] | Tensor, output: int) -> GradCam:
    """Grad-CAM of one picture (1, 3, H, W), normalised as the network wants it, for one of its outputs.

    The layer is the last one in running order that lies on a grid and that the output depends on there: the map before
    pooling in a convolutional network; before the last attention in a transformer that reads its class token only, since
    the patches after it no longer matter. Modes, requires_grad flags and gradients of the network are as before afterwards.
    """
    pixels = torch.as_tensor(pixel_values, dtype=torch.float32)
    height, width = int(pixels.shape[-2]), int(pixels.shape[-1])
    device = next((parameter.device for parameter in module.parameters()), pixels.device)
    with evaluating(module), torch.inference_mode(False), torch.enable_grad():
        # The picture itself asks for gradients, so that a network whose every layer is frozen has a graph too.
        # It is handed over as a copy because nothing may change a leaf in place.
        leaf = pixels.detach().clone().to(device).requires_grad_()
        seen, answer = _run(module, leaf.clone())
        maps = [(name, tensor, grid) for name, tensor in seen if (grid := _grid(tensor, height, width)) is not None]
        if not maps:
            return GradCam(None, "", "No layer of this network gives a map of the picture.")
        # Its stubs do not say that unused tensors get None.
        gradients: Sequence[Tensor | None] = torch.autograd.grad(
            answer[0, output], [tensor for _, tensor, _ in maps], allow_unused=True
        )
    for (name, tensor, grid), gradient in reversed(list(zip(maps, gradients, strict=True))):
        if gradient is None:
            continue
        slopes, values = grid.channels_first(gradient.float()), grid.channels_first(tensor.detach().float())
        if bool((slopes != 0).any()):
            return GradCam(_weigh(values, slopes), name, "")
    return GradCam(None, "", f"Output {output} does not depend on any map of the picture.")


def _weigh(values: Tensor, slopes: Tensor) -> npt.NDArray[np.float32]:
    """ReLU(Σ_c w_c · A_c) with w_c the mean slope of channel c (equations 1 and 2), divided by its greatest value."""
    weights = slopes.mean(dim=(1, 2), keepdim=True)
    heat = torch.relu((weights * values).sum(dim=0)).cpu().numpy().astype(np.float32)
    greatest = float(heat.max())
    # All zero where nothing speaks for the output, which is an answer too.
    return np.asarray(heat / greatest, dtype=np.float32) if greatest > 0 else heat


@dataclass(frozen=True)
class _Grid:
    """How a layer's output lies on the picture."""

    height: int
    width: int
    prefix: int | None
    """Tokens before the patches; None for maps with four axes."""
    channels_last: bool = False

    def channels_first(self, tensor: Tensor) -> Tensor:
        """The map of the one picture in a batch, (C, h', w')."""
        if self.prefix is not None:
            patches = tensor[0, self.prefix :]
            return patches.reshape(self.height, self.width, -1).permute(2, 0, 1)
        return tensor[0].permute(2, 0, 1) if self.channels_last else tensor[0]


def _grid(tensor: Tensor, height: int, width: int) -> _Grid | None:
    """The grid of a layer's output for a picture of height × width, or None if it has none of more than one cell."""
    if tensor.ndim == 4:
        _, a, b, c = tensor.shape
        if _alike(b, c, height, width) and not _attention(tensor):
            return _Grid(b, c, None)
        return _Grid(a, b, None, channels_last=True) if _alike(a, b, height, width) else None
    if tensor.ndim == 3:
        for prefix in range(_MOST_PREFIX_TOKENS + 1):
            rows = round(math.sqrt((tensor.shape[1] - prefix) * height / width)) if tensor.shape[1] > prefix else 0
            columns = (tensor.shape[1] - prefix) // rows if rows else 0
            if rows * columns == tensor.shape[1] - prefix and _alike(rows, columns, height, width):
                return _Grid(rows, columns, prefix)
    return None


def _alike(rows: int, columns: int, height: int, width: int) -> bool:
    """Whether rows × columns is a coarse picture of height × width: more than one cell, and its form but for rounding."""
    if not (rows * columns > 1 and 1 <= rows <= height and 1 <= columns <= width):
        return False
    return abs(rows - columns * height / width) < 1 and abs(columns - rows * width / height) < 1


def _attention(tensor: Tensor) -> bool:
    """Whether a square map (B, heads, N, N) is attention: every row of it is a distribution."""
    if tensor.shape[-1] != tensor.shape[-2]:
        return False
    return bool((tensor >= 0).all()) and bool(torch.allclose(tensor.sum(-1), torch.ones((), device=tensor.device)))


def _run(module: nn.Module, pixels: Tensor) -> tuple[list[tuple[str, Tensor]], Tensor]:
    """Every layer's output that has a gradient, in running order with the layer's name, and the answer (1, C)."""
    seen: list[tuple[str, Tensor]] = []

    def note(name: str) -> Any:
        def hook(_: nn.Module, __: Any, given: Any) -> None:
            seen.extend((name, tensor) for tensor in _tensors(given) if tensor.requires_grad)

        return hook

    # Tokens straight from a linear layer are queries, keys and values, or the hidden layer of an MLP: what a block reads
    # and what it gives are norms and containers.
    watched = [(name, child) for name, child in module.named_modules() if name and not isinstance(child, nn.Linear)]
    handles = [child.register_forward_hook(note(name)) for name, child in watched]
    try:
        given = module(pixels)
    finally:
        for handle in handles:
            handle.remove()
    return seen, getattr(given, "logits", given)


def _tensors(given: Any) -> Iterator[Tensor]:
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, Mapping):
        yield from (value for value in given.values() if isinstance(value, Tensor))
    elif isinstance(given, tuple | list):
        yield from (value for value in given if isinstance(value, Tensor))

"""Pickled weights turned into safetensors, in a process of their own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from finetune.errors import SourceError
from finetune.model_files import MODEL_FILES, PICKLE_FILES

# The child runs this and nothing of this package, so what a pickle might do happens where nothing else is.
# weights_only admits tensors and plain containers, no code. Tied tensors are cloned, because safetensors holds no aliases.
# A training checkpoint holds the weights one level down, beside the optimizer's. safetensors sorts its tensors, so their order
# is kept in the metadata.
_PROGRAM = """
import json, os, pathlib, sys
import torch
from safetensors.torch import save_file

out, *parts = map(pathlib.Path, sys.argv[1:])
tensors = {}
try:
    for part in parts:
        content = torch.load(part, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise TypeError(f"{part.name} holds a {type(content).__name__}, not named tensors")
        inner = [v for v in content.values() if isinstance(v, dict) and any(isinstance(t, torch.Tensor) for t in v.values())]
        if len(inner) == 1 and not any(isinstance(v, torch.Tensor) for v in content.values()):
            content = inner[0]
        tensors.update({k: v.contiguous().clone() for k, v in content.items() if isinstance(v, torch.Tensor)})
    if not tensors:
        raise TypeError("there are no tensors in it")
    partial = out.with_name(f"{out.name}.{os.getpid()}")
    save_file(tensors, partial, metadata={"format": "pt", "order": json.dumps(list(tensors))})
    partial.replace(out)
except Exception as error:
    print(json.dumps(str(error)))
    sys.exit(1)
"""


def convert_pickle(folder: Path, into: Path) -> Path:
    """Copy a model folder with its pickled weights turned into safetensors; returns `into`.

    SourceError when the pickle holds anything but tensors and plain containers, or cannot be read.
    """
    into.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        wanted = any(fnmatch(path.name, pattern) for pattern in MODEL_FILES) and path.suffix != ".safetensors"
        if path.is_file() and wanted and path.name != "pytorch_model.bin.index.json":
            shutil.copyfile(path, into / path.name)
    parts = sorted(path for pattern in PICKLE_FILES for path in folder.glob(pattern))
    convert_weights(str(folder), parts, into / "model.safetensors")
    return into


def convert_weights(name: str, parts: Sequence[Path], out: Path) -> None:
    """Write the tensors of pickles into one safetensors file, whose metadata keep their `order` as a JSON list of names.

    SourceError, about the backbone `name`, as `convert_pickle` says.
    """
    command = [sys.executable, "-I", "-c", _PROGRAM, str(out), *map(str, parts)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SourceError(
            f"backbone '{name}': its pickle does not load safely ({_reason(done.stdout)}); choose a checkpoint with safetensors"
        )


def _reason(printed: str) -> str:
    """The part of torch's explanation that says what is wrong, without its advice to load the file all the same."""
    explanation: str = json.loads(printed.splitlines()[-1]) if printed else ""
    lines = [line.strip() for line in explanation.splitlines() if line.strip()]
    if not lines:
        return "the file is cut short"
    telling = next((line for line in lines if "nsupported" in line), lines[0])
    return telling.rpartition("error: ")[2].partition(" Please use ")[0][:300]

"""Pickled weights turned into safetensors, in a process of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

from finetune.errors import SourceError
from finetune.model_files import MODEL_FILES, PICKLE_FILES

# The child runs this and nothing of this package, so what a pickle might do happens where nothing else is.
# weights_only admits tensors and plain containers, no code. Tied tensors are cloned, because safetensors holds no aliases.
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
        tensors.update({k: v.contiguous().clone() for k, v in content.items() if isinstance(v, torch.Tensor)})
    if not tensors:
        raise TypeError("there are no tensors in it")
    partial = out.with_name(f"{out.name}.{os.getpid()}")
    save_file(tensors, partial, metadata={"format": "pt"})
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
    command = [sys.executable, "-I", "-c", _PROGRAM, str(into / "model.safetensors"), *map(str, parts)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SourceError(
            f"backbone '{folder}': its pickle does not load safely ({_reason(done.stdout)}); choose a checkpoint with safetensors"
        )
    return into


def _reason(printed: str) -> str:
    """The part of torch's explanation that says what is wrong, without its advice to load the file all the same."""
    explanation: str = json.loads(printed.splitlines()[-1]) if printed else ""
    lines = [line.strip() for line in explanation.splitlines() if line.strip()]
    if not lines:
        return "the file is cut short"
    telling = next((line for line in lines if "nsupported" in line), lines[0])
    return telling.rpartition("error: ")[2].partition(" Please use ")[0][:300]

"""What a result was made with: versions, machine, commit. Imports none of the libraries that it names."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime

from finetune.hardware import cpu, peak_memory_bytes

PACKAGES = (
    "finetune-recipes", "torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors",
    "onnx", "onnxruntime", "onnxscript", "numpy", "scikit-learn", "peft", "timm", "bitsandbytes", "evaluate",
)  # fmt: skip


def package_versions() -> dict[str, str]:
    """Versions of the packages that shape a result, as far as they are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Commit of the working folder's repository, with `-dirty` if it has changes; None outside of one."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def describe_environment(device: str, processes: int) -> dict[str, object]:
    """report["environment"]."""
    machine = cpu()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "processes": processes,
        "cpu": {"model": machine.model, "cores": machine.cores, "flags": list(machine.flags)},
        "packages": package_versions(),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def command_line() -> str:
    """The command as typed, without the interpreter's path."""
    program = sys.argv[0].rsplit("/", 1)[-1]
    return shlex.join(["finetune" if program in {"finetune", "__main__.py"} else program, *sys.argv[1:]])


def now() -> str:
    """Time in UTC, ISO 8601, whole seconds."""
    return datetime.now(UTC).replace(microsecond=0).isoformat()

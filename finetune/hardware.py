"""What this process may use of the machine: processor, cores, memory. Standard library and psutil only.

Containers are given shares of a machine, so cores and memory are the smallest of what the hardware has, what the
process is pinned to, and what its control groups (v1 or v2, and every parent group) allow.
"""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

RELEVANT_FLAGS = (
    "avx",
    "avx2",
    "fma",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
INT8_TARGETS = ("avx2", "avx512", "vnni", "amx", "arm64")

_NO_LIMIT = 1 << 60  # cgroup v1 writes about 2**63 where there is no memory limit


@dataclass(frozen=True)
class CPU:
    """The processor as this process sees it."""

    model: str
    """Name that the processor gives itself."""
    cores: int
    """Cores this process may keep busy: affinity and control-group quota taken into account."""
    flags: tuple[str, ...]
    """The instruction sets that matter for inference and training, in the order of `RELEVANT_FLAGS`."""


@cache
def cpu() -> CPU:
    """The processor's name, the cores that this process may use, and its relevant instruction sets."""
    model, found = _describe(_read(Path("/proc/cpuinfo")))
    if not found and sys.platform == "darwin":
        model, found = _describe_mac()
    if not found and platform.machine().lower() in ("arm64", "aarch64"):
        found = {"asimd"}  # part of the base instruction set
    flags = tuple(flag for flag in RELEVANT_FLAGS if flag in found)
    return CPU(model or platform.processor() or platform.machine(), usable_cores(), flags)


def int8_target(flags: Collection[str]) -> str:
    """The kind of int8 arithmetic that a processor with these flags has; "avx2" for x86 of any older sort."""
    if "amx_int8" in flags:
        return "amx"
    if "avx512_vnni" in flags or "avx_vnni" in flags:
        return "vnni"
    if "avx512f" in flags:
        return "avx512"
    if "asimd" in flags or "asimddp" in flags:
        return "arm64"
    return "avx2"


def usable_cores(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores this process may keep busy, at least 1; a quota of 1.5 cores counts as 2."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _group_folders("cpu", proc, root):
        for quota, period in (_pair(folder / "cpu.max"), _v1_quota(folder)):
            if quota > 0 and period > 0:
                cores = min(cores, math.ceil(quota / period))
    return max(1, cores)


def memory_total_bytes(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory this process may use: the machine's, or a control group's limit where that is lower."""
    total = int(psutil.virtual_memory().total)
    for folder in _group_folders("memory", proc, root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _integer(_read(folder / name))
            if 0 < limit < _NO_LIMIT:
                total = min(total, limit)
    return total


def available_memory(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that this process could still take: the machine's, or what its control groups leave if that is less.

    A group is charged for the files that its processes read as well; those that the system would drop count as free.
    """
    free = int(psutil.virtual_memory().available)
    for folder in _group_folders("memory", proc, root):
        for most, taken, droppable in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _integer(_read(folder / most)), _integer(_read(folder / taken))
            if 0 < limit < _NO_LIMIT and used >= 0:
                free = min(free, limit - used + _counter(folder / "memory.stat", droppable))
    return max(0, free)


def peak_memory_bytes() -> int:
    """Largest resident memory so far, in bytes: of this process, or of a finished child where that was larger."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # absent on Windows

    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return int(peak) * (1 if sys.platform == "darwin" else 1024)  # Linux counts in KiB, macOS in bytes


def _describe(cpuinfo: str) -> tuple[str, set[str]]:
    """Name and flags from the text of /proc/cpuinfo; Arm calls its flags "Features" and often gives no name."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    flags = fields.get("flags") or fields.get("features") or ""
    return fields.get("model name", ""), set(flags.split())


def _describe_mac() -> tuple[str, set[str]]:
    """Name and flags from sysctl, spelt as Linux spells them."""
    keys = (
        "machdep.cpu.brand_string",
        "machdep.cpu.features",
        "machdep.cpu.leaf7_features",
        "hw.optional.arm.FEAT_DotProd",
    )
    name, features, leaf7, dot_product = (_sysctl(key) for key in keys)
    found = {flag.lower().replace("avx1.0", "avx") for flag in f"{features} {leaf7}".split()}
    if platform.machine() == "arm64":
        found |= {"asimd"} | ({"asimddp"} if dot_product == "1" else set())
    return name, found


def _sysctl(key: str) -> str:
    done = subprocess.run(["/usr/sbin/sysctl", "-n", key], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""  # keys differ between Intel and Apple processors


def _group_folders(controller: str, proc: Path, root: Path) -> Iterator[Path]:
    """This process's folder in each control-group hierarchy that rules `controller`, then every parent's."""
    for line in _read(proc).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controllers if controllers else root  # v2 has one tree and names no controllers
        folder = top / group.lstrip("/")
        while True:
            yield folder
            if folder == top or top not in folder.parents:
                break
            folder = folder.parent
        if controllers != controller:
            yield root / controller  # v1 mounts "cpu,cpuacct" under either name; inside containers at its top


def _v1_quota(folder: Path) -> tuple[int, int]:
    return _integer(_read(folder / "cpu.cfs_quota_us")), _integer(_read(folder / "cpu.cfs_period_us"))


def _pair(path: Path) -> tuple[int, int]:
    """cpu.max holds "quota period" in microseconds, or "max period"."""
    words = _read(path).split()
    return (_integer(words[0]), _integer(words[1])) if len(words) == 2 else (-1, -1)


def _counter(path: Path, name: str) -> int:
    """The value of one line "name value" of a system file; 0 where there is none."""
    lines = (line.split() for line in _read(path).splitlines())
    return next((int(words[1]) for words in lines if words[:1] == [name] and words[1:2] and words[1].isdigit()), 0)


def _integer(text: str) -> int:
    """The number in `text`; -1, which stands for no limit, for "max" and for nothing."""
    text = text.strip()
    return int(text) if text.isdigit() else -1


def _read(path: Path) -> str:
    """The text of a system file; empty where the system has no such file or does not show it to this process."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

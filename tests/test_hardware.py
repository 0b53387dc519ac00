import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune import hardware

X86 = """processor\t: 0
model name\t: Some Processor 9000
flags\t\t: fpu sse2 avx avx2 fma avx512f avx512_vnni avx512_bf16
processor\t: 1
model name\t: Some Processor 9000
flags\t\t: fpu
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd evtstrm asimddp i8mm bf16 sve\n"


@pytest.fixture
def groups(tmp_path: Path):
    """A made-up /proc/self/cgroup and its tree; returns a writer and the two paths."""
    proc, root = tmp_path / "cgroup", tmp_path / "fs"
    root.mkdir()

    def write(text: str, files: dict[str, str]) -> tuple[Path, Path]:
        proc.write_text(text)
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content)
        return proc, root

    return write


@pytest.fixture
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


@pytest.mark.parametrize(
    ("flags", "target"),
    [
        (("avx", "avx2", "avx512f", "avx512_vnni", "amx_int8"), "amx"),
        (("avx2", "avx512f", "avx512_vnni"), "vnni"),
        (("avx2", "avx_vnni"), "vnni"),
        (("avx2", "avx512f"), "avx512"),
        (("avx2",), "avx2"),
        ((), "avx2"),
        (("asimd",), "arm64"),
        (("asimd", "asimddp", "i8mm"), "arm64"),
    ],
)
def test_int8_target_names_the_best_arithmetic_the_flags_allow(flags: tuple[str, ...], target: str) -> None:
    assert hardware.int8_target(flags) == target


@given(st.sets(st.sampled_from(hardware.RELEVANT_FLAGS)))
def test_int8_target_is_always_a_known_one(flags: set[str]) -> None:
    assert hardware.int8_target(flags) in hardware.INT8_TARGETS


def test_cpuinfo_of_x86_gives_name_and_flags_of_the_first_core() -> None:
    name, flags = hardware._describe(X86)
    assert name == "Some Processor 9000"
    assert {"avx2", "avx512_vnni", "avx512_bf16"} <= flags


def test_cpuinfo_of_arm_gives_features_as_flags() -> None:
    name, flags = hardware._describe(ARM)
    assert name == ""
    assert {"asimddp", "i8mm", "bf16"} <= flags


def test_cpu_describes_this_machine() -> None:
    found = hardware.cpu()
    assert found.model
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert set(found.flags) <= set(hardware.RELEVANT_FLAGS)
    assert list(found.flags) == sorted(found.flags, key=hardware.RELEVANT_FLAGS.index)


def test_quota_of_version_2_groups_limits_cores_and_rounds_up(groups, sixteen_cores: None) -> None:
    assert hardware.usable_cores(*groups("0::/job\n", {"job/cpu.max": "250000 100000\n"})) == 3


def test_quota_of_a_parent_group_counts(groups, sixteen_cores: None) -> None:
    files = {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}
    assert hardware.usable_cores(*groups("0::/a/b\n", files)) == 2


def test_quota_of_version_1_groups_limits_cores(groups, sixteen_cores: None) -> None:
    files = {"cpu,cpuacct/box/cpu.cfs_quota_us": "400000", "cpu,cpuacct/box/cpu.cfs_period_us": "100000"}
    assert hardware.usable_cores(*groups("4:cpu,cpuacct:/box\n3:memory:/box\n", files)) == 4


def test_quota_of_version_1_is_found_at_the_top_inside_a_container(groups, sixteen_cores: None) -> None:
    files = {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}
    assert hardware.usable_cores(*groups("4:cpu,cpuacct:/docker/0123\n", files)) == 1


def test_no_quota_leaves_the_cores_the_process_is_pinned_to(groups, sixteen_cores: None) -> None:
    files = {"cpu.max": "max 100000", "cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}
    assert hardware.usable_cores(*groups("4:cpu:/\n0::/\n", files)) == 16
    assert hardware.usable_cores(Path("/nowhere"), Path("/nowhere")) == 16


def test_a_quota_below_one_core_still_gives_one(groups, sixteen_cores: None) -> None:
    assert hardware.usable_cores(*groups("0::/\n", {"cpu.max": "20000 100000"})) == 1


@pytest.mark.parametrize(
    ("text", "files"),
    [
        ("0::/job\n", {"job/memory.max": "1048576\n"}),
        ("0::/job/inner\n", {"job/memory.max": "1048576\n", "job/inner/memory.max": "max\n"}),
        ("4:memory:/job\n", {"memory/job/memory.limit_in_bytes": "1048576"}),
    ],
)
def test_memory_is_limited_by_the_control_group(groups, text: str, files: dict[str, str]) -> None:
    assert hardware.memory_total_bytes(*groups(text, files)) == 1048576


def test_memory_without_a_limit_is_the_machines(groups) -> None:
    files = {"memory/job/memory.limit_in_bytes": str(2**63 - 4096)}
    assert hardware.memory_total_bytes(*groups("4:memory:/job\n", files)) == psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("text", "files", "free"),
    [
        ("0::/job\n", {"job/memory.max": "5000\n", "job/memory.current": "3000\n"}, 2000),
        (
            "0::/job/inner\n",
            {
                "job/memory.max": "5000", "job/memory.current": "4500",
                "job/memory.stat": "anon 9\ninactive_file 1500\nactive_file 7\n",
                "job/inner/memory.max": "max", "job/inner/memory.current": "4000",
            },
            2000,
        ),
        (
            "4:memory:/job\n",
            {
                "memory/job/memory.limit_in_bytes": "5000", "memory/job/memory.usage_in_bytes": "3000",
                "memory/job/memory.stat": "inactive_file 1\ntotal_inactive_file 500\n",
            },
            2500,
        ),
        ("0::/job\n", {"job/memory.max": "5000", "job/memory.current": "5100"}, 0),
    ],
)  # fmt: skip
def test_what_control_groups_leave_is_available(groups, text: str, files: dict[str, str], free: int) -> None:
    assert hardware.available_memory(*groups(text, files)) == free


def test_without_a_limit_what_the_machine_has_free_is_available(groups) -> None:
    files = {"memory/job/memory.limit_in_bytes": str(2**63 - 4096), "memory/job/memory.usage_in_bytes": "3000"}
    found = hardware.available_memory(*groups("4:memory:/job\n", files))
    assert found == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    assert 0 < hardware.available_memory() <= psutil.virtual_memory().total


def test_peak_memory_counts_a_finished_child() -> None:
    size = hardware.peak_memory_bytes() + 96 * 2**20
    subprocess.run([sys.executable, "-c", f"bytearray({size})"], check=True)
    assert hardware.peak_memory_bytes() >= size

"""``hal slice``: made by hand, held by the guard, by the driver and by the kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hal_native import guard_library

ALLOCATE = str(guard_library().parent / "programs" / "hal-allocate")
GIB = 1 << 30

MACHINE = """
schema = "hal.machine/1"
description = "one card of each vendor, with a driver that knows memory limits"

[drivers]
nvidia_driver = "615.10"
nvml_version = "13.615.10"
cuda_version = 13000
amd_driver = "6.14.14"
amdsmi_major = 26
amdsmi_minor = 1
amdsmi_release = 0
hip_version = 70051831

[[devices]]
model = "h100-sxm-80gb"
pci = "0000:19:00.0"
numa_node = 0

[[devices]]
model = "mi300x"
pci = "0000:9b:00.0"
numa_node = 0
"""


@pytest.fixture
def cgroups(tmp_path: Path) -> Path:
    """A root of control groups that is only files: what is written there can be read."""
    root = tmp_path / "cgroup"
    root.mkdir()
    (root / "cgroup.controllers").write_text("cpu memory dmem\n")
    (root / "cgroup.subtree_control").write_text("")
    (root / "dmem.capacity").write_text(f"drm/0000:9b:00.0/vram0 {192 * GIB}\n")
    return root


class Shell:
    """Commands on one emulated machine, each with what it printed."""

    def __init__(self, directory: Path, machine: str, **environ: str) -> None:
        self.directory, self.machine = directory, machine
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environ = {**os.environ, "PATH": path, **environ}

    def __call__(self, script: str) -> list[str]:
        done = subprocess.run(
            ["hal", "emulate", self.machine, "--", "sh", "-c", script],
            env=self.environ, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        return (done.stdout + done.stderr).splitlines()


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path, "mixed", HAL_CGROUP_ROOT=str(tmp_path / "none"))


@pytest.fixture
def held(tmp_path: Path, cgroups: Path) -> Shell:
    (tmp_path / "machine.toml").write_text(MACHINE)
    return Shell(tmp_path, str(tmp_path / "machine.toml"), HAL_CGROUP_ROOT=str(cgroups))


def granted(lines: list[str]) -> int:
    """MiB that a `fill` got."""
    (line,) = (line for line in lines if line.startswith("refused bytes"))
    return int(dict(word.split("=") for word in line.split()[1:])["held"]) >> 20


@pytest.mark.parametrize(("device", "runtime"), [("GPU-6a77", "cuda"), ("9b:00.0", "hip")])
def test_any_program_can_be_put_under_a_slice(shell: Shell, device: str, runtime: str) -> None:
    lines = shell(
        f"hal slice create --device {device} --memory 2GiB --name dev; "
        f"env $(hal slice env dev) {ALLOCATE} {runtime} 'fill 128' info"
    )
    assert granted(lines) == 2048
    assert any("slice dev: refused 0.12 GiB" in line for line in lines)


def test_a_slice_is_resized_paused_and_destroyed_while_a_program_is_in_it(shell: Shell) -> None:
    lines = shell(
        "hal slice create --device GPU-6a77 --memory 1GiB --name dev >/dev/null 2>&1; mkfifo in; "
        f"env $(hal slice env dev) {ALLOCATE} cuda <in >out 2>err & exec 3>in; echo 'fill 256' >&3; "
        "while ! grep -q refused out; do sleep 0.05; done; "
        "hal slice resize dev --memory 512MiB 2>&1 >/dev/null; hal slice show dev; hal slice destroy dev; "
        "hal slice resize dev --memory 3GiB >/dev/null; echo 'fill 256' >&3; "
        "while [ $(grep -c refused out) -lt 2 ]; do sleep 0.05; done; "
        "hal slice pause dev >/dev/null; echo 'free' >&3; echo 'alloc 256' >&3; sleep 0.5; "
        "echo paused: $(grep -c allocated out); hal slice resume dev >/dev/null; "
        "while ! grep -q allocated out; do sleep 0.05; done; echo resumed; "
        "hal slice destroy dev --force; wait; hal slice list --all; rm -f in out err"
    )
    text = "\n".join(lines)
    assert "hal: it uses 512.0 MiB more than that; it gets nothing more until it has freed so much" in text
    assert "over its limit  by 512.0 MiB" in text
    assert "1 processes are in the slice 'dev'" in text
    assert "paused: 0" in text and "resumed" in text
    assert "the slice dev is gone" in text and "Nothing is claimed on this node." in text


def test_what_cannot_be_had_is_refused_in_one_sentence(shell: Shell) -> None:
    lines = shell(
        "hal slice create --device GPU-6a77 --memory 8GiB --compute 60% --name a >/dev/null 2>&1; "
        "hal slice create --device GPU-6a77 --memory 1GiB --compute 50%; echo $?; "
        "hal slice create --device GPU-6a77 --memory 80GiB; echo $?; "
        "hal slice create --device GPU-6a77 --memory 1GiB --name a; echo $?; "
        "hal slice create --device nothing --memory 1GiB; echo $?; "
        "hal slice create --device cpu:host --memory 1GiB; echo $?; "
        "hal slice create --device GPU-6a77 --memory 1GiB --compute 200%; echo $?; "
        "hal slice create --device GPU-6a77 --memory 1GiB --compute 10% --spatial; echo $?; "
        "hal slice show nosuch; echo $?; hal slice resize a; echo $?; hal slice run a; echo $?"
    )
    assert [line for line in lines if line.isdigit()] == ["4", "5", "6", "3", "5", "2", "5", "3", "2", "2"]
    assert sum(line.startswith("hal: ") for line in lines) == 10


def test_a_part_of_the_compute_units_is_a_mask_and_no_share_of_time(shell: Shell) -> None:
    lines = shell(
        "for n in a b; do hal slice create --device 9b:00.0 --memory 1GiB --compute 25% --spatial --name $n; "
        "hal slice env $n | grep CU_MASK; done >&1 2>/dev/null; hal slice show a; "
        "hal slice resize a --compute 30%"
    )
    assert [line for line in lines if "CU_MASK" in line] == ["HSA_CU_MASK=0:0-71", "HSA_CU_MASK=0:72-151"]
    assert any("memory: guard, time: runtime" in line for line in lines)
    assert any("cannot be changed" in line for line in lines)


def test_the_driver_holds_a_program_that_left_the_guard(held: Shell, cgroups: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("the driver sets limits for root only")
    lines = held(
        "hal slice create --device GPU- --memory 2GiB --name dev; hal slice show dev; "
        f"hal slice run dev -- env -u LD_PRELOAD -u HAL_SLICE {ALLOCATE} cuda 'fill 128'; "
        "hal slice destroy dev"
    )
    assert any("memory: driver" in line for line in lines)
    assert granted(lines) == 2048
    assert list((cgroups / "hal").iterdir()) == [] or not (cgroups / "hal" / "cgroup.procs").exists()


def test_the_kernel_is_told_where_the_driver_has_no_limits(held: Shell, cgroups: Path) -> None:
    lines = held(
        "hal slice create --device amd: --memory 3GiB --name dev; hal slice show dev; "
        "cat $HAL_CGROUP_ROOT/hal/*/dmem.max; "
        "hal slice resize dev --memory 5GiB >/dev/null; cat $HAL_CGROUP_ROOT/hal/*/dmem.max"
    )
    assert any("memory: kernel" in line for line in lines)
    limits = [line for line in lines if line.startswith("drm/0000:9b:00.0/vram0 ")]
    assert [int(line.split()[1]) for line in limits] == [3 * GIB, 3 * GIB, 5 * GIB]  # a file keeps all


def test_a_program_without_the_guard_is_told_of(shell: Shell) -> None:
    lines = shell(
        "hal slice create --device GPU-6a77 --memory 1GiB --name dev 2>/dev/null; "
        f"sleep 2 | hal slice run dev -- env -u LD_PRELOAD {ALLOCATE} cuda 'alloc 1' wait"
    )
    assert any("hal-allocate (process " in line and "is not held by the guard" in line for line in lines)


def test_lists_are_json_for_programs(shell: Shell) -> None:
    lines = shell("hal slice create --device GPU-6a77 --memory 1GiB --compute 30% --name dev --json")
    made = json.loads("\n".join(line for line in lines if not line.startswith("hal:")))
    assert made["schema"] == "hal.slices/1"
    assert made["slices"][0]["compute_ratio"] == 0.3

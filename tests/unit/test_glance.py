"""The first look: never "absent" where a worker would have found something, and nothing is loaded for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hal_amd
import hal_null
import hal_nvidia
from hal.backend import loader
from hal.model import ProbeState

MISSING = "libhal-no-such-library.so"
BACKENDS = {"libnvidia-ml.so.1": hal_nvidia.Backend, "libamd_smi.so": hal_amd.Backend}
each_library = pytest.mark.parametrize("library", BACKENDS)


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """Nothing of this process's own: other tests load the libraries."""
    for name in ("LD_LIBRARY_PATH", "LD_PRELOAD", "LD_AUDIT", "ROCM_HOME", "ROCM_PATH", "HAL_NULL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(loader, "_in_this_process", lambda library: False)


def put(file: Path, text: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@each_library
def test_nothing_is_said_as_the_worker_says_it(tmp_path, library):
    seen = BACKENDS[library].glance(str(tmp_path))
    assert seen.state is ProbeState.ABSENT
    probe = BACKENDS[library](root=str(tmp_path), library=MISSING).probe()
    assert (seen.reason.replace(library, MISSING), seen.fix) == (probe.reason, probe.fix)


@each_library
@pytest.mark.parametrize("folder", ["here", "here/glibc-hwcaps/x86-64-v3"])
def test_a_library_that_only_ld_library_path_has(tmp_path, monkeypatch, library, folder):
    put(tmp_path / folder / library)
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{tmp_path}/here")
    assert BACKENDS[library].glance(f"{tmp_path}/root") is None


@each_library
@pytest.mark.parametrize("path", ["$ORIGIN/../lib", ":/nowhere", "{}/old"])
def test_an_ld_library_path_that_is_not_what_it_looks_like(tmp_path, monkeypatch, library, path):
    put(tmp_path / library)  # the current directory, which an empty entry stands for
    put(tmp_path / "old/haswell/x86_64/of-some-kind")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LD_LIBRARY_PATH", path.format(tmp_path))
    assert BACKENDS[library].glance(f"{tmp_path}/root") is None


@each_library
@pytest.mark.parametrize(
    "folder",
    ["lib", "usr/lib", "usr/lib64", "lib64", "usr/lib/x86_64-linux-gnu", "usr/lib64/glibc-hwcaps/x86-64-v2"],
)
def test_a_library_that_only_a_default_directory_has(tmp_path, library, folder):
    put(tmp_path / folder / library)
    assert BACKENDS[library].glance(str(tmp_path)) is None


@each_library
def test_a_library_that_only_the_loaders_cache_knows(tmp_path, library):
    put(tmp_path / "etc/ld.so.cache", f"ld.so-1.7.0\0{library}.old\0/usr/lib/other.so\0")
    assert BACKENDS[library].glance(str(tmp_path)) is not None
    put(tmp_path / "etc/ld.so.cache", f"ld.so-1.7.0\0{library}\0/opt/vendor/lib/{library}\0")
    assert BACKENDS[library].glance(str(tmp_path)) is None


@each_library
def test_what_is_preloaded_may_be_anything(tmp_path, monkeypatch, library):
    monkeypatch.setenv("LD_PRELOAD", "/opt/tool/preloaded.so")
    assert BACKENDS[library].glance(str(tmp_path)) is None


@pytest.mark.parametrize("variable", ["ROCM_HOME", "ROCM_PATH", None])
def test_a_library_that_only_rocm_has(tmp_path, monkeypatch, variable):
    prefix = tmp_path / ("opt/rocm" if variable is None else "elsewhere")
    put(prefix / "lib/libamd_smi.so")
    if variable is not None:
        assert hal_amd.Backend.glance(str(tmp_path)) is not None
        monkeypatch.setenv(variable, str(prefix))
    assert hal_amd.Backend.glance(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("backend", "file", "text"),
    [
        (hal_nvidia.Backend, "dev/nvidiactl", ""),
        (hal_nvidia.Backend, "dev/dxg", ""),
        (hal_nvidia.Backend, "proc/driver/nvidia/version", "NVRM version"),
        (hal_nvidia.Backend, "sys/bus/pci/devices/0000:41:00.0/vendor", "0x10de\n"),
        (hal_amd.Backend, "dev/kfd", ""),
        (hal_amd.Backend, "sys/bus/pci/drivers/amdgpu/0000:41:00.0/vendor", "0x1002\n"),
        (hal_amd.Backend, "sys/bus/pci/devices/0000:41:00.0/vendor", "0x1002\n"),
    ],
)
def test_a_device_without_a_library_is_left_to_the_worker(tmp_path, backend, file, text):
    put(tmp_path / file, text)
    put(tmp_path / "sys/bus/pci/devices/0000:41:00.0/class", "0x030000\n")
    assert backend.glance(str(tmp_path)) is None
    if file.startswith("sys/bus/pci/devices"):
        probe = backend(root=str(tmp_path), library=MISSING).probe()
        assert probe.state is ProbeState.BLOCKED
        assert MISSING in probe.reason
        assert "install" in probe.fix


def test_the_imaginary_accelerator_is_there_when_it_is_asked_for(monkeypatch):
    assert hal_null.Backend.glance() == hal_null.Backend().probe()
    monkeypatch.setenv("HAL_NULL", "1")
    assert hal_null.Backend.glance() is None


def test_a_library_in_this_process_is_found_by_its_name(monkeypatch):
    monkeypatch.undo()
    maps = Path("/proc/self/maps").read_text()
    libc = next(line.split("/")[-1].strip() for line in maps.splitlines() if "/libc.so" in line)
    assert loader._in_this_process(libc)
    assert not loader._in_this_process(MISSING)


def test_a_glance_loads_no_library_and_no_wrapper(tmp_path):
    code = (
        "import sys, hal_amd, hal_nvidia, hal_null\n"
        f"for kind in (hal_amd, hal_nvidia): assert kind.Backend.glance({str(tmp_path)!r}) is not None\n"
        "hal_null.Backend.glance()\n"
        "print(*sorted({'ctypes', 'pynvml', 'amdsmi', 'subprocess', 'socket', 'hal_amd.driver',"
        " 'hal_nvidia.driver', 'hal_null.driver'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=dict(os.environ), capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("\n", "")

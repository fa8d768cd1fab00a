"""What `probe` says of a machine without the vendor's library, and with one that does not work."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

import hal_amd
import hal_cpu
import hal_null
import hal_nvidia
from hal.backend import StateError
from hal.model import Enforcement, ProbeState, Rung

MISSING = "libhal-no-such-library.so"
VENDORS = [
    (hal_nvidia.Backend, "0x10de", "0x030200", "NVIDIA", "install the NVIDIA driver"),
    (hal_amd.Backend, "0x1002", "0x120000", "AMD", "install amd-smi-lib"),
]
each_vendor = pytest.mark.parametrize(("backend", "vendor", "pci_class", "word", "fix"), VENDORS)


@pytest.fixture(autouse=True)
def silence(capfd):
    """Nothing that these tests do may print."""
    yield
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def pci(tmp_path):
    """Puts a PCI device into the fabricated root."""

    def add(vendor, pci_class):
        folder = tmp_path / "sys/bus/pci/devices/0000:41:00.0"
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(vendor + "\n")
        (folder / "class").write_text(pci_class + "\n")

    return add


@each_vendor
def test_no_library_and_no_device(tmp_path, backend, vendor, pci_class, word, fix):
    probe = backend(root=str(tmp_path), library=MISSING).probe()
    assert probe.state is ProbeState.ABSENT
    assert MISSING in probe.reason
    assert fix in probe.fix


@each_vendor
def test_no_library_but_a_device(tmp_path, pci, backend, vendor, pci_class, word, fix):
    pci(vendor, pci_class)
    probe = backend(root=str(tmp_path), library=MISSING).probe()
    assert probe.state is ProbeState.BLOCKED
    assert f"{word} GPU is on the PCI bus" in probe.reason
    assert fix in probe.fix


@each_vendor
def test_another_device_of_the_vendor_is_no_gpu(tmp_path, pci, backend, vendor, pci_class, word, fix):
    pci(vendor, "0x020000")  # a network card
    assert backend(root=str(tmp_path), library=MISSING).probe().state is ProbeState.ABSENT


@each_vendor
def test_a_library_that_does_not_load(tmp_path, backend, vendor, pci_class, word, fix):
    library = tmp_path / "library.so"
    library.write_text("this is no library, but it is here and it is long enough to be looked into")
    probe = backend(root=str(tmp_path), library=str(library)).probe()
    assert probe.state is ProbeState.BROKEN
    assert "invalid ELF header" in probe.reason


@each_vendor
def test_the_calls_raise_what_probe_says(tmp_path, backend, vendor, pci_class, word, fix):
    unusable = backend(root=str(tmp_path), library=MISSING)
    for call in (
        unusable.enumerate,
        lambda: unusable.sample([], [], 0.0),
        lambda: unusable.processes([], 0.0),
        lambda: unusable.expose([f"{unusable.name}:x"]),
    ):
        with pytest.raises(StateError, match=MISSING):
            call()
    unusable.close()
    unusable.close()


@each_vendor
def test_hiding_all_devices_needs_no_library(tmp_path, backend, vendor, pci_class, word, fix):
    env = backend(root=str(tmp_path), library=MISSING).expose([]).env
    assert env
    assert set(env.values()) == {"-1"}


@each_vendor
def test_limits(backend, vendor, pci_class, word, fix):
    assert backend().limits() == Enforcement(Rung.GUARD, Rung.GUARD)


# ---- a library that loads, and a wrapper that answers ------------------------------------------


def wrapper(name, monkeypatch, code, count=0):
    """A stand-in for pynvml or amdsmi whose init fails with `code`, or works when it is None."""

    class Failure(Exception):
        value = err_code = code

    def init():
        if name == "amdsmi":
            print("what nobody wants to read")
        if code is not None:
            raise Failure("words")

    module = ModuleType(name)
    module.NVMLError = Failure
    module.nvmlInit = module.amdsmi_init = init
    module.nvmlShutdown = module.amdsmi_shut_down = lambda: None
    module.nvmlDeviceGetCount = lambda: count
    module.amdsmi_get_processor_handles = lambda: [object()] * count
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize(
    ("name", "backend", "present", "code", "state", "fix"),
    [
        ("pynvml", hal_nvidia.Backend, False, 9, ProbeState.ABSENT, ""),
        ("pynvml", hal_nvidia.Backend, True, 9, ProbeState.BLOCKED, "modprobe nvidia"),
        ("pynvml", hal_nvidia.Backend, True, 18, ProbeState.BLOCKED, "reboot"),
        ("pynvml", hal_nvidia.Backend, True, 4, ProbeState.BLOCKED, "/dev/nvidia"),
        ("pynvml", hal_nvidia.Backend, True, 999, ProbeState.BROKEN, ""),
        ("pynvml", hal_nvidia.Backend, True, None, ProbeState.ABSENT, ""),
        ("amdsmi", hal_amd.Backend, False, 34, ProbeState.ABSENT, ""),
        ("amdsmi", hal_amd.Backend, True, 34, ProbeState.BLOCKED, "modprobe amdgpu"),
        ("amdsmi", hal_amd.Backend, True, 10, ProbeState.BLOCKED, "render"),
        ("amdsmi", hal_amd.Backend, True, 16, ProbeState.BROKEN, ""),
        ("amdsmi", hal_amd.Backend, True, None, ProbeState.ABSENT, ""),
    ],
)
def test_init_that_fails(tmp_path, monkeypatch, pci, name, backend, present, code, state, fix):
    wrapper(name, monkeypatch, code)
    if present:
        pci("0x10de" if name == "pynvml" else "0x1002", "0x030000")
    probe = backend(root=str(tmp_path), library="libc.so.6").probe()
    assert probe.state is state, probe
    assert probe.reason
    assert fix in probe.fix


@pytest.mark.parametrize(("name", "backend"), [("pynvml", hal_nvidia.Backend), ("amdsmi", hal_amd.Backend)])
def test_ready(tmp_path, monkeypatch, name, backend):
    wrapper(name, monkeypatch, None, count=2)
    assert backend(root=str(tmp_path), library="libc.so.6").probe().state is ProbeState.READY


@pytest.mark.parametrize(
    ("name", "backend", "fix"),
    [("pynvml", hal_nvidia.Backend, "nvidia-ml-py"), ("amdsmi", hal_amd.Backend, "gpu-hal[amd]")],
)
def test_the_python_module_is_missing(tmp_path, monkeypatch, name, backend, fix):
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    probe = backend(root=str(tmp_path), library="libc.so.6").probe()
    assert probe.state is ProbeState.BLOCKED
    assert fix in probe.fix


def test_the_unofficial_pynvml(tmp_path, monkeypatch):
    (tmp_path / "pynvml").mkdir()
    (tmp_path / "pynvml/__init__.py").write_text("class NVMLError(Exception): ...\n")
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    probe = hal_nvidia.Backend(root=str(tmp_path), library="libc.so.6").probe()
    monkeypatch.delitem(sys.modules, "pynvml")
    assert probe.state is ProbeState.BLOCKED
    assert "not NVIDIA's" in probe.reason
    assert "nvidia-ml-py" in probe.fix


def test_an_amdsmi_that_does_not_fit_the_library(tmp_path, monkeypatch):
    (tmp_path / "amdsmi").mkdir()
    (tmp_path / "amdsmi/__init__.py").write_text("print('noise'); raise KeyError('libamd_smi.so')\n")
    monkeypatch.delitem(sys.modules, "amdsmi", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    probe = hal_amd.Backend(root=str(tmp_path), library="libc.so.6").probe()
    assert probe.state is ProbeState.BLOCKED
    assert "KeyError" in probe.reason
    assert "amdsmi" not in sys.modules


def test_null_is_there_only_when_asked_for(monkeypatch):
    monkeypatch.delenv("HAL_NULL", raising=False)
    off = hal_null.Backend()
    assert off.probe().state is ProbeState.ABSENT
    assert "HAL_NULL=1" in off.probe().fix
    with pytest.raises(StateError):
        off.enumerate()
    assert hal_null.Backend(enabled=True).probe().state is ProbeState.READY
    monkeypatch.setenv("HAL_NULL", "1")
    assert hal_null.Backend().probe().state is ProbeState.READY
    assert hal_null.Backend(enabled=False).probe().state is ProbeState.ABSENT


def test_cpu_without_proc(tmp_path):
    probe = hal_cpu.Backend(root=str(tmp_path)).probe()
    assert probe.state is ProbeState.BLOCKED
    assert probe.fix == "mount /proc"

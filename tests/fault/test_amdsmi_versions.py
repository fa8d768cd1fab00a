"""Each major version of the library, with the wrapper that belongs to it and with another one.

No library but the stand-in is here, and of the wrapper 7.0.2 only: what a ROCm of another version installs is
that wrapper with the structures and numbers of its version, as amdsmi 6.3.3 and 6.4.3 have them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hal.emulation.description import load
from hal.emulation.run import emulated
from hal_native import drivers_directory

SPEC = importlib.util.find_spec("amdsmi")
if SPEC is None or SPEC.origin is None:
    pytest.skip("AMD's package amdsmi is not installed", allow_module_level=True)
WRAPPER = Path(SPEC.origin).parent

U32, U64, TEXT = "ctypes.c_uint32", "ctypes.c_uint64", "ctypes.c_char"
NAMES = ("current_socket_power", "average_socket_power", "gfx_voltage", "soc_voltage", "mem_voltage")
POWER = [*((name, U32) for name in NAMES), ("power_limit", U32)]
ASIC = [
    ("market_name", f"{TEXT} * 256"), ("vendor_id", U32), ("vendor_name", f"{TEXT} * 64"),
    ("subvendor_id", U32), ("device_id", U64), ("rev_id", U32), ("asic_serial", f"{TEXT} * 32"),
    ("oam_id", U32), ("num_of_compute_units", U32), ("PADDING_0", U32), ("target_graphics_version", U64),
    ("subsystem_id", f"{U32}"), ("reserved", f"{U32} * 15"),
]  # fmt: skip
EVENT = [
    ("processor_handle", "ctypes.c_void_p"),
    ("event", U32),
    ("message", f"{TEXT} * 96"),
    ("PADDING_0", U32),
]
PROCESS = [
    ("name", f"{TEXT} * 32"), ("pid", U32), ("PADDING_0", U32), ("mem", U64),
    ("engine_usage", "struct_engine_usage_"), ("memory_usage", "struct_memory_usage_"),
    ("container_name", f"{TEXT} * 32"), ("cu_occupancy", U32), ("reserved", f"{U32} * 3"),
]  # fmt: skip
FIELDS = {
    24: {
        "amdsmi_power_info_t": [*POWER, ("reserved", f"{U32} * 11")],
        "amdsmi_asic_info_t": ASIC,
        "amdsmi_driver_info_t": [(f"driver_{n}", f"{TEXT} * 64") for n in ("version", "date", "name")],
        "amdsmi_proc_info_t": PROCESS,
        "amdsmi_evt_notification_data_t": EVENT,
        "amdsmi_gpu_metrics_t": 1832,
    },
    25: {
        "amdsmi_power_info_t": [("socket_power", U64), *POWER, ("reserved", U64)],
        "amdsmi_evt_notification_data_t": EVENT,
        "amdsmi_gpu_metrics_t": 2368,
    },
    26: {},
    27: {"amdsmi_gpu_metrics_t": 4720},
}
_COMMON = 480  # bytes of gpu_metrics that all have; the partitions' figures follow


def rocm(root: Path, major: int) -> Path:
    """A ROCm of that version: the library, and its wrapper beside it."""
    (root / "lib").mkdir(parents=True)
    shutil.copy(drivers_directory() / "libamd_smi.so", root / "lib")
    package = root / "share/amd_smi/amdsmi"
    shutil.copytree(WRAPPER, package, ignore=shutil.ignore_patterns("__pycache__"))
    wrapper, face = package / "amdsmi_wrapper.py", package / "amdsmi_interface.py"
    text, words = wrapper.read_text(), face.read_text()
    for structure, fields in FIELDS[major].items():
        pattern = rf"(struct_{structure}\._fields_ = \[)(.*?)(\n\])"
        old = re.search(pattern, text, re.S)[2]
        if isinstance(fields, list):
            new = "".join(f"\n    ('{name}', {kind})," for name, kind in fields)
        elif fields > 4544:
            new = f"{old}\n    ('new', ctypes.c_ubyte * {fields - 4544}),"
        else:
            new = old[: old.index("('xcp_stats'")] + f"('rest', ctypes.c_ubyte * {fields - _COMMON}),"
        text = re.sub(pattern, lambda m, new=new: m[1] + new + m[3], text, count=1, flags=re.S)
    if major < 26:
        text = text.replace("AMDSMI_LINK_TYPE_PCIE = 1", "AMDSMI_LINK_TYPE_PCIE = 2")
        text = text.replace("AMDSMI_LINK_TYPE_XGMI = 2", "AMDSMI_LINK_TYPE_XGMI = 1")
        words = words.replace("list(gpu_metrics.xcp_stats)", "[]")
        for name in ("pcie_lc_perf_other_end_recovery", "vram_max_bandwidth", "xgmi_link_status"):
            words = re.sub(rf'^ *"{name}": _validate.*gpu_metrics.*\n', "", words, flags=re.M)
    if major == 24:
        words = words.replace('"socket_power": power_info.socket_power,', "")
        words = words.replace(
            "hex(asic_info_struct.target_graphics_version)[2:]",
            "str(asic_info_struct.target_graphics_version)",
        )
        words = words.replace("asic_info_struct.subsystem_id", "0")
    wrapper.write_text(text)
    face.write_text(words)
    (package / "_version.py").write_text('__version__ = "0.0.0"\n')  # says nothing: it lies beside it
    return root


LOOK = """
import json, math, sys
import hal_amd
from hal.backend import Group
backend = hal_amd.Backend(library=LIBRARY)
probe, inventory = backend.probe(), backend.enumerate()
device = inventory.devices[0]
import amdsmi
backend.events()
amdsmi.amdsmi_reset_gpu(amdsmi.amdsmi_get_processor_handles()[0])
events = [[e.kind, e.code] for e in backend.events()]
parts = [s for s in inventory.slices if s.parent]
ids = [device.id, *(s.id for s in parts if s.device == device.id)]
found = {(r.subject == device.id, r.name, *r.labels.values()): [r.value, r.status, r.detail]
         for r in backend.sample(list(Group), ids[:3], math.inf)}
print(json.dumps({
    "from": amdsmi.__file__,
    "reason": probe.reason,
    "state": probe.state,
    "model": device.model,
    "gfx": device.architecture,
    "driver": device.driver,
    "id": device.id,
    "links": sorted({(l.kind, l.bandwidth_bytes_per_second) for l in inventory.links}),
    "slices": len(ids) - 1,
    "uuids": len({s.uuid for s in parts}),
    "events": events,
    "power": found[True, "power_watts", "instant"],
    "throttle": found[True, "throttle_active", "thermal"],
    "part": found[False, "compute_busy_ratio"],
    "hotspot": found[True, "temperature_celsius", "hotspot"],
    "held": [p.memory_bytes for p in backend.processes([device.id], math.inf)],
}))
"""
HOLD = """
import ctypes
hip, address = ctypes.CDLL("libamdhip64.so"), ctypes.c_void_p()
assert hip.hipMalloc(ctypes.byref(address), ctypes.c_size_t(1 << 20)) == 0
"""


def look(major: int, library: Path | str | None = None, first: str = HOLD) -> dict[str, object]:
    description = load("mi300x-8-cpx-nps4")
    description.drivers["amdsmi_major"] = major
    text = f"LIBRARY = {str(library) if library else None!r}\n{first}{LOOK}"
    with emulated(description) as env:
        done = subprocess.run(
            [sys.executable, "-c", text], env=env, capture_output=True, text=True, check=False, timeout=60
        )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    found: dict[str, object] = json.loads(done.stdout)
    return found


WHOLE = {
    "state": "ready",
    "model": "AMD Instinct MI300X",
    "gfx": "gfx942",
    "id": "amd:pci-0000:05:00.0",
    "links": [["xgmi", 64_000_000_000]],
    "slices": 8,
}


@pytest.mark.parametrize("major", [24, 25, 26, 27])
def test_the_wrapper_that_came_with_rocm(tmp_path, major):
    """It is taken before the one of PyPI that is installed too, and nothing is refused."""
    root = rocm(tmp_path / "rocm", major)
    found = look(major, root / "lib/libamd_smi.so")
    assert str(root) in found["from"]
    assert found["reason"] == ""
    assert {key: found[key] for key in WHOLE} == WHOLE
    assert found["driver"] == "6.14.14"
    assert found["power"] == [140, "ok", ""]
    assert found["hotspot"][0] == 40
    assert found["throttle"][:2] == [0, "ok"]
    assert found["events"] == [["reset", 3], ["reset", 4]]
    assert found["held"] == [1 << 20]
    # Figures of partitions are in the part of gpu_metrics that changes with each version.
    assert found["part"][:2] == ([0, "ok"] if major >= 26 else [None, "unsupported"])
    assert found["uuids"] == (64 if major == 27 else 1)  # why a uuid is no id


@pytest.mark.parametrize("major", [24, 25, 27])
def test_the_wrapper_of_pypi_over_another_version(major):
    """What it has no room for, or would read wrongly, is not asked; the rest is."""
    found = look(major)
    assert f"this one is {major}" in found["reason"]
    assert {**WHOLE, "model": found["model"], "gfx": found["gfx"]} == {key: found[key] for key in WHOLE}
    assert found["hotspot"][0] == 40
    assert found["throttle"][1] == found["part"][1] == "unsupported"
    assert "not asked" in found["throttle"][2]
    assert (found["model"], found["gfx"]) == (
        ("AMD GPU", None) if major == 24 else (WHOLE["model"], "gfx942")
    )
    assert found["power"][:2] == ([140, "ok"] if major == 27 else [None, "unsupported"])
    assert found["events"] == ([["reset", 3], ["reset", 4]] if major == 27 else [])
    assert found["held"] == ([] if major == 24 else [1 << 20])


@pytest.mark.parametrize("written_for", [24, 25, 26])
def test_a_wrapper_that_is_older_than_its_library(tmp_path, written_for):
    """Asked for all, library 27 would write past the end of its structures, and end the process."""
    package = rocm(tmp_path / "rocm", written_for) / "share/amd_smi"
    found = look(27, first=f"{HOLD}import sys; sys.path.insert(0, {str(package)!r})\nimport os\n")
    assert str(package) in found["from"]
    if written_for < 26:
        assert f"for major version {written_for} of the library; this one is 27" in found["reason"]
    assert found["throttle"][1] == "unsupported"
    assert {**WHOLE, "model": found["model"], "gfx": found["gfx"]} == {key: found[key] for key in WHOLE}


UPGRADE = """
import json, os, shutil, sys
from pathlib import Path
import hal
from hal.backend import Group
from hal.registry import discover
from hal_native import lib
root, new = map(Path, sys.argv[1:])
state = lib.hal_machine_open(os.fsencode(os.environ["HAL_EMULATED_MACHINE"]))
def look():
    readings = machine.sample([Group.POWER, Group.THROTTLE], ids)
    found = {(r.name, *r.labels.values()): [r.value, r.status, r.detail] for r in readings}
    return [found["power_limit_watts",], found["throttle_active", "hardware_brake"]]
with hal.Machine(discover(["amd"])) as machine:
    ids = [machine.inventory().devices[0].id]
    before = look()
    pid = machine._sources[0]._backend._pid
    state.amdsmi_major = 27
    shutil.rmtree(root / "share")
    shutil.copytree(new / "share", root / "share")
    os.replace(new / "lib/libamd_smi.so", root / "lib/libamd_smi.so")
    during, after = look(), look()
    machine.inventory(refresh=True)
    state = machine._sources[0].probe.state
    print(json.dumps([before, during, after, pid == machine._sources[0]._backend._pid, state]))
"""


def upgrade(root: Path, new: Path) -> list[object]:
    with emulated(load("mi300x-8")) as env:
        done = subprocess.run(
            [sys.executable, "-c", UPGRADE, str(root), str(new)],
            env={**env, "ROCM_PATH": str(root), "LD_LIBRARY_PATH": _without_drivers(env)},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[object] = json.loads(done.stdout)
    return found


def _without_drivers(env: dict[str, str]) -> str:
    drivers = str(drivers_directory())
    return os.pathsep.join(x for x in env.get("LD_LIBRARY_PATH", "").split(os.pathsep) if x != drivers)


def test_an_upgrade_to_a_new_major_version_while_it_is_watched(tmp_path):
    """The worker begins anew with the new library and its wrapper, and readings go on."""
    old, new = rocm(tmp_path / "rocm", 26), rocm(tmp_path / "new", 27)
    before, _, after, same, state = upgrade(old, new)
    assert before == after == [[750, "ok", ""], [0, "ok", ""]]
    assert (same, state) == (True, "ready")


def test_an_upgrade_without_its_wrapper(tmp_path):
    """The one of PyPI is what is left. It is said, and what cannot be asked any more is not."""
    old, new = rocm(tmp_path / "rocm", 26), rocm(tmp_path / "new", 27)
    shutil.rmtree(new / "share/amd_smi")
    before, _, (cap, throttle), _, state = upgrade(old, new)
    assert before == [[750, "ok", ""], [0, "ok", ""]]
    assert cap == [750, "ok", ""]
    assert throttle[:2] == [None, "unsupported"]
    assert "this one is 27" in throttle[2]
    assert state == "ready"

"""Every error of AMD SMI at every call that the backend makes: no crash, and nothing invented."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hal.emulation.description import load
from hal.emulation.run import emulated
from hal_native import lib

if importlib.util.find_spec("amdsmi") is None:
    pytest.skip("AMD's package amdsmi is not installed", allow_module_level=True)

HEADER = Path(__file__).parents[2] / "native/emulator/amdsmi.h"
CODES = [int(code) for code in re.findall(r"^    X\(\w+, (\d+)\)", HEADER.read_text(), re.M)][1:]
CODES += [2**32 - 2, 2**32 - 1]  # no error of its own, and unknown

# One process tries them all: the stand-in library takes new rules while it runs.
TRY = """
import ctypes, json, math, sys
from types import SimpleNamespace
import hal_amd
from hal.backend import Cost, Group, HalError
from hal_amd import errors

codes = json.loads(sys.argv[1])
backend = hal_amd.Backend()
everything = backend.enumerate()
import amdsmi
from amdsmi import amdsmi_wrapper
library = ctypes.CDLL("libamd_smi.so")

def faults(rules):
    library.hal_emulator_faults(rules.encode(), None)

subjects = [d.id for d in everything.devices[:1]] + [s.id for s in everything.slices if s.parent][1:2]

def read():
    readings = backend.sample(list(Group), subjects, math.inf)
    return {(r.subject, r.name, *r.labels.values()): r for r in readings}

# Which functions of the library it calls.
called = set()
def spy(name, function):
    def call(*arguments):
        called.add(name)
        return function(*arguments)
    return call
real = {n: f for n, f in vars(amdsmi_wrapper).items() if n.startswith("amdsmi_") and callable(f)
        and hasattr(f, "argtypes")}
for name, function in real.items():
    setattr(amdsmi_wrapper, name, spy(name, function))
backend.enumerate(); good = read(); backend.processes(subjects, math.inf); backend.probe()
before, called = called, set()
backend.events(); backend.events(); backend._watch.close()
watching, called = called, called | before
for name, function in real.items():
    setattr(amdsmi_wrapper, name, function)
called -= {"amdsmi_init", "amdsmi_shut_down", "amdsmi_get_lib_version"}

moving = {"energy_joules_total"}
devices = {device.id: device for device in everything.devices}
wrong, tried = [], 0

def check(ok, *what):
    if not ok:
        wrong.append([str(each) for each in what])

for call in sorted(called):
    for code in codes:
        tried += 1
        what = (call, code)
        table = errors.status(SimpleNamespace(err_code=code, err_info="x"))[0]
        faults(""); backend.enumerate(); faults(f"{call}={code}")
        try:
            now = read()
        except HalError:
            now = {}
            check(call.endswith(("processor_handles", "socket_handles")), *what, "sample raised")
        for key, reading in now.items():
            before = good[key]
            if reading.value is None:
                check(reading.status not in ("ok", "estimated"), *what, key, reading)
            elif reading.name not in moving:
                check(reading.value == before.value, *what, key, reading)
            if reading.source == call and before.status == "ok" and reading.value is None:
                check(reading.status == table, *what, key, reading.status, table)
        check(set(now) in (set(), set(good)), *what, "figures are missing")
        try:
            for device in backend.enumerate().devices:
                for field in device.__struct_fields__:
                    value, known = getattr(device, field), getattr(devices[device.id], field)
                    if field == "pci":
                        value, known = value.bdf, known.bdf
                    nothing = value in (None, "AMD GPU") or field in ("indices", "attributes", "heaps")
                    check(nothing or value == known, *what, field, value)
        except HalError as error:
            check(error.vendor_code in (code, None), *what, error)
        try:
            backend.processes(subjects, math.inf)
        except HalError as error:
            check(error.vendor_code in (code, None), *what, error)
        backend.probe()
        lost = call == "amdsmi_get_gpu_memory_usage" and code == errors.NOT_FOUND
        lost = lost or call == "amdsmi_get_gpu_device_bdf"  # without an address it is not in the list
        if call not in watching:
            continue
        for again in range(2):
            try:
                for event in backend.events():
                    check(lost and event.kind == "lost", *what, event)
            except HalError as error:
                check(error.vendor_code in (code, None), *what, error)
        faults("")
        try:
            backend._watch = None
            check(backend.events() == [] == backend.events(), *what, "it watches no more")
        except HalError as error:
            check(False, *what, error)
faults("")
check(read().keys() == good.keys(), "it does not recover")
print(json.dumps([sorted(called), tried, wrong]))
"""


@pytest.mark.parametrize("machine", ["mi300x-8", "mi300x-8-cpx-nps4", "mi210-4"])
def test_every_error_at_every_call(machine):
    with emulated(load(machine)) as env:
        done = subprocess.run(
            [sys.executable, "-c", TRY, json.dumps(CODES)],
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=110,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    called, tried, wrong = json.loads(done.stdout)
    assert len(called) > 30
    assert {"amdsmi_init_gpu_event_notification", "amdsmi_get_gpu_event_notification",
            "amdsmi_stop_gpu_event_notification", "amdsmi_get_gpu_bad_page_info"} <= set(called)  # fmt: skip
    assert tried == len(called) * len(CODES)
    assert wrong[:5] == []


def test_every_error_is_tried():
    """Those of the wrapper, whatever the header here has."""
    spec = importlib.util.find_spec("amdsmi")
    source = Path(spec.origin).with_name("amdsmi_wrapper.py").read_text()
    theirs = {int(code) for code in re.findall(r"^AMDSMI_STATUS_\w+ = (\d+)", source, re.M)}
    assert theirs - {0} == set(CODES)


@pytest.mark.parametrize("code", CODES)
def test_init_that_fails(code):
    script = """
import json, hal_amd
from hal.backend import StateError
backend = hal_amd.Backend()
probe = backend.probe()
try:
    backend.enumerate()
except StateError as error:
    print(json.dumps([probe.state, probe.reason, error.vendor_code]))
"""
    with emulated(load("mi210-4")) as env:
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=env | {"HAL_EMULATOR_FAULTS": f"amdsmi_init={code}"},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    state, reason, vendor = json.loads(done.stdout)
    assert state in ("absent", "blocked", "broken")
    assert reason
    assert vendor == code


def test_handles_are_looked_up_once_and_again_when_they_are_refused():
    script = """
import ctypes, json, math, hal_amd
from hal.backend import Group
backend = hal_amd.Backend()
ids = [device.id for device in backend.enumerate().devices]
import amdsmi
looks = 0
real = amdsmi.amdsmi_get_processor_handles
def look():
    global looks
    looks += 1
    return real()
amdsmi.amdsmi_get_processor_handles = look
library = ctypes.CDLL("libamd_smi.so")
said = []
def sample():
    readings = backend.sample([Group.POWER], ids, math.inf)
    said.append([looks, sum(reading.value is not None for reading in readings)])
sample(); sample()
library.hal_emulator_faults(b"amdsmi_get_power_info=31", None)
sample()
library.hal_emulator_faults(b"", None)
sample(); sample()
amdsmi.amdsmi_shut_down()  # by somebody else in this process
sample(); sample()
print(json.dumps(said))
"""
    with emulated(load("mi210-4")) as env:
        done = subprocess.run(
            [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True, timeout=60
        )
    (a, b, refused, again, kept, shut, back) = json.loads(done.stdout)
    assert a == b == [0, a[1]]
    assert refused[1] < a[1]
    assert again == kept == [1, a[1]]
    assert shut[1] == 0
    assert back == [2, a[1]]


ABSURD = """
import json, math
import hal_amd
from hal.backend import Group
backend = hal_amd.Backend()
device = backend.enumerate().devices[0]
readings = backend.sample(list(Group), [device.id], math.inf)
print(json.dumps([device.memory_bytes, len(readings),
                  [[r.name, *r.labels.values(), r.value, r.status, r.detail] for r in readings]]))
"""
_HUGE = 1 << 31


def test_absurd_answers_are_errors_and_bounded(tmp_path):
    figures = {
        "memory_bytes": 1 << 62, "power_milliwatts": 1 << 40, "power_limit_milliwatts": 1 << 45,
        "temperature_celsius": 5000, "memory_temperature_celsius": -300, "compute_busy_percent": 400,
        "memory_busy_percent": 101, "amd_dies": 60_000, "amd_compute_megahertz": 4_000_000_000,
        "amd_soc_megahertz": _HUGE, "amd_pcie_width": 9999, "amd_pcie_generation": 5, "amd_bad_pages": _HUGE,
        "amd_media_busy_percent": 250, "amd_fan_level": 999, "amd_ecc_corrected": 1 << 63,
    }  # fmt: skip
    path = tmp_path / "machine.toml"
    path.write_text(
        'schema = "hal.machine/1"\n[drivers]\namdsmi_major = 26\n[[devices]]\nmodel = "mi300x"\n'
        'pci = "0000:05:00.0"\n'
    )
    with emulated(load(str(path))) as env:
        machine = lib.hal_machine_open(env["HAL_EMULATED_MACHINE"].encode())
        for name, value in figures.items():  # past the description, which would refuse them
            setattr(machine.device[0], name, value)
        lib.hal_machine_close(machine)
        done = subprocess.run(
            [sys.executable, "-c", ABSURD], env=env, capture_output=True, text=True, check=True, timeout=60
        )
    memory, count, readings = json.loads(done.stdout)
    assert memory is None
    assert count < 200
    found = {tuple(reading[:-3]): reading[-3:] for reading in readings}
    for figure in (
        ("memory_total_bytes", "vram"), ("power_watts", "instant"), ("power_limit_watts",),
        ("temperature_celsius", "hotspot"), ("temperature_celsius", "memory"), ("compute_busy_ratio",),
        ("memory_bandwidth_busy_ratio",), ("media_busy_ratio",), ("clock_hertz", "compute"),
        ("clock_hertz", "soc"), ("pcie_width",), ("pages_retired", "all"), ("fan_ratio", "0"),
        ("ecc_errors_total", "corrected", "volatile", "all"),
    ):  # fmt: skip
        value, status, detail = found[figure]
        assert (value, status) == (None, "error"), figure
        assert 0 < len(detail) < 100


def test_lists_that_are_cut_off_are_errors():
    script = """
import json, math, hal_amd
from hal.backend import Group
backend = hal_amd.Backend()
card = backend.enumerate().devices[0].id
import amdsmi
def cut(value):
    if isinstance(value, list):
        return value[:1]
    return {k: cut(v) for k, v in value.items()} if isinstance(value, dict) else value
for name in ("amdsmi_get_gpu_metrics_info", "amdsmi_get_link_metrics", "amdsmi_get_gpu_xgmi_link_status"):
    real = getattr(amdsmi, name)
    setattr(amdsmi, name, lambda *a, real=real: cut(real(*a)))
readings = backend.sample(list(Group), [card], math.inf)
print(json.dumps([[r.name, r.value, r.status] for r in readings if r.name in ("clock_hertz", "link_up",
      "link_speed_bytes_per_second") and "compute0" not in r.labels.values()]))
"""
    with emulated(load("mi300x-8")) as env:
        done = subprocess.run(
            [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True, timeout=60
        )
    found = json.loads(done.stdout)
    up = [[value, status] for name, value, status in found if name == "link_up"]
    assert up == [[1, "ok"]] + [[None, "unsupported"]] * 6
    speeds = [[value, status] for name, value, status in found if name.startswith("link_speed")]
    assert speeds == [[None, "error"]] * 7

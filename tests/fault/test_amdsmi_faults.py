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

if importlib.util.find_spec("amdsmi") is None:
    pytest.skip("AMD's package amdsmi is not installed", allow_module_level=True)

HEADER = Path(__file__).parents[2] / "native/emulator/amdsmi.h"
CODES = [int(code) for code in re.findall(r"^    X\(\w+, (\d+)\)", HEADER.read_text(), re.M)][1:]
CODES.append(2**32 - 1)

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
    assert len(called) > 25
    assert tried == len(called) * len(CODES)
    assert wrong[:5] == []


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

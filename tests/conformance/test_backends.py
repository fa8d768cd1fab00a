"""The contract of hal.backend, held against every backend that comes with hal.

The vendors' run through their real Python libraries on emulated machines, one of which has no sensor.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from hal.backend import Group
from hal.conformance import CHECKS
from hal.emulation.description import load, names
from hal.emulation.run import emulated
from hal.model import (
    Enforcement,
    Exposure,
    Inventory,
    Probe,
    ProbeState,
    Process,
    Reading,
    Rung,
    SliceKind,
    Status,
)
from hal.telemetry.catalogue import CATALOGUE
from tests.conftest import ALLOCATE

ASK = Path(__file__).with_name("ask.py")
SENSORLESS = """schema = "hal.machine/1"
[drivers]
nvidia_driver = "580.95.05"
nvml_version = "13.580.95.05"
cuda_version = 13000
amd_driver = "6.14.14"
amdsmi_major = 26
amdsmi_minor = 1
hip_version = 70051831
""" + "".join(
    f'[[devices]]\nmodel = "{model}"\npci = "0000:{bus}:00.0"\nnuma_node = -1\n'
    + "".join(
        f"{field} = -1\n"
        for field in (
            "power_milliwatts",
            "power_limit_milliwatts",
            "power_min_milliwatts",
            "power_max_milliwatts",
            "temperature_celsius",
            "memory_temperature_celsius",
            "compute_busy_percent",
            "memory_busy_percent",
        )
    )
    for model, bus in (("h100-sxm-80gb", "19"), ("mi300x", "9b"))
)  # fmt: skip
# Every vendor of every machine that comes with hal: the backend, the machine, and how many devices it has.
SHIPPED = {
    f"{vendor}-{name}": (vendor, name, sum(device["vendor"] == vendor for device in load(name).devices))
    for name in names()
    for vendor in sorted({str(device["vendor"]) for device in load(name).devices})
}
OLD = """schema = "hal.machine/1"
[drivers]
nvidia_driver = "{driver}"
nvml_version = "11.470"
cuda_version = 11040
[[devices]]
model = "a100-sxm-40gb"
pci = "0000:07:00.0"
[[devices]]
model = "h100-sxm-80gb"
pci = "0000:19:00.0"
"""
CASES = {
    "cpu": ("cpu", None, 1),
    "null": ("null", None, 1),
    "nvidia-sensorless": ("nvidia", SENSORLESS, 1),
    "nvidia-470": ("nvidia", OLD.format(driver="470.256.02"), 2),
    "nvidia-535": ("nvidia", OLD.format(driver="535.183.06"), 2),
    "amd-sensorless": ("amd", SENSORLESS, 1),
    **SHIPPED,
}
# What starts programs again and again is tried on a few of them.
STARTED = [
    "nvidia-mixed",
    "nvidia-dgx-h100",
    "amd-mixed",
    "amd-mi300x-8",
    "nvidia-sensorless",
    "amd-sensorless",
]
on_machines = pytest.mark.parametrize("case", STARTED, indirect=True)
without_sensors = pytest.mark.parametrize("case", [c for c in CASES if "sensorless" in c], indirect=True)
OPTIONAL = {"no ListsProcesses", "no Exposes", "no Limits", "no Watches", "no Describes"}
VALUED = {Status.OK, Status.ESTIMATED, Status.SATURATED}
SENTINELS = {0xFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF}
# What a program of the runtime sees: its API, and the PCI addresses of the devices in their order.
RUNTIMES = {"nvidia": ("cuda", "libcuda.so.1"), "amd": ("hip", "libamdhip64.so.7")}
SEES = {
    "nvidia": "r = CDLL('libcuda.so.1'); r.cuInit(0); count, bdf = r.cuDeviceGetCount, r.cuDeviceGetPCIBusId",
    "amd": "r = CDLL('libamdhip64.so.7'); count, bdf = r.hipGetDeviceCount, r.hipDeviceGetPCIBusId",
}
PRINTS = """
n = ctypes.c_int(0)
count(ctypes.byref(n))
for at in range(n.value):
    text = ctypes.create_string_buffer(32)
    assert bdf(text, 32, at) == 0
    print(text.value.decode().lower())
"""


class Answers(msgspec.Struct):
    name: str
    calls: list[str]
    probes: list[Probe]
    inventory: Inventory
    again: Inventory
    reopened: Inventory
    all: list[Reading]
    groups: dict[Group, list[Reading]]
    each: dict[str, list[Reading]]
    no_groups: list[Reading]
    no_ids: list[Reading]
    late: list[Reading]
    unknown: dict[str, Any]
    processes: list[Process]
    late_processes: Any
    expose: dict[str, Exposure]
    limits: Enforcement


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimpleNamespace]:
    """One backend's answers to everything, and the environment in which they were given."""
    name, machine, count = CASES[request.param]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HAL_", "CUDA_", "HIP_", "ROC"))}
    if machine is None:
        yield of(name, count, env | {"HAL_NULL": "1"})
        return
    if machine.startswith("schema"):
        path = tmp_path_factory.mktemp("machine") / "own.toml"
        path.write_text(machine)
        machine = str(path)
    with emulated(load(machine), env) as own:
        yield of(name, count, own)


def of(name: str, count: int, env: dict[str, str]) -> SimpleNamespace:
    result = subprocess.run([sys.executable, ASK, name], env=env, capture_output=True, timeout=100)
    assert (result.returncode, result.stderr.decode()) == (0, "")
    answers = msgspec.json.decode(result.stdout, type=Answers)
    return SimpleNamespace(
        name=name, count=count, env=env, answers=answers, ids=[d.id for d in answers.inventory.devices]
    )


@pytest.fixture
def answers(case: SimpleNamespace) -> Answers:
    return case.answers


def readings(answers: Answers) -> list[Reading]:
    return [*answers.all, *(r for group in answers.groups.values() for r in group), *answers.late]


def test_has_the_required_calls_and_is_ready(case: SimpleNamespace, answers: Answers) -> None:
    assert {"probe", "enumerate", "sample", "close"} <= set(answers.calls)
    assert answers.name == case.name
    assert [probe.state for probe in answers.probes] == [ProbeState.READY] * 2
    assert answers.probes[0].fix == ""


def test_devices_have_ids_that_last(case: SimpleNamespace, answers: Answers) -> None:
    devices = answers.inventory.devices
    assert len(devices) == len(set(case.ids)) == case.count
    assert [device.id for device in answers.again.devices] == case.ids
    assert [device.id for device in answers.reopened.devices] == case.ids
    assert answers.again == answers.inventory
    for device in devices:
        assert device.vendor == case.name
        vendor, _, own = device.id.partition(":")
        assert vendor == device.vendor
        assert not re.fullmatch(r"(gpu|card|dev(ice)?)?[-_:]?\d{1,3}", own, re.IGNORECASE)  # an index
        assert not re.search(r"[\s/]", own)
        assert own == device.uuid or own == f"pci-{device.pci.bdf if device.pci else ''}" or own == "host"


def test_devices_say_what_is_known_and_no_sentinel(answers: Answers) -> None:
    for device in answers.inventory.devices:
        assert device.model.strip() == device.model != ""
        assert device.heaps
        assert all(heap.total_bytes is None or heap.total_bytes > 1 << 20 for heap in device.heaps)
        for text in (device.uuid, device.serial, device.driver, device.architecture):
            assert text is None or text.strip().lower() not in ("", "n/a", "unknown", "none", "0")
        for number in (device.numa_node, device.compute_units, *device.indices.values()):
            assert number is None or 0 <= number < 0xFFFF
        if device.pci is not None:
            assert re.fullmatch(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", device.pci.bdf)


def test_every_device_has_one_whole_slice(case: SimpleNamespace, answers: Answers) -> None:
    slices = answers.inventory.slices
    roots = [one for one in slices if one.kind is SliceKind.WHOLE]
    assert [one.device for one in roots] == case.ids
    sizes = {device.id: device.memory_bytes for device in answers.inventory.devices}
    for one in roots:
        assert one.id == f"{one.device}/whole"
        assert one.parent is None
        assert one.memory.bytes == sizes[one.device]
    assert len({one.id for one in slices}) == len(slices)
    assert {one.parent for one in slices} - {None} <= {one.id for one in slices}


def test_readings_are_in_the_catalogue(answers: Answers) -> None:
    for reading in readings(answers):
        metric = CATALOGUE[reading.name]
        assert reading.unit == metric.unit
        assert set(reading.labels) <= set(metric.labels)
        assert reading.source
        assert reading.time is not None
    keys = [(r.subject, r.name, tuple(sorted(r.labels.items()))) for r in answers.all]
    assert len(set(keys)) == len(keys)


def test_a_value_is_there_exactly_when_the_status_says_so(answers: Answers) -> None:
    for reading in readings(answers):
        assert (reading.value is not None) == (reading.status in VALUED), reading


def test_no_value_is_a_sentinel(answers: Answers) -> None:
    for reading in readings(answers):
        if reading.value is None:
            continue
        assert isinstance(reading.value, (int, float))
        assert reading.value >= 0, reading
        assert reading.value not in SENTINELS, reading
        # The sentinels again, as a backend scales them: milli, micro, percent.
        assert reading.value not in {s / scale for s in SENTINELS for scale in (100, 1000, 10**6)}, reading
        if reading.unit == "ratio":
            assert reading.value <= 1


@without_sensors
def test_a_sensor_that_is_not_there_has_no_value(answers: Answers) -> None:
    for reading in answers.all:
        if reading.name in ("compute_busy_ratio", "memory_bandwidth_busy_ratio"):
            assert reading.value is None, reading
            assert reading.status in (Status.UNSUPPORTED, Status.ERROR), reading
    assert [device.numa_node for device in answers.inventory.devices] == [None]


def test_a_group_that_is_asked_for_is_answered_for_each_device_and_alone(
    case: SimpleNamespace, answers: Answers
) -> None:
    for group, found in answers.groups.items():
        assert {CATALOGUE[reading.name].group for reading in found} == {group}
        assert {reading.subject for reading in found} == set(case.ids)
    assert {r.name for group in answers.groups.values() for r in group} == {r.name for r in answers.all}
    for id, found in answers.each.items():
        assert {reading.subject for reading in found} == {id}
    assert answers.no_groups == answers.no_ids == []


def test_memory_adds_up(answers: Answers) -> None:
    heaps = {(d.id, heap.name): heap.total_bytes for d in answers.inventory.devices for heap in d.heaps}
    figures = {(r.subject, r.labels["heap"], r.name): r.value for r in answers.groups[Group.MEMORY]}
    for (device, heap), total in heaps.items():
        assert figures[device, heap, "memory_total_bytes"] == total
        used, free = (figures.get((device, heap, f"memory_{which}_bytes")) for which in ("used", "free"))
        assert used is not None
        assert heap != "vram" or free is not None  # of the host's memory the drivers do not say it
        assert used + (free or 0) <= total


def test_past_the_deadline_everything_is_stale(case: SimpleNamespace, answers: Answers) -> None:
    assert {reading.subject for reading in answers.late} == set(case.ids)
    assert {reading.name for reading in answers.late} == {reading.name for reading in answers.all}
    for reading in answers.late:
        assert reading.value is None
        assert reading.status in (Status.STALE, Status.UNSUPPORTED), reading
    assert any(reading.status is Status.STALE for reading in answers.late)
    late = answers.late_processes
    assert late == [] or "TemporaryError" in late["kinds"]


def test_an_unknown_device_is_gone(answers: Answers) -> None:
    assert set(answers.unknown) == {"sample", "processes", "expose"}
    for call, error in answers.unknown.items():
        assert isinstance(error, dict), call
        assert error["raised"] == "GoneError", call
        assert re.fullmatch(r"[^\n]+", error["says"])
        assert "no-such-device" in error["says"]


def test_processes_are_of_these_devices(case: SimpleNamespace, answers: Answers) -> None:
    for process in answers.processes:
        assert process.device in case.ids
        assert process.pid > 0
        assert (process.memory_bytes is not None) == (process.status in VALUED)


def test_who_holds_a_slice_is_said_honestly(case: SimpleNamespace, answers: Answers) -> None:
    held = case.name in RUNTIMES
    assert (answers.limits.memory is not Rung.NONE) == held
    assert (answers.limits.compute is not Rung.NONE) == held


# ---- exposure ----------------------------------------------------------------------------------


@on_machines
@pytest.mark.parametrize("inherited", [{}, {"CUDA_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": "0"}])
def test_with_no_device_exposed_a_program_finds_none(
    case: SimpleNamespace, answers: Answers, inherited: dict[str, str]
) -> None:
    runtime, library = RUNTIMES[case.name]
    env = case.env | inherited
    seen = subprocess.run(
        [ALLOCATE, runtime, "info"], env=case.env, capture_output=True, text=True, timeout=60
    )
    assert seen.returncode == 0
    assert seen.stdout.startswith("device ")
    hidden = subprocess.run(
        [ALLOCATE, runtime, "info"],
        env=env | answers.expose["none"].env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert hidden.returncode == 1
    assert "failed" in hidden.stdout
    assert library not in hidden.stderr  # it was there


def visible(case: SimpleNamespace, env: dict[str, str]) -> list[str]:
    code = "import ctypes; from ctypes import CDLL; " + SEES[case.name] + PRINTS
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=case.env | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return result.stdout.split()


@on_machines
@pytest.mark.parametrize("which", ["none", "all", "reversed", "first", "last"])
def test_exactly_the_devices_exposed_are_seen_in_their_order(
    case: SimpleNamespace, answers: Answers, which: str
) -> None:
    places = {device.id: device.pci.bdf for device in answers.inventory.devices if device.pci}
    wanted = {
        "none": [],
        "all": case.ids,
        "reversed": case.ids[::-1],
        "first": case.ids[:1],
        "last": case.ids[-1:],
    }[which]
    label = wanted[0] if which in ("first", "last") else which
    for inherited in (
        {},
        {"CUDA_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": "1", "ROCR_VISIBLE_DEVICES": "0"},
    ):
        assert visible(case, inherited | answers.expose[label].env) == [places[id] for id in wanted]


@on_machines
def test_memory_taken_on_an_exposed_device_is_seen_on_it_alone(
    case: SimpleNamespace, answers: Answers
) -> None:
    last = case.ids[-1]
    runtime, _ = RUNTIMES[case.name]
    program = subprocess.Popen(
        [ALLOCATE, runtime, "alloc", "64", "wait"],
        env=case.env | answers.expose[last].env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with program:
        assert program.stdout is not None
        assert program.stdout.readline().startswith("device ")
        assert program.stdout.readline().startswith("allocated ")
        now = of(case.name, case.count, case.env).answers
        used = {
            r.subject: r.value
            for r in now.groups[Group.MEMORY]
            if r.name == "memory_used_bytes" and r.labels["heap"] == "vram"
        }
        assert used == {id: (64 << 20 if id == last else 0) for id in case.ids}
        assert [(p.device, p.pid, p.name, p.memory_bytes) for p in now.processes] == [
            (last, program.pid, "hal-allocate", 64 << 20)
        ]


# ---- the suite that comes with hal ---------------------------------------------------------------


@pytest.mark.parametrize("case", SHIPPED)
def test_the_suite_passes_on_every_machine(case: str) -> None:
    backend, machine, _ = SHIPPED[case]
    command = [sys.executable, "-m", "hal", "backend", "check", backend, "--json"]
    with emulated(load(machine)) as env:
        result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    results = msgspec.json.decode(result.stdout)["results"]
    assert len(results) == len(CHECKS)
    # Nothing is passed over but groups that a backend does not have.
    odd = [r for r in results if r["outcome"] != "passed" and r["detail"] not in OPTIONAL]
    assert odd == []

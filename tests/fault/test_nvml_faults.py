"""Every status of NVML at every call that the NVIDIA backend makes, over the stand-in driver.

Each test is one child process on an emulated machine; `_child` at the end of this file is what it runs.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hal_nvidia
from hal.backend import EVERY_COST, Cost, Group, HalError
from hal.emulation.description import load
from hal.emulation.run import emulated
from hal.model import Process, Reading, Status
from hal_native import lib

CODES = [*range(1, 30), 999]
NOT_FOUND = 6
DRIVERS = ["470.256.02", "535.183.06", "580.95.05"]
# What a driver may lack so that others of its calls are made: each fault a rule.
WITHOUT = {
    "nothing": "",
    "the batched": "nvmlDeviceGetFieldValues=13;nvmlDeviceGetMemoryErrorCounter=3;"
    "nvmlDeviceGetTemperature=13;nvmlDeviceGetNumFans=13;nvmlDeviceGetMemoryInfo_v2=25;"
    "nvmlDeviceGetComputeRunningProcesses_v3=13",
}
EVERY_DRIVER = [*((driver, "nothing") for driver in DRIVERS), (DRIVERS[-1], "the batched")]
# Called in each generation, whatever else is.
EVERYWHERE = """nvmlDeviceGetCount_v2 nvmlDeviceGetHandleByUUID nvmlDeviceGetMemoryInfo
nvmlDeviceGetUtilizationRates nvmlDeviceGetFieldValues nvmlDeviceGetBAR1MemoryInfo nvmlDeviceGetComputeMode
nvmlDeviceGetMigMode nvmlDeviceGetProcessUtilization
nvmlEventSetCreate nvmlEventSetWait_v2 nvmlDeviceRegisterEvents nvmlDeviceGetSupportedEventTypes
nvmlDeviceGetMemoryErrorCounter""".split()  # noqa: SIM905


@pytest.fixture(params=["dgx-h100"])
def machine(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    with emulated(load(request.param)) as env:
        yield env


def child(env: dict[str, str], part: str, **extra: str) -> Any:
    result = subprocess.run(
        [sys.executable, __file__, part], env=env | extra, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize(("driver", "without"), EVERY_DRIVER)
def test_every_status_at_every_call(machine: dict[str, str], driver: str, without: str) -> None:
    extra = {"HAL_EMULATOR_NVIDIA_DRIVER": driver, "TEST_WITHOUT": WITHOUT[without]}
    report = child(machine, "statuses", **extra)
    assert report["calls"] > 40
    assert {*EVERYWHERE} <= {*report["names"]}
    assert report["wrong"] == []


def test_no_call_of_the_backend_is_left_out(machine: dict[str, str]) -> None:
    """What its source names is called where statuses are injected, in one generation or another."""
    named = {
        name
        for source in Path(hal_nvidia.__file__).parent.glob("*.py")
        for name in re.findall(r"""(?:nvml(?:Lib)?\.|")(nvml[A-Z]\w+)""", source.read_text())
        if not re.fullmatch(r"nvmlLib|nvmlDeviceGet|\w+_t|nvml(Memory|FanSpeedInfo)_v\d", name)
    }
    called: set[str] = set()
    for driver, without in EVERY_DRIVER:
        extra = {"HAL_EMULATOR_NVIDIA_DRIVER": driver, "TEST_WITHOUT": WITHOUT[without]}
        called |= {*child(machine, "statuses_calls", **extra)}
    for part in ("gpm_whole_calls", "gpm_mig_calls"):
        called |= {*child(machine, part)}
    called |= {re.sub(r"(_v\d|WithFlags)$", "", name) for name in called}
    assert len(named) > 50
    assert sorted(named - called) == []


@pytest.mark.parametrize("part", ["whole", "mig"])
def test_every_status_at_every_call_of_gpm(machine: dict[str, str], part: str) -> None:
    report = child(machine, f"gpm_{part}_statuses")
    assert report["calls"] >= 5
    assert report["wrong"] == []


def test_every_status_of_every_field(machine: dict[str, str]) -> None:
    report = child(machine, "fields")
    assert report["calls"] > 20
    assert report["wrong"] == []


@pytest.mark.parametrize(("fault", "ends"), [("abort", -6), ("hang", None)])
def test_a_call_that_ends_or_stops_the_process(machine: dict[str, str], fault: str, ends: int | None) -> None:
    env = machine | {"HAL_EMULATOR_FAULTS": f"nvmlDeviceGetTemperature={fault}"}
    with subprocess.Popen([sys.executable, __file__, "events"], env=env) as process:
        assert process.wait(timeout=30) == 0  # it does not ask for a temperature
    with subprocess.Popen(
        [sys.executable, __file__, "absurd"], env=env, stderr=subprocess.DEVNULL
    ) as process:
        if ends is not None:
            assert process.wait(timeout=30) == ends
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=2)
            process.kill()


def test_latency_on_demand(machine: dict[str, str]) -> None:
    report = child(machine, "latency", HAL_EMULATOR_LATENCY="nvmlDeviceGetTemperature=3000000;*=10")
    assert 0.003 <= report["temperature"] < 0.1
    assert report["power"] < 0.003


def test_absurd_answers(machine: dict[str, str]) -> None:
    assert child(machine, "absurd") == {"wrong": []}


def test_a_lost_gpu_beside_good_ones(machine: dict[str, str]) -> None:
    report = child(machine, "lost")
    assert report["devices"] == [8, 7]
    assert report["lost"] == ["error"]
    assert report["good"] is True
    assert report["back"] is True


@pytest.mark.parametrize("code", [13, 25, 26])
@pytest.mark.parametrize("generation", [1, 2, 3])
def test_older_versions_of_the_structures(machine: dict[str, str], generation: int, code: int) -> None:
    missing = [
        *(["nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetFieldValues"] if generation < 3 else []),
        *(["nvmlDeviceGetComputeRunningProcesses_v3"] if generation < 3 else []),
        *(["nvmlDeviceGetComputeRunningProcesses_v2"] if generation < 2 else []),
    ]
    faults = ";".join(f"{name}={code}" for name in missing)
    report = child(machine, "versions", HAL_EMULATOR_FAULTS=faults)
    assert report["processes"] == 1
    assert report["used"] == 3 << 20
    assert report["reserved"] == ("ok" if generation == 3 else "unsupported")
    assert report["power"] == [70.0]
    assert report["links"] == [1]
    assert report["retried"] == []


def test_events_are_seen_once(machine: dict[str, str]) -> None:
    assert child(machine, "events") == {"events": [[1, 48, "error"], [2, 79, "lost"]], "again": []}


def test_partitions(machine: dict[str, str]) -> None:
    report = child(machine, "mig")
    assert report["slices"] == [
        ["3g.40gb", 40448 << 20, 60, 60 / 132],
        ["1g.10gb", 9984 << 20, 16, 16 / 132],
    ]
    assert report["memory"] == [40448 << 20, 0, 9984 << 20, 0]
    assert report["bar1"] == [64 << 30, 16 << 30]
    assert report["activity"] == [
        ["compute_busy_ratio", "stale"],  # the first of two samples
        ["memory_bandwidth_busy_ratio", "unsupported"],
    ]
    assert report["exposed"] is True
    assert report["gone"] == "GoneError"


@pytest.mark.parametrize("model", ["dgx-a100", "hgx-h200", "l40s-4", "dgx-h100", "mixed"])
def test_every_machine_fits_the_catalogue(model: str) -> None:
    with emulated(load(model)) as env:
        assert child(env, "catalogue") == {"wrong": []}


# ---- what the child runs -----------------------------------------------------------------------------


def _value(reading: Reading) -> tuple[Any, ...]:
    return (reading.subject, reading.name, *sorted(reading.labels.items()))


class _Run:
    """One backend over the stand-in, whose faults can be switched."""

    def __init__(self) -> None:
        import pynvml

        from hal_nvidia import Backend

        self.nvml = pynvml
        self.backend = Backend()
        self.ids = [device.id for device in self.backend.enumerate().devices]
        self.without = ""
        self.machine = lib.hal_machine_open(os.environb[b"HAL_EMULATED_MACHINE"])

    def faults(self, text: str | None) -> None:
        """The first rule of a function is the one that holds."""
        rules = ";".join(filter(None, (text, self.without)))
        self.nvml.nvmlLib.hal_emulator_faults(rules.encode(), None)

    def sample(self, ids: list[str] | None = None) -> list[Reading]:
        return self.backend.sample(list(Group), self.ids[:1] if ids is None else ids, math.inf)

    def called(self) -> list[str]:
        """Every function of NVML that was called while there were rules, past pynvml or through it."""
        ask = self.nvml.nvmlLib.hal_emulator_called
        ask.restype = ctypes.c_char_p
        return sorted(name.decode() for name in iter(map(ask, itertools.count()).__next__, None))

    def listen(self) -> None:
        """A rule that changes nothing."""
        self.nvml.nvmlLib.hal_emulator_faults(self.without.encode(), b"*=0")


def _allocate() -> None:
    """3 MiB of the first device, by this process."""
    cuda = ctypes.CDLL("libcuda.so.1")
    context, address = ctypes.c_void_p(), ctypes.c_uint64()
    assert cuda.cuInit(0) == 0
    assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
    assert cuda.cuCtxSetCurrent(context) == 0
    assert cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(3 << 20)) == 0


def _partition(run: _Run, *shapes: tuple[int, int]) -> list[Any]:
    """GPU instances of the first device with one compute instance each."""
    nvml = run.nvml
    gpu = nvml.nvmlDeviceGetHandleByIndex(0)
    nvml.nvmlDeviceSetMigMode(gpu, 1)
    made = []
    for profile, compute in shapes:
        instance = nvml.nvmlDeviceCreateGpuInstance(gpu, profile)
        made.append((instance, nvml.nvmlGpuInstanceCreateComputeInstance(instance, compute)))
    return made


def _heard() -> tuple[_Run, dict[Any, Reading], Process]:
    """A run in which everything was called once, with what it gave."""
    run = _Run()
    _allocate()
    device = run.machine.device
    device[0].nvidia_fan_percent, device[0].nvidia_fan_rpm = 40, 2000
    device[7].nvidia_links = 0
    run.without = os.environ["TEST_WITHOUT"]
    run.listen()
    run.backend.enumerate()
    run.backend.events()
    run.backend.events()
    run.backend.enumerate()
    good = {_value(r): r for r in run.sample()}
    (process,) = run.backend.processes(run.ids[:1], math.inf)
    run.backend.describe()
    run.backend.close()
    run.backend.enumerate()
    return run, good, process


def _statuses_calls() -> list[str]:
    return _heard()[0].called()


def _gpm_calls(run: _Run, id: str) -> list[str]:
    run.listen()
    run.backend.sample([Group.ACTIVITY], [id], math.inf)
    time.sleep(0.12)
    run.backend.sample([Group.ACTIVITY], [id], math.inf)
    run.backend.enumerate()
    return run.called()


def _gpm_whole_calls() -> list[str]:
    run = _Run()
    return _gpm_calls(run, run.ids[0])


def _gpm_mig_calls() -> list[str]:
    run = _Run()
    _partition(run, (9, 2))
    run.listen()
    run.backend.describe()
    return _gpm_calls(run, next(s.id for s in run.backend.enumerate().slices if s.parent is not None))


def _statuses() -> dict[str, Any]:
    from hal_nvidia import errors

    run, good, process = _heard()
    calls = run.called()
    wrong: list[str] = []
    for call in calls:
        for code in CODES:
            run.faults(f"{call}={code}")
            readings: list[Reading] = []
            processes: list[Process] = []
            for ask in (
                run.backend.enumerate,
                lambda into=readings: into.extend(run.sample()),
                lambda into=processes: into.extend(run.backend.processes(run.ids[:1], math.inf)),
                run.backend.events,
                run.backend.describe,
                run.backend.close,
            ):
                try:
                    ask()
                except HalError as error:
                    if error.vendor_code != code:
                        wrong.append(f"{call}={code}: {error!r}")
                except Exception as error:
                    wrong.append(f"{call}={code}: {error!r}")
            expected = errors.status(run.nvml.NVMLError(code))
            changed = 0
            for r in readings:
                if "gpm" in r.source.lower():
                    continue  # has tests of its own, because it needs time
                if r.status is Status.OK:
                    before = good.get(_value(r))
                    if r.labels.get("block") == "all" or r.name == "energy_joules_total":
                        continue  # instead of the blocks; and it grows
                    if before is None or before.value != r.value:
                        wrong.append(f"{call}={code}: {r}")
                elif good.get(_value(r)) is None or good[_value(r)].status is Status.OK:
                    changed += 1
                    if r.status is not expected or r.value is not None:
                        wrong.append(f"{call}={code}: {r.name} is {r.status}, not {expected}")
            for p in processes:
                told = (p.memory_bytes, p.compute_busy_ratio, p.busy_status)
                kept = p.memory_bytes == process.memory_bytes
                if not kept or (p.compute_busy_ratio is None) == (p.busy_status is Status.OK):
                    wrong.append(f"{call}={code}: {told}")
            what = [Status.STALE if code == NOT_FOUND else expected]  # nobody did anything
            if call == "nvmlDeviceGetProcessUtilization" and [p.busy_status for p in processes] != what:
                wrong.append(f"{call}={code}: {processes}")
            if call.startswith("nvmlDeviceGetPower") and not changed and call != "nvmlDeviceGetPowerUsage":
                wrong.append(f"{call}={code}: nobody noticed")
        run.faults(None)
    return {"calls": len(calls), "names": calls, "wrong": wrong[:20]}


def _gpm_statuses(run: _Run, id: str) -> dict[str, Any]:
    """Each call that GPM makes, when the first of two samples is read and when the second is."""
    from hal_nvidia import errors, gpm

    gpm._LEAST = 0.0
    run.listen()

    def figures(cost: Cost = Cost.SLOW) -> list[Reading]:
        found = run.backend.sample([Group.ACTIVITY], [id], math.inf, frozenset({cost}))
        return [
            r for r in found if r.source == "nvmlGpmMetricsGet" and r.name != "memory_bandwidth_busy_ratio"
        ]

    figures()
    figures()
    run.backend.enumerate()  # gives the samples back
    calls = [name for name in run.called() if name.startswith("nvmlGpm")]
    wrong: list[str] = []
    for call, code, before in itertools.product(calls, CODES, (0, 1)):
        run.faults(None)
        run.backend.enumerate()
        for _ in range(before):
            figures()
        run.faults(f"{call}={code}")
        expected = errors.status(run.nvml.NVMLError(code))
        if before and call in ("nvmlGpmQueryDeviceSupport", "nvmlGpmSampleAlloc"):
            continue  # of which only the first look makes use
        if call == "nvmlGpmSampleFree":
            run.backend.enumerate()
            continue
        if call == "nvmlGpmMetricsGet" and not before:
            expected = Status.STALE
        found = {(r.status, r.value) for r in figures()}
        if found != {(expected, None)}:
            wrong.append(f"{call}={code}, {before} before: {found}, not {expected}")
    for metric, code in itertools.product(gpm.METRICS, CODES):
        if metric == gpm.BUSY and "MIG" not in id:
            continue  # has it from nvmlDeviceGetUtilizationRates
        run.faults(f"metric {metric}={code}")
        expected = errors.status(run.nvml.NVMLError(errors.of_part(code)))
        cost = Cost.FAST if metric == gpm.BUSY else Cost.SLOW
        figures(cost)
        statuses = [r.status for r in figures(cost)]
        if expected not in statuses or Status.OK in statuses:
            wrong.append(f"metric {metric}={code}: {statuses}")
    return {"calls": len(calls), "wrong": wrong[:20]}


def _gpm_whole_statuses() -> dict[str, Any]:
    run = _Run()
    return _gpm_statuses(run, run.ids[0])


def _gpm_mig_statuses() -> dict[str, Any]:
    run = _Run()
    _partition(run, (9, 2))
    return _gpm_statuses(run, next(s.id for s in run.backend.enumerate().slices if s.parent is not None))


def _fields() -> dict[str, Any]:
    from hal_nvidia import errors

    run = _Run()
    good = {_value(r): r for r in run.sample()}
    run.backend.enumerate()
    (gpu,) = [run.backend._open().find(run.ids[0])]
    run.sample()
    fields = sorted({field for plan in gpu.plans.values() for field, _ in plan.fields})
    wrong: list[str] = []
    for field in fields:
        for code in CODES:
            run.faults(f"field {field}={code}")
            run.backend.enumerate()
            expected = errors.status(run.nvml.NVMLError(errors.of_part(code)))
            for r in run.sample():
                before = good[_value(r)]
                if "gpm" in r.source.lower():
                    continue
                if r.status is Status.OK:
                    if r.name != "energy_joules_total" and r.value != before.value:
                        wrong.append(f"field {field}={code}: {r}")
                elif before.status is Status.OK and (r.status is not expected or r.value is not None):
                    wrong.append(f"field {field}={code}: {r.name} is {r.status}, not {expected}")
    return {"calls": len(fields), "wrong": wrong[:20]}


def _absurd() -> dict[str, Any]:
    """A field of the machine, what it says, and the figure that must not say it."""
    run = _Run()
    device = run.machine.device[0]
    wrong = []
    for field, raw, name in (
        ("compute_busy_percent", 101, "compute_busy_ratio"),
        ("nvidia_encoder_percent", 0xFFFF, "encoder_busy_ratio"),
        ("temperature_celsius", 2**31 - 1, "temperature_celsius"),
        ("memory_temperature_celsius", 0xFFFF, "temperature_celsius"),
        ("power_milliwatts", 0xFFFFFFFF, "power_watts"),
        ("nvidia_graphics_max_megahertz", 0xFFFFFFFF, ""),
        ("nvidia_sm_megahertz", 0xFFFFFFFF, "clock_hertz"),
        ("nvidia_performance_state", 32, "performance_state"),
        ("nvidia_performance_state", 77, "performance_state"),
        ("nvidia_ecc", 7, "ecc_enabled"),
        ("nvidia_rows_pending", 2, "rows_remap_pending"),
        ("nvidia_pcie_replays", 0xFFFFFFFF, "pcie_replays_total"),
        ("memory_reserved_bytes", 1 << 60, "memory_reserved_bytes"),
        ("memory_bytes", 1 << 60, "memory_total_bytes"),
        ("nvidia_bar1_bytes", 0, "memory_used_bytes"),
        ("nvidia_bar1_used_bytes", 1 << 60, "memory_used_bytes"),
        ("nvidia_ofa_percent", 0xFFFF, "optical_flow_busy_ratio"),
        ("nvidia_compute_mode", 4, "compute_mode"),
        ("nvidia_mig", 5, "partition_mode"),
        ("nvidia_memory_power_milliwatts", 0x7FFFFFFF, "power_rail_watts"),
        ("nvidia_power_instant_milliwatts", 0x7FFFFFFF, "power_watts"),
        ("nvidia_memory_megahertz", 0x7FFFFFFF, "clock_hertz"),
        ("nvidia_pcie_rx_bytes", -2, "pcie_rx_bytes_total"),
        ("nvidia_pcie_naks_sent", 0xFFFFFFFF, "pcie_naks_total"),
        ("nvidia_throttled_reliability_ns", -2, "throttle_seconds_total"),
    ):
        before = getattr(device, field)
        old = {_value(r): r.status for r in run.sample()}
        setattr(device, field, raw)
        changed = {r.name for r in run.sample() if r.status is not Status.OK and old[_value(r)] is Status.OK}
        invented = [r for r in run.sample() if r.status is not Status.OK and r.value is not None]
        if invented or (name and name not in changed):
            wrong.append([field, raw, sorted(changed)])
        setattr(device, field, before)
    return {"wrong": wrong}


def _latency() -> dict[str, float]:
    run = _Run()
    gpu = run.nvml.nvmlDeviceGetHandleByIndex(0)
    begun = time.perf_counter()
    run.nvml.nvmlDeviceGetTemperature(gpu, 0)
    middle = time.perf_counter()
    run.nvml.nvmlDeviceGetPowerUsage(gpu)
    return {"temperature": middle - begun, "power": time.perf_counter() - middle}


def _lost() -> dict[str, Any]:
    run = _Run()
    run.sample(run.ids)
    run.machine.device[3].nvidia_lost = 1
    lost, good = run.ids[3], set(run.ids) - {run.ids[3]}
    readings = [*run.sample(run.ids), *run.sample(run.ids)]  # by the kept handle, then without one
    # It has no fan, and what GPM said is so for a tenth of a second.
    others = {"fan_ratio"} | {r.name for r in readings if r.source == "nvmlGpmMetricsGet"}
    count = len(run.backend.enumerate().devices)
    run.machine.device[3].nvidia_lost = 0
    run.sample(run.ids)
    back = run.sample([lost])
    return {
        "devices": [len(run.ids), count],
        "lost": sorted({r.status.value for r in readings if r.subject == lost and r.name not in others}),
        "good": all(
            r.status in (Status.OK, Status.UNSUPPORTED)
            for r in readings
            if r.subject in good and r.name not in others
        ),
        "back": any(r.status is Status.OK for r in back),
    }  # fmt: skip


def _versions() -> dict[str, Any]:
    run = _Run()
    _allocate()
    readings = {(r.name, *r.labels.values()): r for r in run.sample()}
    processes = run.backend.processes(run.ids[:1], math.inf)
    failures: list[str] = []
    check = run.nvml._nvmlCheckReturn

    def counting(status: int) -> int:
        if status in (13, 25, 26):
            failures.append(str(status))
        return int(check(status))

    run.nvml._nvmlCheckReturn = counting
    run.backend.sample([Group.MEMORY], run.ids[:1], math.inf)
    failures.clear()  # the first look at a new question may fall back
    run.backend.sample([Group.MEMORY], run.ids[:1], math.inf)
    run.backend.processes(run.ids[:1], math.inf)
    return {
        "processes": len(processes),
        "used": readings["memory_used_bytes", "vram"].value,
        "reserved": readings["memory_reserved_bytes", "vram"].status.value,
        "power": [readings["power_watts", "average"].value],
        "links": sorted({r.value for r in readings.values() if r.name == "link_up"}),
        "retried": failures,
    }


def _events() -> dict[str, Any]:
    run = _Run()
    assert run.backend.events() == []
    for index, code in ((1, 48), (2, 79)):
        run.machine.nvidia_xid[run.machine.nvidia_xids % lib.HAL_MACHINE_XIDS] = {
            "device": index,
            "code": code,
        }
        run.machine.nvidia_xids += 1
    found = [[run.ids.index(e.subject), e.code, e.kind.value] for e in run.backend.events()]
    return {"events": found, "again": run.backend.events()}


def _mig() -> dict[str, Any]:
    run = _Run()
    nvml = run.nvml
    made = _partition(run, (9, 2), (19, 0))
    slices = [s for s in run.backend.enumerate().slices if s.parent is not None]
    ids = [s.id for s in slices]
    readings = run.sample(ids)
    exposed = run.backend.expose(ids).env["CUDA_VISIBLE_DEVICES"]
    for instance, compute in made:
        nvml.nvmlComputeInstanceDestroy(compute)
        nvml.nvmlGpuInstanceDestroy(instance)
    run.backend.enumerate()
    gone = ""
    try:
        run.sample(ids)
    except HalError as error:
        gone = type(error).__name__
    figures = ("memory_total_bytes", "memory_used_bytes")
    return {
        "slices": [[s.profile, s.memory.bytes, s.compute_units, s.compute_ratio] for s in slices],
        "memory": [r.value for r in readings if r.name in figures and r.labels["heap"] == "vram"],
        "bar1": [r.value for r in readings if r.name == "memory_total_bytes" and r.labels["heap"] == "bar1"],
        "activity": sorted({(r.name, r.status.value) for r in readings if r.name.endswith("busy_ratio")}),
        "exposed": exposed == ",".join(s.uuid or "" for s in slices),
        "gone": gone,
    }


def _catalogue() -> dict[str, Any]:
    from hal.telemetry.catalogue import CATALOGUE

    run = _Run()
    wrong = []
    for cost in Cost:
        for r in run.backend.sample(list(Group), run.ids, math.inf, frozenset({cost})):
            metric = CATALOGUE[r.name]
            labelled = set(r.labels) == set(metric.labels)
            if (r.unit, cost) != (metric.unit, metric.cost) or not labelled:
                wrong.append(repr(r))
            if (r.value is None) == (r.status is Status.OK):
                wrong.append(repr(r))
    every = run.backend.sample(list(Group), run.ids, math.inf, EVERY_COST)
    twice = [key for key in map(_value, every) if list(map(_value, every)).count(key) > 1][:3]
    return {"wrong": wrong + list(map(str, twice))}


if __name__ == "__main__":
    print(json.dumps(globals()[f"_{sys.argv[1]}"]()))

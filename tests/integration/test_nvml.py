"""What the NVIDIA backend reads when something changes: GPM's windows, settings, events, storms, drivers.

Each test is one child process on an emulated machine; `_child` functions at the end are what it runs.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from hal.backend import Cost, Group
from hal.emulation.description import load
from hal.emulation.run import emulated
from hal.model import Reading
from hal_native import lib
from tests.conftest import HAL

# A driver of each generation, and what of these figures it has.
GENERATIONS = {"470.256.02": 0, "535.183.06": 1, "580.95.05": 2}
SINCE = {
    "memory_used_bytes": 0,
    "compute_busy_ratio": 0,
    "power_watts": 0,
    "temperature_celsius": 0,
    "throttle_active": 0,
    "memory_reserved_bytes": 1,
    "engine_active_ratio": 1,
    "pcie_naks_total": 1,
    "pcie_rx_bytes_total": 2,
    "optical_flow_busy_ratio": 2,
    "jpeg_busy_ratio": 2,
}


def ask(part: str, machine: str = "dgx-h100", **extra: str) -> Any:
    with emulated(load(machine)) as env:
        command = [sys.executable, "-m", "tests.integration.test_nvml", part]
        result = subprocess.run(command, env=env | extra, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_gpm_needs_two_samples_and_says_so() -> None:
    report = ask("gpm")
    assert {status for _, status, _ in report["first"].values()} == {"stale"}
    assert {value for value, _, _ in report["first"].values()} == {None}
    # Busy for 40 % at one end of the window and 60 % at the other.
    values = {name: value for name, (value, status, _) in report["second"].items() if status == "ok"}
    assert values["engine_active_ratio"] == pytest.approx(0.375)
    assert values["engine_occupancy_ratio"] == pytest.approx(0.25)
    assert values["tensor_active_ratio"] == pytest.approx(0.125)
    assert values["memory_bandwidth_active_ratio"] == pytest.approx(0.2)
    assert report["at once"] == report["second"]
    assert report["samples kept"] == 0


def test_mig_devices_have_utilisation_of_their_own() -> None:
    report = ask("mig")
    assert report["first"] == [["stale", None]] * 2
    assert report["busy"] == [["ok", 0.8], ["ok", 0.1]]
    assert report["engines"] == [["ok", 0.6], ["ok", 0.075]]
    assert report["whole"] == ["unsupported", None]  # NVML gives no rates of a GPU that is partitioned
    assert report["shared"] == ["unsupported", None, "it shares its GPU instance, which GPM counts as one"]


def test_before_hopper_nothing_is_made_up() -> None:
    report = ask("old_mig", "dgx-a100")
    assert report == {
        "busy": [None, "unsupported", "NVML has no GPM of this GPU: it came with Hopper"],
        "engine": [None, "unsupported", "NVML has no GPM of this GPU: it came with Hopper"],
    }


def test_what_is_set_is_read() -> None:
    report = ask("setters")
    assert report["power"] == [700.0, 400.0]
    assert report["power refused"] == [2, 2]
    assert report["clocks"] == [345e6, 1200e6, 345e6]
    assert report["memory clock"] == [2619e6, 1593e6]
    assert report["compute"] == ["default", "prohibited"]
    assert report["persistence"] == [1, 0]
    assert report["ecc"] == [1, 1, [1, 0], 0]
    assert report["partition"] == ["off", "mig"]


def test_a_storm_of_errors_rises() -> None:
    report = ask("storm")
    assert report["before"] == 0
    assert report["later"] > report["soon"] > 0
    assert report["uncorrected"] == 0


def test_events_of_every_kind() -> None:
    report = ask("events")
    assert report["kinds"] == [
        [1, "error", "xid", 48],
        [1, "error", "nvml_event", 0x200],
        [2, "error", "nvml_event", 0x2000],
        [2, "error", "nvml_event", 0x8000],
        [0, "partition_changed", "nvml_event", 0x100],
        [3, "lost", "nvml_event", 0x4000],
    ]
    assert report["ignored"] == []


def test_an_old_driver_has_fewer_events() -> None:
    report = ask("events", HAL_EMULATOR_NVIDIA_DRIVER="470.256.02")
    assert [kind for _, kind, *_ in report["kinds"]] == ["error", "partition_changed"]


def test_a_lost_gpu_is_told_of_once_and_watched_again() -> None:
    report = ask("lost")
    assert report["lost"] == [[3, "lost", ""]]
    assert report["again"] == []
    assert report["others"] == [[2, "error", "xid"]]
    assert report["back"] == [[3, "error", "xid"]]
    assert report["lost again"] == [[3, "lost", ""]]
    assert report["fell off the bus"] == [[4, "lost", "xid"]]


def test_processes_say_how_busy_they_keep_it() -> None:
    report = ask("processes")
    assert report["busy"] == [0.5, 0.25, "ok", 3 << 20]
    assert report["absurd"] == [None, "error", 3 << 20]
    assert report["old"] == [None, "unsupported", 3 << 20]


@pytest.mark.parametrize("driver", GENERATIONS)
def test_each_generation_gives_what_it_has(driver: str) -> None:
    report = ask("generation", HAL_EMULATOR_NVIDIA_DRIVER=driver)
    assert report["driver"] == driver
    assert report["statuses"] == {
        name: "ok" if GENERATIONS[driver] >= since else "unsupported" for name, since in SINCE.items()
    }


@pytest.mark.parametrize("driver", GENERATIONS)
@pytest.mark.parametrize("machine", ["dgx-a100", "dgx-h100"])
def test_each_generation_holds_to_the_rules(hal: Callable[..., Any], driver: str, machine: str) -> None:
    env = os.environ | {"HAL_EMULATOR_NVIDIA_DRIVER": driver}
    command = [*HAL, "emulate", machine, "--", *HAL, "backend", "check", "nvidia", "--json"]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
    report = json.loads(result.stdout)
    assert report["passed"], [r for r in report["results"] if r["outcome"] not in ("passed", "skipped")]


# ---- what the child runs -----------------------------------------------------------------------------


class _Run:
    def __init__(self) -> None:
        import pynvml

        from hal_nvidia import Backend

        self.nvml = pynvml
        self.backend = Backend()
        self.ids = [device.id for device in self.backend.enumerate().devices]
        self.machine = lib.hal_machine_open(os.environb[b"HAL_EMULATED_MACHINE"])
        self.gpu = pynvml.nvmlDeviceGetHandleByIndex(0)

    def sample(self, id: str | None = None, cost: Cost | None = None) -> list[Reading]:
        costs = frozenset(Cost if cost is None else {cost})
        return self.backend.sample(list(Group), [id or self.ids[0]], math.inf, costs)

    def read(self, name: str, id: str | None = None, **labels: str) -> Reading:
        found = [r for r in self.sample(id) if r.name == name and labels.items() <= r.labels.items()]
        return found[0]

    def event(self, index: int, kind: int, data: int) -> None:
        event = self.nvml.nvmlLib.hal_emulator_event
        assert event(index, ctypes.c_uint64(kind), data) == 0

    def cut(self, *shapes: tuple[int, int, int]) -> list[str]:
        """GPU instances, with so many compute instances of a profile each: ids of the slices."""
        self.nvml.nvmlDeviceSetMigMode(self.gpu, 1)
        for profile, compute, count in shapes:
            instance = self.nvml.nvmlDeviceCreateGpuInstance(self.gpu, profile)
            for _ in range(count):
                self.nvml.nvmlGpuInstanceCreateComputeInstance(instance, compute)
        return [s.id for s in self.backend.enumerate().slices if s.parent is not None]


def _until_measured(read: Callable[[], Reading]) -> Reading:
    """The first reading that is not the first of two samples."""
    deadline = time.monotonic() + 30
    while (reading := read()).status == "stale":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return reading


def _gpm() -> dict[str, Any]:
    from hal_nvidia import gpm

    run = _Run()
    device = run.machine.device[0]

    def figures() -> dict[str, Any]:
        found = [r for r in run.sample(cost=Cost.SLOW) if r.source == "nvmlGpmMetricsGet"]
        return {r.name: (r.value, r.status.value, r.detail) for r in found if not r.labels}

    device.compute_busy_percent = device.memory_busy_percent = 40
    first = figures()
    device.compute_busy_percent, device.memory_busy_percent = 60, 0
    time.sleep(0.12)
    second = figures()
    gpm._LEAST = math.inf  # less than which has passed
    at_once = figures()
    handles = run.backend._open()
    gpu = handles.find(run.ids[0])
    run.backend.enumerate()
    return {
        "first": first, "second": second, "at once": at_once, "samples kept": len(gpu._closing),
    }  # fmt: skip


def _mig() -> dict[str, Any]:
    run = _Run()
    large, shared_one, _, small = run.cut((9, 2, 1), (14, 0, 2), (19, 0, 1))
    ids = (large, small)
    for instance, busy in enumerate((80, 50, 10)):
        run.machine.device[0].nvidia_partition[instance].busy_percent = busy
    first = [run.read("compute_busy_ratio", id) for id in ids]
    busy = [_until_measured(lambda id=id: run.read("compute_busy_ratio", id)) for id in ids]
    engines = [_until_measured(lambda id=id: run.read("engine_active_ratio", id)) for id in ids]
    shared, whole = run.read("compute_busy_ratio", shared_one), run.read("compute_busy_ratio")
    return {
        "first": [[r.status, r.value] for r in first],
        "busy": [[r.status, r.value] for r in busy],
        "engines": [[r.status, round(r.value or 0, 6)] for r in engines],
        "shared": [shared.status, shared.value, shared.detail],
        "whole": [whole.status, whole.value],
    }


def _old_mig() -> dict[str, Any]:
    run = _Run()
    (id,) = run.cut((9, 2, 1))
    busy, engine = run.read("compute_busy_ratio", id), run.read("engine_active_ratio")
    return {
        "busy": [busy.value, busy.status, busy.detail],
        "engine": [engine.value, engine.status, engine.detail],
    }


def _setters() -> dict[str, Any]:
    run = _Run()
    nvml, gpu = run.nvml, run.gpu

    def refused(milliwatts: int) -> int:
        try:
            nvml.nvmlDeviceSetPowerManagementLimit(gpu, milliwatts)
        except nvml.NVMLError as failure:
            return int(failure.value)
        return 0

    def mode(name: str) -> str:
        (on,) = [r.labels["mode"] for r in run.sample() if r.name == name and r.value == 1]
        return on

    def value(name: str, **labels: str) -> Any:
        return run.read(name, **labels).value

    report: dict[str, Any] = {"power": [value("power_limit_watts")], "clocks": [], "memory clock": []}
    nvml.nvmlDeviceSetPowerManagementLimit(gpu, 400_000)
    report["power"].append(value("power_limit_watts"))
    report["power refused"] = [refused(1), refused(10_000_000)]
    report["clocks"].append(value("clock_hertz", domain="compute"))
    nvml.nvmlDeviceSetGpuLockedClocks(gpu, 1200, 1500)
    report["clocks"].append(value("clock_hertz", domain="compute"))
    nvml.nvmlDeviceResetGpuLockedClocks(gpu)
    report["clocks"].append(value("clock_hertz", domain="compute"))
    report["memory clock"].append(value("clock_hertz", domain="memory"))
    nvml.nvmlDeviceSetMemoryLockedClocks(gpu, 1593, 1593)
    report["memory clock"].append(value("clock_hertz", domain="memory"))
    report["compute"] = [mode("compute_mode")]
    nvml.nvmlDeviceSetComputeMode(gpu, nvml.NVML_COMPUTEMODE_PROHIBITED)
    report["compute"].append(mode("compute_mode"))
    report["persistence"] = [value("persistence_enabled")]
    nvml.nvmlDeviceSetPersistenceMode(gpu, 0)
    report["persistence"].append(value("persistence_enabled"))
    report["ecc"] = [value("ecc_enabled")]
    nvml.nvmlDeviceSetEccMode(gpu, 0)
    report["ecc"] += [value("ecc_enabled"), nvml.nvmlDeviceGetEccMode(gpu)]
    assert nvml.nvmlLib.hal_emulator_reset(0) == 0
    report["ecc"].append(value("ecc_enabled"))
    report["partition"] = [mode("partition_mode")]
    nvml.nvmlDeviceSetMigMode(gpu, 1)
    report["partition"].append(mode("partition_mode"))
    return report


def _storm() -> dict[str, Any]:
    run = _Run()

    def errors(severity: str) -> Any:
        labels = {"severity": severity, "lifetime": "volatile", "block": "dram"}
        return run.read("ecc_errors_total", **labels).value

    report = {"before": errors("corrected")}
    run.machine.device[0].nvidia_ecc_storm = 1_000_000
    report["soon"] = errors("corrected")
    time.sleep(0.01)
    return report | {"later": errors("corrected"), "uncorrected": errors("uncorrected")}


def _told(run: _Run) -> list[list[Any]]:
    return [[run.ids.index(e.subject), e.kind, e.code_space, e.code] for e in run.backend.events()]


def _events() -> dict[str, Any]:
    run = _Run()
    assert _told(run) == []
    for index, kind, data in ((1, 0, 48), (1, 0x200, 0), (2, 0x2000, 0), (2, 0x8000, 1)):
        run.event(index, kind, data)
    run.nvml.nvmlDeviceSetMigMode(run.gpu, 1)
    run.nvml.nvmlDeviceCreateGpuInstance(run.gpu, 19)
    run.event(3, 0x4000, 0)
    kinds = _told(run)
    run.event(1, 0x10, 0)  # a clock changed
    return {"kinds": kinds, "ignored": _told(run)}


def _lost() -> dict[str, Any]:
    run = _Run()

    def told() -> list[list[Any]]:
        return [one[:3] for one in _told(run)]

    assert told() == []
    device = run.machine.device[3]
    device.nvidia_lost = 1
    report = {"lost": told(), "again": told()}
    run.event(2, 0, 31)
    report["others"] = told()
    device.nvidia_lost = 0
    assert told() == []
    run.event(3, 0, 31)
    report["back"] = told()
    device.nvidia_lost = 1
    report["lost again"] = told()
    run.event(4, 0, 79)
    return report | {"fell off the bus": told()}


def _processes() -> dict[str, Any]:
    run = _Run()
    cuda = ctypes.CDLL("libcuda.so.1")
    context, address = ctypes.c_void_p(), ctypes.c_uint64()
    assert cuda.cuInit(0) == 0
    assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
    assert cuda.cuCtxSetCurrent(context) == 0
    assert cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(3 << 20)) == 0
    device = run.machine.device[0]

    def one() -> Any:
        (process,) = run.backend.processes(run.ids[:1], math.inf)
        assert process.pid == os.getpid()
        return process

    device.compute_busy_percent, device.memory_busy_percent = 50, 25
    p = one()
    report = {"busy": [p.compute_busy_ratio, p.memory_bandwidth_busy_ratio, p.busy_status, p.memory_bytes]}
    device.compute_busy_percent = 5000
    p = one()
    report["absurd"] = [p.compute_busy_ratio, p.busy_status, p.memory_bytes]
    run.nvml.nvmlLib.hal_emulator_faults(b"nvmlDeviceGetProcessUtilization=13", None)
    p = one()
    return report | {"old": [p.compute_busy_ratio, p.busy_status, p.memory_bytes]}


def _generation() -> dict[str, Any]:
    run = _Run()
    _until_measured(lambda: run.read("engine_active_ratio"))
    readings = run.sample()
    best = {
        name: min((r.status for r in readings if r.name == name), key=list(SINCE_ORDER).index)
        for name in SINCE
    }
    (device, *_) = run.backend.enumerate().devices
    return {"driver": device.driver, "statuses": best}


SINCE_ORDER = ("ok", "stale", "unsupported", "error", "denied")


if __name__ == "__main__":
    print(json.dumps(globals()[f"_{sys.argv[1]}"]()))

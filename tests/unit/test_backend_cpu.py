"""The CPU backend over a fabricated /proc and /sys."""

from __future__ import annotations

import math
import os
import platform
import time

import pytest

import hal_cpu
from hal.backend import Cost, GoneError, Group, HalError
from hal.model import Enforcement, Rung, SliceKind, Status

ID = "cpu:host"
MEMINFO = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    400 kB\n"
CPUINFO = "processor\t: 0\nmodel name\t: Imaginary 9000\nprocessor\t: 1\nmodel name\t: Imaginary 9000\n"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def package(root, number, microjoules):
    zone = root / f"sys/class/powercap/intel-rapl:{number}"
    write(zone / "name", f"package-{number}\n")
    write(zone / "energy_uj", f"{microjoules}\n")
    write(zone / "max_energy_range_uj", "10000000\n")
    write(zone / "constraint_0_power_limit_uw", "150000000\n")
    return zone


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "proc/meminfo", MEMINFO)
    write(tmp_path / "proc/cpuinfo", CPUINFO)
    write(tmp_path / "proc/stat", "cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 0 0 0 0\n")
    write(tmp_path / "sys/devices/system/cpu/online", "0-1\n")
    return tmp_path


@pytest.fixture
def backend(root):
    return hal_cpu.Backend(root=str(root))


@pytest.fixture
def change(monkeypatch):
    """Runs a function in place of the wait between two looks; the waits asked for are kept."""
    waits = []

    def install(action):
        def sleep(seconds):
            waits.append(seconds)
            action()

        monkeypatch.setattr(time, "sleep", sleep)
        return waits

    return install


def sample(backend, *groups, deadline=math.inf):
    readings = backend.sample(groups, [ID], deadline)
    return {(reading.name, *reading.labels.values()): reading for reading in readings}


def test_the_host(backend):
    inventory = backend.enumerate()
    (host,) = inventory.devices
    assert (host.id, host.vendor, host.model) == (ID, "cpu", "Imaginary 9000")
    assert host.architecture == platform.machine()
    assert host.compute_units == 2
    assert [(heap.name, heap.total_bytes) for heap in host.heaps] == [("sysmem", 1_024_000)]
    (slice_,) = inventory.slices
    assert (slice_.device, slice_.kind, slice_.memory.bytes) == (ID, SliceKind.WHOLE, 1_024_000)
    assert backend.enumerate() == inventory


def test_a_kernel_that_does_not_name_the_cpu(root, backend):
    write(root / "proc/cpuinfo", "processor\t: 0\nCPU part\t: 0xd40\n")
    (root / "sys/devices/system/cpu/online").unlink()
    (host,) = backend.enumerate().devices
    assert host.model == platform.machine()
    assert host.compute_units is None


def test_no_proc(tmp_path):
    with pytest.raises(HalError):
        hal_cpu.Backend(root=str(tmp_path)).enumerate()


def test_memory(backend):
    readings = sample(backend, Group.MEMORY)
    values = {name: reading.value for (name, _), reading in readings.items()}
    assert values == {
        "memory_total_bytes": 1_024_000,
        "memory_used_bytes": 614_400,
        "memory_free_bytes": 409_600,
        "memory_reserved_bytes": None,
    }
    used = readings["memory_used_bytes", "sysmem"]
    assert used.source == "/proc/meminfo MemTotal - MemAvailable"
    assert used.time == pytest.approx(time.time(), abs=5)
    assert readings["memory_reserved_bytes", "sysmem"].status is Status.UNSUPPORTED


def test_busy(root, backend, change):
    waits = change(lambda: write(root / "proc/stat", "cpu  130 0 100 870 0 0 0 0 0 0\n"))
    busy = sample(backend, Group.ACTIVITY)["compute_busy_ratio",]
    assert busy.value == pytest.approx(0.3)
    assert waits == [pytest.approx(0.1, abs=0.02)]
    assert busy.window_seconds is not None


def test_a_look_of_a_moment_ago_is_used(root, backend):
    sample(backend, Group.ACTIVITY)
    time.sleep(0.11)
    write(root / "proc/stat", "cpu  110 0 100 890 0 0 0 0 0 0\n")
    begun = time.monotonic()
    busy = sample(backend, Group.ACTIVITY)["compute_busy_ratio",]
    assert time.monotonic() - begun < 0.09
    assert busy.value == pytest.approx(0.1)
    assert busy.window_seconds == pytest.approx(0.11, abs=0.1)


def test_fast_figures_alone_are_never_waited_for(root, backend, monkeypatch):
    def busy(now):
        monkeypatch.setattr(time, "monotonic", lambda: now)
        found = backend.sample([Group.ACTIVITY, Group.POWER], [ID], math.inf, frozenset({Cost.FAST}))
        return next(reading for reading in found if reading.name == "compute_busy_ratio")

    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it slept"))
    first = busy(100.0)
    assert (first.value, first.status, first.window_seconds) == (None, Status.STALE, None)
    assert busy(100.01).value is None  # too soon for a window
    write(root / "proc/stat", "cpu  125 0 100 875 0 0 0 0 0 0\n")
    assert (busy(101.0).value, busy(101.0).window_seconds) == (0.25, 1.0)
    write(root / "proc/stat", "cpu  225 0 100 875 0 0 0 0 0 0\n")
    assert busy(101.05).value == 0.25  # the window before
    assert (busy(103.0).value, busy(103.0).window_seconds) == (1.0, 2.0)


def test_a_counter_that_stands_still_is_no_measurement(backend):
    busy = sample(backend, Group.ACTIVITY)["compute_busy_ratio",]
    assert (busy.value, busy.status) == (None, Status.ERROR)


def test_power_of_two_packages_over_the_end_of_a_counter(root, backend, change):
    package(root, 0, 1_000_000)
    package(root, 1, 9_000_000)

    def later():
        package(root, 0, 2_000_000)
        package(root, 1, 1_000_000)

    change(later)
    readings = sample(backend, Group.POWER)
    power = readings["power_watts",]
    assert power.value * power.window_seconds == pytest.approx(3.0)
    assert readings["power_limit_watts",].value == 300


def test_a_zone_inside_a_package_is_not_counted(root, backend, change):
    package(root, 0, 0)
    write(root / "sys/class/powercap/intel-rapl:0:0/name", "core\n")
    change(lambda: package(root, 0, 500_000))
    power = sample(backend, Group.POWER)["power_watts",]
    assert power.value * power.window_seconds == pytest.approx(0.5)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_power_that_this_user_may_not_read(root, backend):
    (package(root, 0, 0) / "energy_uj").chmod(0)
    assert sample(backend, Group.POWER)["power_watts",].status is Status.DENIED


def test_power_that_the_kernel_refuses(root, backend, monkeypatch):
    zone = package(root, 0, 0)
    read = type(zone).read_text

    def refuse(path, *arguments, **options):
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *arguments, **options)

    monkeypatch.setattr(type(zone), "read_text", refuse)
    power = sample(backend, Group.POWER)["power_watts",]
    assert (power.value, power.status) == (None, Status.DENIED)
    assert "Permission denied" in power.detail


def test_temperature_of_the_hottest_package(root, backend):
    for number, (name, degrees) in enumerate([("coretemp", 41_000), ("coretemp", 47_500), ("nvme", 90_000)]):
        write(root / f"sys/class/hwmon/hwmon{number}/name", f"{name}\n")
        write(root / f"sys/class/hwmon/hwmon{number}/temp1_input", f"{degrees}\n")
    assert sample(backend, Group.TEMPERATURE)["temperature_celsius", "core"].value == 47.5


def test_a_machine_without_sensors(backend):
    readings = sample(backend, Group.POWER, Group.TEMPERATURE)
    assert len(readings) == 3
    assert {(reading.value, reading.status) for reading in readings.values()} == {(None, Status.UNSUPPORTED)}


def test_only_the_groups_asked_for(backend):
    assert sample(backend) == {}
    assert {name for name, *_ in sample(backend, Group.TEMPERATURE)} == {"temperature_celsius"}


def test_a_deadline_that_has_passed(backend):
    begun = time.monotonic()
    readings = sample(backend, *Group, deadline=begun)
    assert time.monotonic() - begun < 0.09
    assert all(reading.value is None for reading in readings.values())
    assert readings["compute_busy_ratio",].status is Status.STALE
    assert readings["memory_used_bytes", "sysmem"].status is Status.STALE


@pytest.mark.parametrize("call", ["sample", "processes", "expose"])
def test_another_id(backend, call):
    arguments = {"sample": ([Group.MEMORY], ["cpu:1"], math.inf), "processes": (["cpu:1"], math.inf)}
    with pytest.raises(GoneError, match="cpu:1"):
        getattr(backend, call)(*arguments.get(call, (["cpu:1"],)))


def test_processes_are_the_largest(root, backend):
    for pid in range(1, 41):
        write(root / f"proc/{pid}/statm", f"9999 {pid} 0 0 0 0 0\n")
        write(root / f"proc/{pid}/comm", f"program-{pid}\n")
    (root / "proc/41").mkdir()  # has ended
    (root / "proc/40/comm").unlink()
    found = backend.processes([ID], math.inf)
    assert [process.pid for process in found] == list(range(40, 8, -1))
    assert (found[0].name, found[1].name) == (None, "program-39")
    assert found[0].memory_bytes == 40 * os.sysconf("SC_PAGE_SIZE")


def test_the_host_cannot_be_hidden_or_limited(backend):
    assert backend.expose([ID]).env == backend.expose([]).env == {}
    assert backend.limits() == Enforcement(Rung.NONE, Rung.NONE)
    backend.close()
    backend.close()

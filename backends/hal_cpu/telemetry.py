"""How it is doing: memory, and what two counters did in a window between two looks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hal.backend import EVERY_COST, Cost, Group, Value
from hal.backend.table import LATE
from hal.model import Reading, Scope, Status
from hal_cpu import conv, device, driver, errors

__all__ = ["Sampler"]

_SHORTEST = 0.1  # seconds: ten ticks of the kernel's clock
_LONGEST = 60.0  # seconds after which an earlier look says nothing of now


_FIRST = Value(None, Status.STALE, "a first look has no earlier one to be compared with")
_NO_SENSOR = "the kernel has no such figure of the host"
_NO_LINK = "the host is the end of others' links, and has none of its own"
_NO_DRIVER = "the kernel tells no such thing of the host here"
# What groups that a host has nothing of are answered with.
_NONE: tuple[tuple[Group, Cost, str, str, dict[str, str], str], ...] = (
    (Group.CLOCKS, Cost.FAST, "clock_hertz", "hertz", {"domain": "compute"}, "each core has its own"),
    (Group.THROTTLE, Cost.FAST, "throttle_active", "bool", {"reason": "other"}, _NO_SENSOR),
    (Group.PCIE, Cost.FAST, "pcie_generation", "count", {}, _NO_LINK),
    (Group.LINKS, Cost.FAST, "link_up", "bool", {"link": "0"}, _NO_LINK),
    (Group.ERRORS, Cost.SLOW, "ecc_errors_total", "count",
     {"severity": "corrected", "lifetime": "volatile", "block": "all"}, _NO_DRIVER),
    (Group.STATE, Cost.STATIC, "ecc_enabled", "bool", {}, _NO_DRIVER),
)  # fmt: skip


class _Look(NamedTuple):
    """Both counters at one moment; where one cannot be read, why."""

    time: float  # seconds, monotonic
    jiffies: conv.Jiffies | Exception
    microjoules: dict[Path, int] | Exception  # by RAPL zone


class Sampler:
    """Remembers its last look, so that a caller who comes back has nothing to wait for."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._last: _Look | None = None
        self._told: tuple[_Look, _Look] | None = None  # the last window

    def sample(
        self,
        groups: Sequence[Group],
        ids: Sequence[str],
        deadline: float,
        costs: frozenset[Cost] = EVERY_COST,
    ) -> list[Reading]:
        """Readings of the host. Raises GoneError for another id.

        Only with slow figures among those asked for, a call waits up to 0.1 s for a window; without, the
        first has none, and one that comes too soon has the window before.
        """
        device.check(ids)
        if not ids:
            return []
        readings = [
            _reading(name, unit, Value(None, Status.UNSUPPORTED, why), "/proc", Scope.DEVICE, None, **labels)
            for group, cost, name, unit, labels, why in _NONE
            if group in groups and cost in costs
        ]
        if Cost.FAST not in costs:
            return readings
        if Group.MEMORY in groups:
            readings += self._memory(deadline)
        if Group.ACTIVITY in groups or Group.POWER in groups:
            window = self._window(deadline) if Cost.SLOW in costs else self._at_once()
            without = LATE if Cost.SLOW in costs else _FIRST
            if Group.ACTIVITY in groups:
                readings += _activity(window, without)
            if Group.POWER in groups:
                readings += [_power(window, without), self._power_limit(deadline)]
        if Group.TEMPERATURE in groups:
            readings.append(self._temperature(deadline))
        return readings

    def _memory(self, deadline: float) -> list[Reading]:
        try:
            figures = conv.meminfo((self._root / "proc/meminfo").read_text())
            total, free = Value(figures["MemTotal"]), Value(figures["MemAvailable"])
            used = Value(figures["MemTotal"] - figures["MemAvailable"])
        except (OSError, KeyError) as failure:
            total = used = free = _failed(failure)
        if time.monotonic() >= deadline:
            total = used = free = LATE
        reserved = Value(None, Status.UNSUPPORTED, "MemTotal is without what the kernel keeps")
        rows = (
            ("total", total, "MemTotal"),
            ("used", used, "MemTotal - MemAvailable"),
            ("free", free, "MemAvailable"),
            ("reserved", reserved, "MemTotal"),
        )
        return [
            _reading(f"memory_{name}_bytes", "bytes", value, f"/proc/meminfo {source}", heap="sysmem")
            for name, value, source in rows
        ]

    def _window(self, deadline: float) -> tuple[_Look, _Look] | None:
        """Two looks at least 0.1 s apart; None when the deadline comes first."""
        now = time.monotonic()
        before = self._last
        if before is None or now - before.time > _LONGEST:
            before = self._last = self._look()
        wait = before.time + _SHORTEST - time.monotonic()
        if max(now, now + wait) >= deadline:
            return None
        time.sleep(max(0.0, wait))
        self._told = before, self._look()
        self._last = self._told[1]
        return self._told

    def _at_once(self) -> tuple[_Look, _Look] | None:
        """The window since the last look, or the one before when that was just now; None at first."""
        now, before = time.monotonic(), self._last
        if before is None or now - before.time > _LONGEST:
            self._last, self._told = self._look(), None
        elif now - before.time >= _SHORTEST:
            self._told = before, self._look()
            self._last = self._told[1]
        return self._told

    def _look(self) -> _Look:
        jiffies: conv.Jiffies | Exception
        energy: dict[Path, int] | Exception
        try:
            jiffies = conv.jiffies((self._root / "proc/stat").read_text())
        except (OSError, ValueError) as failure:
            jiffies = failure
        try:
            energy = {zone: int((zone / "energy_uj").read_text()) for zone in driver.zones(self._root)}
        except (OSError, ValueError) as failure:
            energy = failure
        return _Look(time.monotonic(), jiffies, energy)

    def _power_limit(self, deadline: float) -> Reading:
        """The long-term limit of all packages together."""
        zones = driver.zones(self._root)
        value = Value(None, Status.UNSUPPORTED, "no RAPL package")
        try:
            limits = [int((zone / "constraint_0_power_limit_uw").read_text()) for zone in zones]
            if limits:
                value = Value(sum(limits) / 1_000_000)
        except (OSError, ValueError) as failure:
            value = _failed(failure)
        if time.monotonic() >= deadline:
            value = LATE
        source = "intel-rapl constraint_0_power_limit_uw"
        return _reading("power_limit_watts", "watts", value, source, Scope.PACKAGE)

    def _temperature(self, deadline: float) -> Reading:
        """The hottest package."""
        sensors = driver.sensors(self._root)
        value = Value(None, Status.UNSUPPORTED, "no coretemp or k10temp")
        try:
            if sensors:
                value = Value(max(int(sensor.read_text()) for sensor in sensors) / 1000)
        except (OSError, ValueError) as failure:
            value = _failed(failure)
        if time.monotonic() >= deadline:
            value = LATE
        return _reading(
            "temperature_celsius", "celsius", value, "hwmon temp1_input", Scope.PACKAGE, sensor="core"
        )


def _activity(window: tuple[_Look, _Look] | None, without: Value) -> list[Reading]:
    source, seconds = "/proc/stat", None
    value = without
    if window is not None:
        before, after = window
        seconds = after.time - before.time
        value = _ratio(before.jiffies, after.jiffies)
    bandwidth = Value(None, Status.UNSUPPORTED, "the kernel does not say")
    return [
        _reading("compute_busy_ratio", "ratio", value, source, seconds=seconds),
        _reading("memory_bandwidth_busy_ratio", "ratio", bandwidth, source),
    ]


def _ratio(before: conv.Jiffies | Exception, after: conv.Jiffies | Exception) -> Value:
    if isinstance(before, Exception):
        return _failed(before)
    if isinstance(after, Exception):
        return _failed(after)
    total = after.total - before.total
    if total <= 0:
        return Value(None, Status.ERROR, "the counter did not move")
    return Value(min(1.0, max(0.0, (after.busy - before.busy) / total)))


def _power(window: tuple[_Look, _Look] | None, without: Value) -> Reading:
    source = "intel-rapl energy_uj"
    if window is None:
        return _reading("power_watts", "watts", without, source, Scope.PACKAGE)
    before, after = window
    seconds = after.time - before.time
    value = _watts(before.microjoules, after.microjoules, seconds)
    return _reading("power_watts", "watts", value, source, Scope.PACKAGE, seconds)


def _watts(before: dict[Path, int] | Exception, after: dict[Path, int] | Exception, seconds: float) -> Value:
    """The mean power of all packages over the window."""
    if isinstance(before, Exception):
        return _failed(before)
    if isinstance(after, Exception):
        return _failed(after)
    if not after:
        return Value(None, Status.UNSUPPORTED, "no RAPL package")
    if after.keys() != before.keys():
        return Value(None, Status.ERROR, "a RAPL package came or went")
    try:
        joules = sum(
            conv.energy_joules(before[zone], after[zone], int((zone / "max_energy_range_uj").read_text()))
            for zone in after
        )
    except (OSError, ValueError) as failure:
        return _failed(failure)
    return Value(joules / seconds)


def _failed(failure: Exception) -> Value:
    return Value(None, errors.status(failure), str(failure))


def _reading(
    name: str,
    unit: str,
    value: Value,
    source: str,
    scope: Scope = Scope.DEVICE,
    seconds: float | None = None,
    **labels: str,
) -> Reading:
    return Reading(
        subject=device.ID,
        name=name,
        value=value.value,
        unit=unit,
        status=value.status,
        scope=scope,
        labels=labels,
        window_seconds=seconds,
        time=time.time(),
        source=source,
        detail=value.detail,
    )

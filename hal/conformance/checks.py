"""The checks. Each is a function over a subject, with the rule that it holds a backend to as docstring."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from hal.backend import (
    Backend,
    Cost,
    Describes,
    Exposes,
    GoneError,
    Group,
    HalError,
    Limits,
    ListsProcesses,
    Watches,
)
from hal.model import (
    Enforcement,
    Inventory,
    MemoryMode,
    Portrait,
    Probe,
    ProbeState,
    Reading,
    Slice,
    SliceKind,
    Status,
)
from hal.telemetry.catalogue import CATALOGUE

__all__ = ["CHECKS", "Broken", "Check", "Subject"]

_VALUED = {Status.OK, Status.ESTIMATED, Status.SATURATED}
_SENTINELS = {0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF}
# What a figure of a unit can be on any hardware there is.
_PLAUSIBLE: dict[str, tuple[float, float]] = {
    "bytes": (0, 1 << 60),
    "ratio": (0, 1),
    "watts": (0, 20_000),
    "celsius": (-60, 200),
    "hertz": (0, 1e11),
    "bool": (0, 1),
    "count": (0, 1e15),
    "seconds": (0, 1e10),
    "joules": (0, 1e14),
    "bytes_per_second": (0, 1e14),
    "rpm": (0, 100_000),
}


class Broken(AssertionError):
    """A rule is broken; ``str()`` says where."""


class Subject:
    """A backend under test, and the way to make another of the same."""

    def __init__(self, make: Callable[[], Backend]) -> None:
        self.make = make
        self.backend = make()
        self._inventory: Inventory | None = None

    @property
    def inventory(self) -> Inventory:
        if self._inventory is None:
            self._inventory = self.backend.enumerate()
        return self._inventory

    @property
    def ids(self) -> list[str]:
        partitions = [one.id for one in self.inventory.slices if one.kind is SliceKind.PARTITION]
        return [device.id for device in self.inventory.devices] + partitions

    def sample(self, groups: Iterable[Group] = tuple(Group), **options: Any) -> list[Reading]:
        return self.backend.sample(list(groups), self.ids, time.monotonic() + 30, **options)

    def close(self) -> None:
        self.backend.close()


class Check(NamedTuple):
    name: str
    rule: str
    body: Callable[[Subject], None]
    needs: type[Any] | None
    needs_devices: bool


CHECKS: list[Check] = []


def _check(
    needs: type[Any] | None = None, *, needs_devices: bool = True
) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    def register(body: Callable[[Subject], None]) -> Callable[[Subject], None]:
        CHECKS.append(Check(body.__name__, (body.__doc__ or "").strip(), body, needs, needs_devices))
        return body

    return register


def _must(condition: object, what: str) -> None:
    if not condition:
        raise Broken(what)


# ---- probing and enumerating --------------------------------------------------------------------


@_check(needs_devices=False)
def probe_says_why(subject: Subject) -> None:
    """A probe gives a Probe, the same twice, and a reason whenever it is not ready."""
    first, second = subject.backend.probe(), subject.backend.probe()
    _must(isinstance(first, Probe), "probe() gives no Probe")
    _must(first == second, f"two probes differ: {first} and {second}")
    _must(first.state is ProbeState.READY or first.reason, f"{first.state} without a reason")


@_check()
def ids_are_ids(subject: Subject) -> None:
    """Ids are "vendor:uuid" or "vendor:pci-bdf", unique, and never an index."""
    vendor = re.escape(subject.backend.name)
    ids = [device.id for device in subject.inventory.devices]
    _must(ids, "ready, but no devices")
    for device in subject.inventory.devices:
        _must(re.fullmatch(rf"{vendor}:[\w.:-]{{2,}}", device.id), f"{device.id} is no id")
        _must(device.vendor == subject.backend.name, f"{device.id} is of vendor {device.vendor}")
        _must(
            not re.fullmatch(rf"{vendor}:(gpu|card|device)?-?\d{{1,3}}", device.id), f"{device.id}: an index"
        )
    slices = [one.id for one in subject.inventory.slices]
    for found in (ids, slices):
        _must(len(set(found)) == len(found), f"ids occur twice: {sorted(found)}")


@_check()
def ids_survive(subject: Subject) -> None:
    """The same devices have the same ids when enumerated again, also by another instance."""
    before = {device.id for device in subject.inventory.devices}
    again = {device.id for device in subject.backend.enumerate().devices}
    _must(again == before, f"another enumeration: {again ^ before}")
    other = subject.make()
    try:
        anew = {device.id for device in other.enumerate().devices}
    finally:
        other.close()
    _must(anew == before, f"another instance: {anew ^ before}")


@_check()
def slices_form_a_tree(subject: Subject) -> None:
    """Every device has one whole slice, which is the root of its others."""
    by_id = {one.id: one for one in subject.inventory.slices}
    devices = {device.id for device in subject.inventory.devices}
    for device in devices:
        roots = [one for one in by_id.values() if one.device == device and one.parent is None]
        _must(len(roots) == 1, f"{device} has {len(roots)} roots")
        _must(roots[0].kind is SliceKind.WHOLE, f"the root of {device} is {roots[0].kind}")
    for one in by_id.values():
        _must(one.device in devices, f"{one.id} is of no device")
        _must(one.parent is None or one.parent in by_id, f"{one.id} has no parent {one.parent}")
        _must(
            one.parent is None or by_id[one.parent].device == one.device, f"{one.id}: another device's child"
        )


@_check()
def exclusive_memory_fits(subject: Subject) -> None:
    """Exclusive memory of sibling slices never sums to more than their parent has."""
    children: dict[str, list[Slice]] = {}
    for one in subject.inventory.slices:
        if one.parent is not None and one.memory.mode is MemoryMode.EXCLUSIVE:
            children.setdefault(one.parent, []).append(one)
    by_id = {one.id: one for one in subject.inventory.slices}
    for parent, siblings in children.items():
        whole = by_id[parent].memory.bytes
        total = sum(one.memory.bytes or 0 for one in siblings)
        _must(whole is None or total <= whole, f"{parent}: {total} bytes in slices, {whole} in all")


@_check()
def links_end_at_devices(subject: Subject) -> None:
    """A link joins two devices that are here; an unknown bandwidth has no value."""
    devices = {device.id for device in subject.inventory.devices}
    for link in subject.inventory.links:
        _must({link.a, link.b} <= devices and link.a != link.b, f"a link from {link.a} to {link.b}")
        known = link.bandwidth_bytes_per_second is not None
        _must(known or link.status not in _VALUED, f"{link.a} to {link.b}: {link.status} without a value")
        _must(link.count is None or link.count > 0, f"{link.a} to {link.b}: {link.count} links")


# ---- sampling -----------------------------------------------------------------------------------


@_check()
def readings_are_in_the_catalogue(subject: Subject) -> None:
    """Every reading has a name, unit and labels of the catalogue, a subject that was asked for, a source."""
    for reading in subject.sample():
        metric = CATALOGUE.get(reading.name)
        where = f"{reading.subject} {reading.name}"
        if metric is None:
            raise Broken(f"{where} is not in the catalogue")
        _must(reading.unit == metric.unit, f"{where}: unit {reading.unit}, not {metric.unit}")
        _must(set(reading.labels) <= set(metric.labels), f"{where}: labels {reading.labels}")
        _must(reading.subject in subject.ids, f"{where} was not asked for")
        _must(reading.source and reading.time, f"{where} without source or time")


@_check()
def a_figure_is_given_once(subject: Subject) -> None:
    """One sample gives a figure with its labels once for each subject."""
    seen = [(r.subject, r.name, tuple(sorted(r.labels.items()))) for r in subject.sample()]
    twice = {key for key in seen if seen.count(key) > 1}
    _must(not twice, f"given more than once: {sorted(twice)[:3]}")


@_check()
def no_value_without_a_measurement(subject: Subject) -> None:
    """A value is there if and only if the status says that it was measured or derived."""
    for reading in subject.sample():
        fits = (reading.value is not None) == (reading.status in _VALUED)
        _must(fits, f"{reading.subject} {reading.name}: {reading.status} with {reading.value}")


@_check()
def values_are_plausible(subject: Subject) -> None:
    """No sentinel of the vendor's passes, and no value that no hardware can have."""
    for reading in subject.sample():
        if reading.value is None:
            continue
        where = f"{reading.subject} {reading.name} is {reading.value}"
        low, high = _PLAUSIBLE[reading.unit]
        _must(low <= reading.value <= high, where)
        _must(reading.unit == "bytes" or reading.value not in _SENTINELS, f"{where}, a sentinel")


@_check()
def memory_adds_up(subject: Subject) -> None:
    """Of each heap, what is used, free and reserved is not more than there is."""
    heaps: dict[tuple[str, str], dict[str, float]] = {}
    for reading in subject.sample([Group.MEMORY]):
        if reading.value is not None:
            heaps.setdefault((reading.subject, reading.labels["heap"]), {})[reading.name] = reading.value
    for heap, figures in heaps.items():
        total = figures.get("memory_total_bytes")
        parts = sum(value for name, value in figures.items() if name != "memory_total_bytes")
        _must(total is None or parts <= total * 1.01, f"{heap}: {figures}")


@_check()
def only_what_is_asked_for(subject: Subject) -> None:
    """Each group alone gives readings of that group for every device, and of no other."""
    devices = {device.id for device in subject.inventory.devices}
    for group in Group:
        readings = subject.sample([group])
        others = {r.name for r in readings if CATALOGUE[r.name].group is not group}
        _must(not others, f"asked for {group}, got {sorted(others)}")
        missing = devices - {r.subject for r in readings}
        _must(not missing, f"nothing of {group} for {sorted(missing)}")
    _must(not subject.sample([]), "readings without a group")


@_check()
def only_what_it_may_cost(subject: Subject) -> None:
    """Figures of other cost classes than asked for are not read."""
    for cost in Cost:
        readings = subject.sample(costs=frozenset({cost}))
        others = {r.name for r in readings if CATALOGUE[r.name].cost is not cost}
        _must(not others, f"asked for {cost} ones, got {sorted(others)}")


@_check()
def an_unknown_id_is_gone(subject: Subject) -> None:
    """Sampling what is not there raises GoneError and names it."""
    nobody = f"{subject.backend.name}:no-such-device"
    try:
        subject.backend.sample([Group.MEMORY], [nobody], time.monotonic() + 5)
    except GoneError as error:
        _must("no-such-device" in str(error), f"the error does not name it: {error}")
    else:
        raise Broken("no error")


@_check()
def late_figures_are_stale(subject: Subject) -> None:
    """After the deadline nothing is read: stale readings without a value, at once."""
    start = time.monotonic()
    readings = subject.backend.sample([Group.MEMORY, Group.POWER], subject.ids, start - 1)
    _must(readings, "no readings at all")
    fresh = [r.name for r in readings if r.value is not None]
    _must(not fresh, f"read after the deadline: {fresh[:3]}")
    _must(any(r.status is Status.STALE for r in readings), "none is marked stale")


# ---- the optional groups ------------------------------------------------------------------------


@_check(ListsProcesses)
def processes_are_of_these_devices(subject: Subject) -> None:
    """Processes have a pid, are on a device that was asked for, and a size or a reason."""
    for process in subject.backend.processes(subject.ids, time.monotonic() + 30):  # type: ignore[attr-defined]
        _must(process.pid > 0 and process.device in subject.ids, f"{process}")
        _must((process.memory_bytes is not None) == (process.status in _VALUED), f"{process}")
        busy = process.compute_busy_ratio
        _must(busy is None or (0 <= busy <= 1 and process.busy_status in _VALUED), f"{process}")


@_check(Exposes)
def exposing_nothing_hides_all(subject: Subject) -> None:
    """What shows some devices and what shows none set the same variables, to different values."""
    ids = [device.id for device in subject.inventory.devices]
    some, none = subject.backend.expose(ids[:1]).env, subject.backend.expose([]).env  # type: ignore[attr-defined]
    _must(not some or none, f"nothing hides what {some} shows")
    _must(all(some.get(name) != value for name, value in none.items()), f"{some} and {none}")


@_check(Limits)
def limits_are_rungs(subject: Subject) -> None:
    """Who can hold a part of a device to its limit is said in hal's words."""
    _must(isinstance(subject.backend.limits(), Enforcement), "limits() gives no Enforcement")  # type: ignore[attr-defined]


@_check(Watches)
def watching_never_waits(subject: Subject) -> None:
    """Asking for events returns at once, and they are of devices that are here."""
    subject.backend.events()  # type: ignore[attr-defined]
    start = time.monotonic()
    events = subject.backend.events()  # type: ignore[attr-defined]
    _must(time.monotonic() - start < 1.0, "it waited")
    _must(all(event.subject in subject.ids for event in events), f"{events}")


@_check(Describes)
def describes_what_is_here(subject: Subject) -> None:
    """A description is of devices that are here, and has no figure that the hardware did not give."""
    devices = {device.id for device in subject.inventory.devices}
    found = subject.backend.describe()  # type: ignore[attr-defined]
    _must(isinstance(found, Portrait), "describe() gives no Portrait")
    _must(found.devices.keys() <= devices, f"described, but not here: {found.devices.keys() - devices}")
    for id, figures in found.devices.items():
        absurd = [
            f"{field} is {value}"
            for field, value in figures.items()
            if value is None or (isinstance(value, int) and value > 0xFF and value in _SENTINELS)
        ]
        _must(not absurd, f"{id}: {', '.join(absurd)}")


@_check()
def closing_twice_is_no_error(subject: Subject) -> None:
    """A closed backend may be closed again, and opens again or says what is in the way."""
    subject.backend.close()
    subject.backend.close()
    try:
        subject.backend.enumerate()
    except HalError:
        return

"""The merged picture of a machine: every vendor's devices side by side, never the first vendor only."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec.structs import replace

from hal.backend import EVERY_COST, Cost, GoneError, Group
from hal.model import (
    Device,
    Enforcement,
    Event,
    Exposure,
    Hold,
    Inventory,
    Portrait,
    Probe,
    Process,
    Reading,
    Rung,
    Status,
)
from hal.registry import FAILED, Source, discover

__all__ = ["Machine"]

_EXPOSED = 1024  # sets of devices whose exposure is remembered
_ASKED = 16  # ways of asking that are remembered side by side
UNENFORCED = Enforcement(memory=Rung.NONE, compute=Rung.NONE)


class Machine:
    """The accelerators of this machine, and its CPU.

    Opens vendor libraries on first use and closes them with ``close()`` or at the end of a ``with``.
    Not for use by several threads at once.
    """

    def __init__(self, sources: Sequence[Source] | None = None) -> None:
        self._sources = list(discover() if sources is None else sources)
        self._inventory: Inventory | None = None
        self._owner: dict[str, Source] = {}
        self._parts: dict[str, Inventory] = {}  # by source: what it last showed
        self._last: dict[str, dict[object, list[Reading]]] = {}  # by source and what was asked: what it said
        self._limits: dict[str, Enforcement] = {}
        self._exposed: dict[tuple[str, tuple[str, ...]], Exposure] = {}  # by source, while it shows the same

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for source in self._sources:
            source.close()

    def probes(self) -> dict[str, Probe]:
        """What each backend found, by backend name."""
        return {source.name: source.probe for source in self._sources}

    def inventory(self, *, refresh: bool = False) -> Inventory:
        """All devices, slices and links; ids are the same on every call. Never raises for a vendor.

        A vendor whose library is lost keeps the devices that it last showed; their readings are stale.
        """
        if self._inventory is None or refresh:
            if refresh:
                for source in self._sources:
                    source.look_again()
            for source, part in self._ask_all(self._sources, "enumerate"):
                if part is not FAILED:
                    self._parts[source.name] = part
            merged = Inventory()
            self._owner = {}
            for source in self._sources:
                part = self._parts.get(source.name, Inventory())
                self._owner |= {device.id: source for device in part.devices}
                self._owner |= {one.id: source for one in part.slices if one.parent is not None}
                merged = Inventory(
                    merged.devices + part.devices, merged.slices + part.slices, merged.links + part.links
                )
            if merged != self._inventory or len(self._exposed) >= _EXPOSED:
                self._exposed.clear()
            self._inventory = merged
        return self._inventory

    def find(self, text: str) -> Device:
        """The device with this id, or the only one whose id contains the text.

        Raises GoneError when there is none or more than one.
        """
        devices = self.inventory().devices
        exact = [device for device in devices if device.id == text]
        partial = [device for device in devices if text.lower() in device.id.lower()]
        found = exact or partial
        if len(found) == 1:
            return found[0]
        if not found:
            known = ", ".join(device.id for device in devices) or "there is none"
            raise GoneError(f"no device '{text}' here; the devices are: {known}")
        raise GoneError(f"'{text}' fits {len(found)} devices: {', '.join(d.id for d in found)}")

    def sample(
        self,
        groups: Iterable[Group] | None = None,
        ids: Iterable[str] | None = None,
        *,
        timeout: float = 5.0,
        costs: frozenset[Cost] = EVERY_COST,
    ) -> list[Reading]:
        """Read groups (all) of devices and partitions (all) now; ``timeout`` in seconds for all of it.

        All vendors are asked at the same time. One that is lost gives what it last said, marked stale.
        """
        wanted = tuple(Group) if groups is None else tuple(groups)
        deadline = time.monotonic() + timeout
        owned = self._by_source(ids)
        begun = [(s, own, s.begin("sample", list(wanted), own, deadline, costs)) for s, own in owned]
        # Those in this process first: a worker that hangs would use up their time, too.
        answers = {s.name: finish() for s, _, finish in sorted(begun, key=lambda one: not one[0].here)}
        readings: list[Reading] = []
        for source, own, _ in begun:
            found = answers[source.name]
            if found is FAILED:
                readings += self._stale(source, own)
            else:
                self._remember(source, (wanted, costs, tuple(own)), found)
                readings += found
        return readings

    def processes(self, ids: Iterable[str] | None = None, *, timeout: float = 5.0) -> list[Process]:
        """Who uses the devices (all), as far as their backends can tell."""
        deadline = time.monotonic() + timeout
        begun = [(s, s.begin("processes", own, deadline)) for s, own in self._by_source(ids)]
        answers = [finish() for _, finish in sorted(begun, key=lambda one: not one[0].here)]
        return [process for found in answers if found is not FAILED for process in found]

    def events(self) -> list[Event]:
        """What has happened to the devices since the last call; the first call begins to watch."""
        answers = [found for _, found in self._ask_all(self._sources, "events") if found is not FAILED]
        return sorted((event for found in answers for event in found), key=lambda event: event.time)

    def describe(self) -> Portrait:
        """What stand-ins have to be told to answer as these devices do, of every backend that can say it."""
        whole = Portrait()
        for _, part in self._ask_all(self._sources, "describe"):
            if part is not FAILED:
                whole = Portrait(whole.drivers | part.drivers, whole.devices | part.devices)
        return whole

    def expose(self, ids: Iterable[str]) -> Exposure:
        """What a program needs to see these devices, in this order, and none of any vendor besides."""
        self.inventory()
        wanted = list(ids)
        keys = [
            (s, tuple(device for device in wanted if self._owner.get(device) is s)) for s in self._sources
        ]
        begun = {
            s.name: s.begin("expose", list(own)) for s, own in keys if (s.name, own) not in self._exposed
        }
        answers = {name: finish() for name, finish in begun.items()}
        env: dict[str, str] = {}
        for source, own in keys:
            found = answers.get(source.name) or self._exposed[source.name, own]
            if found is not FAILED:
                self._exposed[source.name, own] = found
                env |= found.env
        return Exposure(env)

    def limits(self, device: str) -> Enforcement:
        """Who can hold a soft slice of this device to its limit."""
        self.inventory()
        source = self._owner.get(device)
        if source is None:
            return UNENFORCED
        if source.name not in self._limits:
            found = source.begin("limits")()
            if found is FAILED:
                return UNENFORCED
            self._limits[source.name] = found
        return self._limits[source.name]

    def hold_memory(self, device: str, group: str, limit_bytes: int) -> Hold:
        """Have the vendor's driver hold the programs of a control group to so much of a device's memory."""
        held = self._ask_owner(device, "hold_memory", device, group, limit_bytes)
        return Hold(Rung.NONE, "its backend did not answer") if held is FAILED else held

    def share_units(self, device: str, first_milli: int, milli: int) -> Exposure | None:
        """What gives a program a part of the device's compute units, if its runtime can
        (contract.SharesUnits)."""
        shared = self._ask_owner(device, "share_units", device, first_milli, milli)
        return None if shared is FAILED else shared

    def _ask_owner(self, device: str, method: str, *arguments: Any) -> Any:
        self.inventory()
        source = self._owner.get(device)
        return FAILED if source is None else source.begin(method, *arguments)()

    def _ask_all(self, sources: Iterable[Source], method: str) -> list[tuple[Source, Any]]:
        begun = [(source, source.begin(method)) for source in sources]
        return [(source, finish()) for source, finish in begun]

    def _remember(self, source: Source, asked: object, readings: list[Reading]) -> None:
        """Cheaply, as it is done on every tick: sorted out when it is needed."""
        last = self._last.setdefault(source.name, {})
        last.pop(asked, None)  # the newest is at the end
        last[asked] = readings
        if len(last) > _ASKED:
            self._last[source.name] = {None: _newest(last.values())}

    def _stale(self, source: Source, own: list[str]) -> list[Reading]:
        detail, last = source.probe.reason, _newest(self._last.get(source.name, {}).values())
        subjects = set(own)
        return [replace(r, status=Status.STALE, detail=detail) for r in last if r.subject in subjects]

    def _by_source(self, ids: Iterable[str] | None) -> list[tuple[Source, list[str]]]:
        self.inventory()
        wanted = list(self._owner) if ids is None else list(ids)
        unknown = [device for device in wanted if device not in self._owner]
        if unknown:
            raise GoneError(f"no device '{unknown[0]}' here")
        pairs = [(s, [d for d in wanted if self._owner[d] is s]) for s in self._sources]
        return [(source, own) for source, own in pairs if own]


def _newest(said: Iterable[list[Reading]]) -> list[Reading]:
    """Of each figure the last reading."""
    return list({(r.subject, r.name, tuple(r.labels.items())): r for each in said for r in each}.values())

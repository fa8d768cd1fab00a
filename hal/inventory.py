"""The merged picture of a machine: every vendor's devices side by side, never the first vendor only."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from hal.backend import Backend, Exposes, GoneError, Group, Limits, ListsProcesses
from hal.model import Device, Enforcement, Exposure, Inventory, Probe, Process, Reading, Rung
from hal.registry import Source, discover

__all__ = ["Machine"]

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
        """All devices, slices and links; ids are the same on every call. Never raises for a vendor."""
        if self._inventory is None or refresh:
            merged = Inventory()
            self._owner = {}
            for source in self._sources:
                if refresh:
                    source.look_again()
                part = source.call(lambda backend: backend.enumerate(), Inventory())
                self._owner |= {device.id: source for device in part.devices}
                merged = Inventory(
                    merged.devices + part.devices, merged.slices + part.slices, merged.links + part.links
                )
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
        self, groups: Iterable[Group] | None = None, ids: Iterable[str] | None = None, *, timeout: float = 5.0
    ) -> list[Reading]:
        """Read groups (all) of devices (all) now; ``timeout`` in seconds for the whole call."""
        wanted = tuple(Group) if groups is None else tuple(groups)
        deadline = time.monotonic() + timeout
        readings: list[Reading] = []
        for source, own in self._by_source(ids):

            def read(backend: Backend, own: list[str] = own) -> list[Reading]:
                return backend.sample(wanted, own, deadline)

            readings += source.call(read, [])
        return readings

    def processes(self, ids: Iterable[str] | None = None, *, timeout: float = 5.0) -> list[Process]:
        """Who uses the devices (all), as far as their backends can tell."""
        deadline = time.monotonic() + timeout
        found: list[Process] = []
        for source, own in self._by_source(ids):

            def read(backend: Backend, own: list[str] = own) -> list[Process]:
                return backend.processes(own, deadline) if isinstance(backend, ListsProcesses) else []

            found += source.call(read, [])
        return found

    def expose(self, ids: Iterable[str]) -> Exposure:
        """What a program needs to see these devices, in this order, and none of any vendor besides."""
        self.inventory()
        wanted = list(ids)
        env: dict[str, str] = {}
        for source in self._sources:
            own = [device for device in wanted if self._owner.get(device) is source]

            def show(backend: Backend, own: list[str] = own) -> Exposure:
                return backend.expose(own) if isinstance(backend, Exposes) else Exposure()

            env |= source.call(show, Exposure()).env
        return Exposure(env)

    def limits(self, device: str) -> Enforcement:
        """Who can hold a soft slice of this device to its limit."""

        def ask(backend: Backend) -> Enforcement:
            return backend.limits() if isinstance(backend, Limits) else UNENFORCED

        self.inventory()
        source = self._owner.get(device)
        return UNENFORCED if source is None else source.call(ask, UNENFORCED)

    def _by_source(self, ids: Iterable[str] | None) -> list[tuple[Source, list[str]]]:
        self.inventory()
        wanted = list(self._owner) if ids is None else list(ids)
        unknown = [device for device in wanted if device not in self._owner]
        if unknown:
            raise GoneError(f"no device '{unknown[0]}' here")
        pairs = [(s, [d for d in wanted if self._owner[d] is s]) for s in self._sources]
        return [(source, own) for source, own in pairs if own]

"""The slices of granted leases: their ledgers, the environment of their programs, and their end."""

from __future__ import annotations

import os
from contextlib import suppress

from hal.backend import Group, StateError
from hal.enforce.guard import guard_environment
from hal.enforce.ledger import DeviceUse, Ledger
from hal.inventory import Machine
from hal.model import Enforcement, Rung
from hal.scheduler.core import DeviceFacts, Lease
from hal.scheduler.places import Places

__all__ = ["Slices"]


class Slices:
    """What a daemon holds open for its leases. A whole device needs no ledger: nothing limits it."""

    def __init__(self, machine: Machine, places: Places) -> None:
        self._machine = machine
        self._places = places
        self._open: dict[str, Ledger] = {}

    def create(self, lease: Lease) -> None:
        """Make the slice of a fresh lease. Raises StateError when its file cannot be made."""
        if not lease.whole:
            path = self._places.slice_file(lease.id)
            self._open[lease.id] = Ledger.create(path, lease.name, [(lease.device, lease.memory_bytes)])

    def adopt(self, lease: Lease) -> bool:
        """Take over the slice of a lease from before a restart; False when its file is gone or damaged."""
        if lease.whole:
            return True
        try:
            self._open[lease.id] = Ledger.open(self._places.slice_file(lease.id))
        except StateError:
            return False
        return True

    def sweep(self) -> None:
        """Remove slice files that belong to no lease: a daemon was killed between file and promise."""
        known = {self._places.slice_file(lease_id) for lease_id in self._open}
        for path in self._places.slices.iterdir():
            if path not in known:
                path.unlink(missing_ok=True)

    def environment(self, lease: Lease) -> dict[str, str]:
        """What a program needs to run in this slice and see nothing else. Without the caller's own
        LD_PRELOAD: the client adds that, for it knows it."""
        env = dict(self._machine.expose([lease.device]).env)
        if not lease.whole:
            env |= guard_environment(self._places.slice_file(lease.id), inherited={})
        return env

    def enforcement(self, lease: Lease) -> Enforcement:
        """Who holds this lease to its limits: a whole device is its own limit."""
        if lease.whole:
            return Enforcement(Rung.HARDWARE, Rung.HARDWARE)
        return self._machine.limits(lease.device)

    def use(self, lease: Lease) -> DeviceUse | None:
        """None: a whole device, or a slice whose programs have cut their ledger short."""
        ledger = self._open.get(lease.id)
        devices = [] if ledger is None else _devices(ledger)
        return devices[0] if devices else None

    def reap(self) -> None:
        """Give back, in every slice, what dead processes held."""
        for ledger in self._open.values():
            with suppress(StateError):  # it was cut short
                ledger.reap()

    def stop(self, lease: Lease, with_signal: int) -> bool:
        """Refuse all growth and signal the slice's processes (0: none); True when none was left."""
        ledger = self._open.get(lease.id)
        if ledger is None:
            return True
        with suppress(StateError):  # cut short: its programs have nothing left to allocate from
            ledger.set_limit(0, 0)
        pids = ledger.pids()
        for pid in pids:
            try:
                os.kill(pid, with_signal)
            except (ProcessLookupError, PermissionError):
                continue
        return not pids

    def remove(self, lease: Lease) -> None:
        ledger = self._open.pop(lease.id, None)
        if ledger is not None:
            ledger.unlink()
            ledger.close()

    def close(self) -> None:
        """Unmap everything and leave the files: leases outlive the daemon."""
        for ledger in self._open.values():
            ledger.close()
        self._open.clear()

    def facts(self) -> tuple[DeviceFacts, ...]:
        """The machine's devices as placement sees them, with what programs outside our slices use."""
        inside: dict[str, int] = {}
        for ledger in self._open.values():
            for use in _devices(ledger):
                inside[use.device] = inside.get(use.device, 0) + use.used_bytes
        devices = self._machine.inventory(refresh=True).devices
        figures: dict[str, dict[str, int]] = {}
        for reading in self._machine.sample([Group.MEMORY]):
            if reading.value is not None:
                figures.setdefault(reading.subject, {}).setdefault(reading.name, int(reading.value))
        found = []
        for device in devices:
            figure = figures.get(device.id, {})
            total = device.memory_bytes or figure.get("memory_total_bytes")
            if total is None:
                continue  # nothing can be promised of a memory whose size nobody knows
            used = figure.get("memory_used_bytes", 0)
            found.append(
                DeviceFacts(
                    id=device.id,
                    vendor=device.vendor,
                    memory_bytes=total - figure.get("memory_reserved_bytes", 0),
                    outside_bytes=max(used - inside.get(device.id, 0), 0),
                    holds_slices=self._machine.limits(device.id).memory is not Rung.NONE,
                )
            )
        return tuple(found)


def _devices(ledger: Ledger) -> list[DeviceUse]:
    """Nothing, of one that its programs have cut short."""
    try:
        return ledger.devices()
    except StateError:
        return []

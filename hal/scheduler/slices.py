"""The slices of granted leases: their ledgers, the environment of their programs, and their end."""

from __future__ import annotations

import os
from pathlib import Path

from hal.backend import StateError
from hal.enforce.guard import guard_environment
from hal.enforce.ledger import DeviceUse, Ledger
from hal.inventory import Machine
from hal.model import Enforcement, Rung
from hal.scheduler.core.facts import NodeFacts
from hal.scheduler.core.lease import Lease, LeaseState, Part
from hal.scheduler.facts import node_facts
from hal.scheduler.places import Places

__all__ = ["Slices"]


class Slices:
    """What a daemon holds open for its leases. A whole device needs no ledger: nothing limits it."""

    def __init__(self, machine: Machine, places: Places) -> None:
        self._machine = machine
        self._places = places
        self._open: dict[str, dict[int, Ledger]] = {}  # by lease, then by part

    def create(self, lease: Lease) -> None:
        """Make the slices of a fresh lease. Raises StateError when a file cannot be made, and leaves none."""
        made = self._open[lease.id] = {}
        try:
            for number, limits in _limits(lease).items():
                made[number] = Ledger.create(self._file(lease, number), lease.name, limits)
        except StateError:
            self.remove(lease)
            raise

    def adopt(self, lease: Lease) -> bool:
        """Take over the slices of a lease from before a restart; False when a file is gone or damaged.

        Whoever stopped it before may not have got so far as to say so: an active lease has its limit again.
        """
        opened: dict[int, Ledger] = {}
        try:
            for number, limits in _limits(lease).items():
                opened[number] = Ledger.open(self._file(lease, number))
                if lease.state is not LeaseState.ENDING:
                    for index, (_, limit) in enumerate(limits):
                        opened[number].set_limit(index, limit)
        except (StateError, IndexError):
            for ledger in opened.values():
                ledger.close()
            return False
        self._open[lease.id] = opened
        return True

    def sweep(self) -> None:
        """Remove slice files that belong to no lease: a daemon was killed between file and promise."""
        known = {ledger.path for ledgers in self._open.values() for ledger in ledgers.values()}
        for path in self._places.slices.iterdir():
            if path not in known:
                path.unlink(missing_ok=True)

    def environments(self, lease: Lease) -> list[dict[str, str]]:
        """For each member, what a program needs to run in its slice and see nothing else. Without the
        caller's own LD_PRELOAD: the client adds that, for it knows it."""
        limited = _limits(lease)
        found = []
        for number, part in enumerate(lease.parts):
            env = dict(self._machine.expose(_devices(part)).env)
            if number in limited:
                env |= guard_environment(self._file(lease, number), inherited={})
            if len(lease.parts) > 1:
                env |= {"HAL_MEMBER": str(number), "HAL_MEMBERS": str(len(lease.parts))}
            found.append(env)
        return found

    def enforcement(self, lease: Lease) -> Enforcement:
        """Who holds this lease to its limits: a whole device is its own limit."""
        slices = [spot for spot in lease.spots() if not spot.shape.whole]
        if not slices:
            return Enforcement(Rung.HARDWARE, Rung.HARDWARE)
        return self._machine.limits(slices[0].devices[0])

    def use(self, lease: Lease) -> list[DeviceUse]:
        """Of all its slices; nothing for whole devices, which have no ledger."""
        return [use for ledger in self._open.get(lease.id, {}).values() for use in ledger.devices()]

    def reap(self) -> None:
        """Give back, in every slice, what dead processes held."""
        for ledgers in self._open.values():
            for ledger in ledgers.values():
                ledger.reap()

    def stop(self, lease: Lease, with_signal: int) -> bool:
        """Refuse all growth and signal the slices' processes (0: none); True when none was left."""
        none_left = True
        for ledger in self._open.get(lease.id, {}).values():
            for index in range(len(ledger.devices())):
                ledger.set_limit(index, 0)
            pids = ledger.pids()
            none_left = none_left and not pids
            for pid in pids:
                try:
                    os.kill(pid, with_signal)
                except (ProcessLookupError, PermissionError):
                    continue
        return none_left

    def remove(self, lease: Lease) -> None:
        for ledger in self._open.pop(lease.id, {}).values():
            ledger.unlink()
            ledger.close()

    def close(self) -> None:
        """Unmap everything and leave the files: leases outlive the daemon."""
        for ledgers in self._open.values():
            for ledger in ledgers.values():
                ledger.close()
        self._open.clear()

    def facts(self) -> NodeFacts:
        """The machine as placement sees it, with what programs outside our slices use."""
        inside: dict[str, int] = {}
        for ledgers in self._open.values():
            for ledger in ledgers.values():
                for use in ledger.devices():
                    inside[use.device] = inside.get(use.device, 0) + use.used_bytes
        return node_facts(self._machine, inside)

    def _file(self, lease: Lease, number: int) -> Path:
        return self._places.slice_file(lease.id if number == 0 else f"{lease.id}.{number}")


def _devices(part: Part) -> list[str]:
    return [device for spot in part.spots for device in spot.devices]


def _limits(lease: Lease) -> dict[int, list[tuple[str, int]]]:
    """Devices and bytes of each part that is a slice, in the order in which its programs see them."""
    return {
        number: [(device, spot.shape.memory_bytes) for spot in part.spots for device in spot.devices]
        for number, part in enumerate(lease.parts)
        if not part.spots[0].shape.whole
    }

"""All that the scheduler knows, and the changes that keep its parts in step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from msgspec import Struct

from hal.scheduler.core.facts import WHOLE_MILLI, NodeFacts
from hal.scheduler.core.fleet import Fleet, Spot
from hal.scheduler.core.lease import Amount, Lease, LeaseState, Part, Waiting, charge
from hal.scheduler.core.line import Line
from hal.scheduler.core.match import Matcher
from hal.scheduler.core.mix import Mix
from hal.scheduler.core.placement import Policy
from hal.scheduler.core.queues import Tree

__all__ = ["Counters", "Reservation", "World"]


class Reservation(Struct, frozen=True):
    """What is kept for the request that goes next: nobody delays it."""

    id: str
    devices: tuple[str, ...]  # on which nothing else may be placed that is not over in time
    charge: Amount
    at: int | None  # when it can begin at the latest, by what holders have declared; None: nobody can tell
    waits_for: tuple[str, ...]  # the leases that have to end


class Counters(Struct):
    """What has to outlive a restart, besides leases, requests and queues."""

    epoch: int = 0
    order: int = 0
    reservation: Reservation | None = None
    lost: dict[str, int] = {}  # node: when its leases are revoked
    failed: dict[str, str] = {}  # device: why
    cordoned: dict[str, str] = {}  # device or node: why
    had: dict[str, Amount] = {}
    faded_until: int = 0


class World:
    """State without rules: what follows from an event is decided elsewhere."""

    def __init__(self, policy: Policy, half_life_ms: int) -> None:
        self.fleet = Fleet()
        self.tree = Tree(half_life_ms)
        self.matcher = Matcher()
        self.policy = policy
        self.mix = Mix()
        self.leases: dict[str, Lease] = {}
        self.line = Line()
        self.counters = Counters()
        self.freed = 0  # rises with everything that could let somebody run who could not before
        self.altered = 0  # rises with every change of what there is, whoever holds it
        self.changed: dict[tuple[str, str], None] = {}  # what is to be written down
        self._withheld: frozenset[str] = frozenset()

    # ---- leases -----------------------------------------------------------------------------

    def grant(self, waiting: Waiting, parts: tuple[Part, ...], amount: Amount, now: int) -> Lease:
        """Book it. The parts were planned on this fleet as it is."""
        self.counters.epoch += 1
        lease = Lease(
            id=waiting.id,
            request=waiting.request,
            uid=waiting.uid,
            key=waiting.key,
            holder_pid=waiting.holder_pid,
            parts=parts,
            charge=amount,
            epoch=self.counters.epoch,
            arrived=waiting.arrived,
            order=waiting.order,
            granted=now,
            expires=now + waiting.request.ttl_ms,
        )
        for spot in lease.spots():
            self.fleet.take(spot)
        firm = not waiting.request.preemptible
        self.tree.add(waiting.request.queue, amount, firm=firm, now=now)
        self.leases[lease.id] = lease
        self.note("lease", lease.id)
        return lease

    def adopt(self, lease: Lease) -> None:
        """Book a lease from before a restart, whatever else is booked."""
        for spot in lease.spots():
            self.fleet.adopt(spot)
        self.tree.shift(lease.request.queue, lease.charge, 1, firm=not lease.request.preemptible)
        self.leases[lease.id] = lease

    def remove(self, lease: Lease, now: int) -> None:
        for spot in lease.spots():
            self.fleet.give(spot)
        firm = not lease.request.preemptible
        self.tree.take(lease.request.queue, lease.charge, firm=firm, now=now)
        del self.leases[lease.id]
        self.note("lease", lease.id)
        self.freed += 1

    def on_device(self, device: str) -> list[Lease]:
        return [one for one in self.leases.values() if any(device in spot.devices for spot in one.spots())]

    def on_node(self, node: str) -> list[Lease]:
        return [one for one in self.leases.values() if any(spot.node == node for spot in one.spots())]

    def amount(self, spots: tuple[Spot, ...]) -> Amount:
        total = Amount()
        for spot in spots:
            for id in spot.devices:
                device = self.fleet.device(id)
                assert device is not None
                total += charge(device, spot)
        return total

    # ---- devices ----------------------------------------------------------------------------

    def see(self, node: NodeFacts) -> None:
        """ValueError when its devices are another node's."""
        row = self.fleet.row_of.get(node.id)
        before = None if row is None else self.fleet.facts[row]
        if before == node:
            return
        self.fleet.join(node)
        for device in node.devices:
            self.fleet.set_usable(device.id, self.unusable(device.id, node.id) is None)
        self.tree.total += _lendable(node) - _lendable(before)
        self.altered += 1
        self.freed += 1

    def leave(self, node: str) -> None:
        facts = self.fleet.facts[self.fleet.row_of[node]]
        self.fleet.leave(node)
        self.tree.total -= _lendable(facts)
        self.altered += 1

    def unusable(self, device: str, node: str) -> str | None:
        """Why nothing may be placed on a device; None when it may."""
        counters = self.counters
        if device in counters.failed:
            return f"failed: {counters.failed[device]}"
        return counters.cordoned.get(device) or counters.cordoned.get(node)

    def refresh(self, target: str) -> None:
        """What may be placed on a device, or on all of a node, has changed."""
        row = self.fleet.row_of.get(target)
        node = None if row is None else self.fleet.facts[row]
        devices = [d.id for d in node.devices] if node else [target] if target in self.fleet.cell_of else []
        for device in devices:
            self.fleet.set_usable(device, self.unusable(device, self.node_of(device)) is None)
        self.note("meta", "counters")
        self.altered += 1
        self.freed += 1

    def node_of(self, device: str) -> str:
        facts = self.fleet.facts[self.fleet.cell_of[device][0]]
        assert facts is not None
        return facts.id

    # ---- what is set aside ------------------------------------------------------------------

    def withhold(self, devices: frozenset[str]) -> None:
        """Let nothing be placed on these devices until ``withhold(frozenset())``."""
        for device in self._withheld - devices:
            if device in self.fleet.cell_of:
                usable = self.unusable(device, self.node_of(device)) is None
                self.fleet.set_usable(device, usable)
        for device in devices - self._withheld:
            self.fleet.set_usable(device, False)
        self._withheld = devices

    @contextmanager
    def without(self, leases: list[Lease]) -> Iterator[None]:
        """As if these had ended."""
        with self.fleet.trial():
            for lease in leases:
                for spot in lease.spots():
                    self.fleet.give(spot)
                self.tree.shift(lease.request.queue, lease.charge, -1, firm=not lease.request.preemptible)
            try:
                yield
            finally:
                for lease in leases:
                    self.tree.shift(lease.request.queue, lease.charge, 1, firm=not lease.request.preemptible)

    # ---- what is written down ---------------------------------------------------------------

    def note(self, kind: str, id: str) -> None:
        self.changed[kind, id] = None

    def ending(self) -> list[Lease]:
        return [one for one in self.leases.values() if one.state is LeaseState.ENDING]


def _lendable(node: NodeFacts | None) -> Amount:
    """What a node adds to what queues share."""
    sizes = [device.memory_bytes for device in node.devices if device.holds_slices] if node else []
    return Amount(WHOLE_MILLI * len(sizes), sum(sizes))

"""All that the scheduler knows, and the changes that keep its parts in step."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from contextlib import contextmanager

from msgspec import Struct

from hal.scheduler.core.facts import WHOLE_MILLI, NodeFacts, check_facts
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
    labels: dict[str, dict[str, str]] = {}  # by node: what operators have set, beside what its agent says
    term: int = 0  # starts of the scheduler: nodes obey the latest


class World:
    """State without rules: what follows from an event is decided elsewhere."""

    def __init__(self, policy: Policy, half_life_ms: int) -> None:
        self.fleet = Fleet()
        self.tree = Tree(half_life_ms)
        self.matcher = Matcher()
        self.policy = policy
        self.mix = Mix()
        self.leases: dict[str, Lease] = {}
        self.by_end: list[tuple[int, int, str]] = []  # those that declared one: end, epoch and id, in order
        self.endless: dict[str, dict[str, Lease]] = {}  # the others, by the first node that each is on
        self.holders: dict[str, dict[str, Lease]] = {}  # of each device
        self.crowd: dict[str, int] = {}  # of each node, the slices on it
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
        request = waiting.request
        lease = Lease(
            id=waiting.id,
            request=request,
            uid=waiting.uid,
            key=waiting.key,
            holder_pid=waiting.holder_pid,
            parts=parts,
            charge=amount,
            epoch=self.counters.epoch,
            arrived=waiting.arrived,
            order=waiting.order,
            granted=now,
            expires=now + request.ttl_ms,
        )
        for spot in lease.spots():
            self.fleet.take(spot)
        self.tree.add(request.queue, amount, firm=not request.preemptible, now=now)
        self._list(lease)
        self.note("lease", lease.id)
        return lease

    def adopt(self, lease: Lease) -> None:
        """Book a lease from before a restart, whatever else is booked."""
        for spot in lease.spots():
            self.fleet.adopt(spot)
        self.tree.shift(lease.request.queue, lease.charge, 1, firm=not lease.request.preemptible)
        self._list(lease)

    def remove(self, lease: Lease, now: int) -> None:
        for spot in lease.spots():
            self.fleet.give(spot)
        firm = not lease.request.preemptible
        self.tree.take(lease.request.queue, lease.charge, firm=firm, now=now)
        self._unlist(lease)
        self.note("lease", lease.id)
        self.freed += 1

    def _list(self, lease: Lease) -> None:
        self.leases[lease.id] = lease
        if lease.ends is None:
            self.endless.setdefault(lease.parts[0].spots[0].node, {})[lease.id] = lease
        else:
            insort(self.by_end, (lease.ends, lease.epoch, lease.id))
        for spot in lease.spots():
            self.crowd[spot.node] = self.crowd.get(spot.node, 0) + 1
            for device in spot.devices:
                self.holders.setdefault(device, {})[lease.id] = lease

    def _unlist(self, lease: Lease) -> None:
        del self.leases[lease.id]
        if lease.ends is None:
            there = self.endless[lease.parts[0].spots[0].node]
            del there[lease.id]
            if not there:
                del self.endless[lease.parts[0].spots[0].node]
        else:
            del self.by_end[bisect_left(self.by_end, (lease.ends, lease.epoch, lease.id))]
        for spot in lease.spots():
            self.crowd[spot.node] -= 1
            if not self.crowd[spot.node]:
                del self.crowd[spot.node]
            for device in spot.devices:
                there = self.holders.get(device, {})
                there.pop(lease.id, None)  # it may be on a device with two of its parts
                if not there:
                    self.holders.pop(device, None)

    def on_device(self, device: str) -> list[Lease]:
        return list(self.holders.get(device, {}).values())

    def on_node(self, node: str) -> list[Lease]:
        return [one for one in self.leases.values() if any(spot.node == node for spot in one.spots())]

    def amount(self, spots: tuple[Spot, ...]) -> Amount:
        if len(spots) == 1 and len(spots[0].devices) == 1:
            device = self.fleet.device(spots[0].devices[0])
            assert device is not None
            return charge(device, spots[0])
        total = Amount()
        for spot in spots:
            for id in spot.devices:
                device = self.fleet.device(id)
                assert device is not None
                total += charge(device, spot)
        return total

    # ---- devices ----------------------------------------------------------------------------

    def see(self, node: NodeFacts) -> None:
        """ValueError when its devices are another node's, or their amounts none."""
        row = self.fleet.row_of.get(node.id)
        before = None if row is None else self.fleet.facts[row]
        if before == node:
            return
        check_facts(node)
        layout = self.fleet.layout
        self.fleet.join(node)
        if self.fleet.layout != layout:
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
        """As if these had ended; ``put_back`` and ``take_away`` change the list meanwhile."""
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

    def put_back(self, lease: Lease, away: list[Lease]) -> None:
        for spot in lease.spots():
            self.fleet.adopt(spot)
        self.tree.shift(lease.request.queue, lease.charge, 1, firm=not lease.request.preemptible)
        away.remove(lease)

    def take_away(self, lease: Lease, away: list[Lease]) -> None:
        for spot in lease.spots():
            self.fleet.give(spot)
        self.tree.shift(lease.request.queue, lease.charge, -1, firm=not lease.request.preemptible)
        away.append(lease)

    # ---- what is written down ---------------------------------------------------------------

    def note(self, kind: str, id: str) -> None:
        self.changed[kind, id] = None

    def ending(self) -> list[Lease]:
        return [one for one in self.leases.values() if one.state is LeaseState.ENDING]


def _lendable(node: NodeFacts | None) -> Amount:
    """What a node adds to what queues share."""
    sizes = [device.memory_bytes for device in node.devices if device.holds_slices] if node else []
    return Amount(WHOLE_MILLI * len(sizes), sum(sizes))

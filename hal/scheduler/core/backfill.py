"""The next in line has devices kept for it; others go ahead only where that does not delay it.

Holders that have declared how long they need give the time at which it can begin at the latest. What
is over by then may run anywhere; anything else only on devices that are not kept.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain, islice

import numpy as np

from hal.scheduler.core.admit import Blocked, Plan, Why, plan
from hal.scheduler.core.lease import Amount, Lease, LeaseState, Waiting
from hal.scheduler.core.world import Reservation, World

__all__ = ["in_time", "leaves_room", "reserve"]

_FIRST = 4  # leases that are thought away at first; then twice as many each time


def reserve(world: World, one: Waiting, now: int, *, soon: bool = False) -> Reservation | Blocked:
    """What to keep for ``one``, which has no room now; or why it has none whatever ends.

    Where nobody can tell when, what is kept stays the same as long as it serves, so that who waits is
    not strung along. Otherwise it is worked out anew: the time never becomes later, and earlier when
    a holder has ended before its time. ``soon``: those that end already will do; then it is what they leave,
    or others would be given that, and have to make room in their turn.
    """
    known = world.counters.reservation
    if not soon and known is not None and known.id == one.id and known.at is None and _serves(world, known):
        return known
    leases, found = _fewest(world, one, now)
    return _kept(world, one, found, leases, now) if isinstance(found, Plan) else found


def in_time(world: World, one: Waiting, now: int) -> bool:
    """Whether it is over, by its own word, before the next in line can begin."""
    kept, duration = world.counters.reservation, one.request.duration_ms
    return kept is not None and kept.at is not None and duration is not None and now + duration <= kept.at


def leaves_room(world: World, one: Waiting, charge: Amount) -> bool:
    """Whether the limits of the queues that both are in have room for it and the next in line."""
    kept = world.counters.reservation
    if kept is None:
        return True
    head = world.line.waiting[kept.id]
    tree = world.tree
    shared = set(tree.path(one.request.queue)) & set(tree.path(head.request.queue))
    return all(tree.queues[name].limit.hold(tree.used[name] + charge + kept.charge) for name in shared)


def _serves(world: World, kept: Reservation) -> bool:
    fleet = world.fleet
    return any(id in world.leases for id in kept.waits_for) and all(
        d in fleet.cell_of and fleet.usable[fleet.cell_of[d]] for d in kept.devices
    )


def _fewest(world: World, one: Waiting, now: int) -> tuple[list[Lease], Plan | Blocked]:
    """The leases, from the first to end, of which as few as make room, and where; or why all are too few."""
    order, leases, step = _in_order_of_end(world, one, now), list[Lease](), _FIRST
    found: Plan | Blocked = Blocked(Why.ROOM, 0, plain=False)
    with ExitStack() as stack:
        while more := list(islice(order, step)):
            with ExitStack() as inner:
                inner.enter_context(world.without(more))
                found = plan(world, one, now)
                if isinstance(found, Blocked):
                    stack.push(inner.pop_all())
            if isinstance(found, Plan):
                low, high = 0, len(more)  # not enough, enough
                while high - low > 1:
                    middle = (low + high) // 2
                    with world.without(more[:middle]):
                        fewer = plan(world, one, now)
                    if isinstance(fewer, Plan):
                        found, high = fewer, middle
                    else:
                        low = middle
                return leases + more[:high], found
            leases += more
            step *= 2
    return leases, found


def _in_order_of_end(world: World, one: Waiting, now: int) -> Iterator[Lease]:
    """Of those on devices that it could have: who ends first; who did not say, where fewest are."""
    fleet = world.fleet
    wanted = np.zeros(fleet.there.shape, bool)
    hosts = np.zeros(len(fleet.cpu_free), bool)  # nodes whose CPU or RAM it could have
    for member in one.request.members:
        for alternative in member.alternatives:
            mask = world.matcher.eligible(fleet, alternative)
            wanted |= mask.devices
            if alternative.cpu_milli or alternative.ram_bytes:
                hosts |= mask.devices.any(1) if alternative.count else mask.nodes

    def matters(lease: Lease) -> bool:
        for spot in lease.spots():
            row = fleet.row_of.get(spot.node)
            if row is not None and hosts[row] and (spot.shape.cpu_milli or spot.shape.ram_bytes):
                return True
            if any(wanted[cell] for device in spot.devices if (cell := fleet.cell_of.get(device))):
                return True
        return False

    return filter(matters, _by_end(world, now))


def _by_end(world: World, now: int) -> Iterator[Lease]:
    ending = world.ending()
    yield from sorted(ending, key=_epoch)
    late = bisect_right(world.by_end, now, key=_end)
    declared = [world.leases[id] for _, _, id in world.by_end[:late]]
    declared.sort(key=_epoch)
    after = (world.leases[id] for _, _, id in world.by_end[late:])
    yield from (lease for lease in chain(declared, after) if lease.state is not LeaseState.ENDING)
    for node in sorted(world.endless, key=lambda node: (world.crowd[node], node)):
        there = [lease for lease in world.endless[node].values() if lease.state is not LeaseState.ENDING]
        yield from sorted(there, key=_epoch)


def _epoch(lease: Lease) -> int:
    return lease.epoch


def _end(entry: tuple[int, int, str]) -> int:
    return entry[0]


def _kept(world: World, one: Waiting, found: Plan, ended: list[Lease], now: int) -> Reservation:
    spots = [spot for part in found.parts for spot in part.spots]
    devices = {device for spot in spots for device in spot.devices}
    for spot in spots:
        if spot.shape.cpu_milli or spot.shape.ram_bytes:  # the whole node's host is what it waits for
            facts = world.fleet.facts[world.fleet.row_of[spot.node]]
            assert facts is not None
            devices |= {device.id for device in facts.devices}
    ends = [now if lease.state is LeaseState.ENDING else lease.ends for lease in ended]
    known = [end for end in ends if end is not None]
    return Reservation(
        id=one.id,
        devices=tuple(sorted(devices)),
        charge=found.charge,
        at=max([now, *known]) if len(known) == len(ends) else None,
        waits_for=tuple(lease.id for lease in ended),
    )

"""Who has to make room: the fewest and the youngest, and only where the one who asks may ask it.

* a lease that has had the time that it declared, for anybody
* a lower priority in the same queue
* what a queue has beyond its quota, for a queue that stays within its own
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from itertools import chain, islice

from hal.scheduler.core.admit import Plan, plan
from hal.scheduler.core.decisions import Cause
from hal.scheduler.core.fleet import Shape
from hal.scheduler.core.lease import Amount, Lease, LeaseState, Waiting
from hal.scheduler.core.request import Topology
from hal.scheduler.core.terms import shape_of, terms_of, usable_alternatives
from hal.scheduler.core.world import World

__all__ = ["victims"]

_SINGLY = 8  # devices that are tried one by one, then twice as many at a time; and victims that are swapped
_SPARED = 256  # attempts to spare a victim
_SWAPS = 64  # and to take a younger one
_ALONE = 64  # devices of which each is tried without those before it
_NEVER = 1 << 30
_BESIDE = (Topology.NODE, Topology.FABRIC)

Fits = Callable[[list[str]], bool]  # whether the request fits without these leases


def victims(world: World, one: Waiting, now: int) -> dict[str, Cause] | None:
    """The leases to end, by id: none when those that end already will do. None: all are too few."""
    ending = world.ending()
    with world.without(ending):
        found = plan(world, one, now)
        if isinstance(found, Plan):
            return {}
        allowed = _allowed(world, one)
        if not allowed:
            return None
        return _chosen(world, one, now, allowed)


def _allowed(world: World, one: Waiting) -> dict[str, Cause]:
    """Whoever may have to go, the youngest first."""
    request = one.request
    least = terms_of(request.members).least
    reclaims = world.tree.has_quota(request.queue) and world.tree.within_quota(request.queue, least)
    found: dict[str, Cause] = {}
    for lease in reversed(world.leases.values()):  # they are in the order of their grants
        if lease.state is not LeaseState.ACTIVE:
            continue
        theirs = lease.request
        if lease.overdue:
            found[lease.id] = Cause.OVERDUE
        elif not theirs.preemptible:
            continue
        elif theirs.queue == request.queue:
            below = theirs.priority < request.priority
            if below or (not request.preemptible and theirs.priority == request.priority):
                found[lease.id] = Cause.PREEMPTED
        elif reclaims and world.tree.owes(theirs.queue, request.queue, world.tree.used, {}):
            found[lease.id] = Cause.RECLAIMED
    return found


class _Taken:
    """Victims so far, and what their queues give back: nobody is pushed below its quota by reclaiming."""

    def __init__(self, world: World, one: Waiting, allowed: dict[str, Cause]) -> None:
        self.world = world
        self.queue = one.request.queue
        self.allowed = allowed
        self.used = dict(world.tree.used)  # before any of them is thought away
        self.ids: dict[str, None] = {}
        self.refused = False  # some had to stay, for those before them
        self._back: dict[str, Amount] = {}  # what the queues of `ids` give back

    def take(self, id: str) -> None:
        """One more, if it may go after those before."""
        if id in self.ids:
            return
        lease = self.world.leases[id]
        if self.allowed[id] is Cause.RECLAIMED and not self._owes(lease.request.queue, self._back):
            self.refused = True
            return
        self.ids[id] = None
        self._give_back(lease, self._back)

    def lawful(self, ids: list[str]) -> bool:
        """They can go one after the other, in some order, each while its queue has too much."""
        back: dict[str, Amount] = {}
        charges: dict[str, set[Amount]] = {}  # of those to be reclaimed, by queue
        total: dict[str, Amount] = {}
        for lease in map(self.world.leases.__getitem__, ids):
            self._give_back(lease, back)
            if self.allowed[lease.id] is Cause.RECLAIMED:
                queue = lease.request.queue
                charges.setdefault(queue, set()).add(lease.charge)
                total[queue] = total.get(queue, Amount()) + lease.charge
        while charges:  # whoever can be the last, is: fewer have gone before all others then
            last = next(
                (queue for queue in charges if self._some_can_be_last(queue, charges[queue], back)), None
            )
            if last is None:
                return False
            back |= self._without(last, total[last], back)
            del charges[last]
        return True

    def _some_can_be_last(self, queue: str, charges: set[Amount], back: dict[str, Amount]) -> bool:
        return any(self._owes(queue, self._without(queue, charge, back)) for charge in charges)

    def _owes(self, queue: str, back: dict[str, Amount]) -> bool:
        return self.world.tree.owes(queue, self.queue, self.used, back)

    def _give_back(self, lease: Lease, back: dict[str, Amount]) -> None:
        for queue in self.world.tree.path(lease.request.queue):
            back[queue] = back.get(queue, Amount()) + lease.charge

    def _without(self, queue: str, charge: Amount, back: dict[str, Amount]) -> dict[str, Amount]:
        """What the queue and those above it give back but for so much."""
        return {one: back[one] - charge for one in self.world.tree.path(queue)}


def _chosen(world: World, one: Waiting, now: int, allowed: dict[str, Cause]) -> dict[str, Cause] | None:
    taken = _Taken(world, one, allowed)

    def has_room(ids: Iterable[str]) -> bool:
        found = plan(world, one, now)
        if not isinstance(found, Plan):
            return False
        # Who goes beyond its own quota by it has nothing to reclaim.
        reclaims = any(allowed[id] is Cause.RECLAIMED for id in ids)
        return not reclaims or world.tree.within_quota(one.request.queue, found.charge)

    def fits(ids: list[str]) -> bool:
        with world.without([world.leases[id] for id in ids]):
            return has_room(ids)

    groups = _by_cost(world, one, now, allowed)
    enough = _enough(world, taken, groups, has_room)
    if enough is None and taken.refused:
        enough = _alone(taken, groups, fits)
    if enough is None:
        return None
    chosen = _spared(taken, enough, has_room)
    chosen = _younger(world, taken, chosen, fits)
    return {id: allowed[id] for id in sorted(chosen, key=lambda id: world.leases[id].epoch)}


def _enough(
    world: World, taken: _Taken, groups: list[list[str]], has_room: Callable[[Iterable[str]], bool]
) -> list[str] | None:
    """The groups from the first on, of which as few as make room; None when all are too few."""
    ends = [0]  # how many have been taken after each group

    def between(low: int, high: int) -> list[Lease]:
        return [world.leases[id] for id in islice(taken.ids, ends[low], ends[high])]

    with ExitStack() as away:
        low = 0  # so many groups are away, and too few
        while True:
            if low == len(groups):
                return None
            for group in groups[low : low + (1 if low < _SINGLY else low)]:
                for id in group:
                    taken.take(id)
                ends.append(len(taken.ids))
            high = len(ends) - 1
            if _with_away(world, between(low, high), away, lambda: has_room(taken.ids)):
                break
            low = high
        while high - low > 1:
            middle = (low + high) // 2
            ids = list(islice(taken.ids, ends[middle]))
            if _with_away(world, between(low, middle), away, lambda ids=ids: has_room(ids)):  # type: ignore[misc]
                high = middle
            else:
                low = middle
    return list(islice(taken.ids, ends[high]))


def _alone(taken: _Taken, groups: list[list[str]], fits: Fits) -> list[str] | None:
    """The first group that makes room by itself: those before it took what its queue had too much."""
    lawful = (group for group in groups if taken.lawful(group))
    return next((group for group in islice(lawful, _ALONE) if fits(group)), None)


def _with_away(world: World, leases: list[Lease], away: ExitStack, has_room: Callable[[], bool]) -> bool:
    """Whether there is room with these away, too; when not, they stay away."""
    with ExitStack() as inner:
        inner.enter_context(world.without(leases))
        if has_room():
            return True
        away.push(inner.pop_all())
    return False


def _spared(taken: _Taken, ids: list[str], has_room: Callable[[Iterable[str]], bool]) -> list[str]:
    """Without those who are not needed, the oldest spared first."""
    world, chosen = taken.world, list(ids)
    away = [world.leases[id] for id in ids]
    tries = _SPARED
    with world.without(away):
        for lease in sorted(away, key=lambda lease: lease.epoch):
            without = [other for other in chosen if other != lease.id]
            if tries and without and taken.lawful(without):
                tries -= 1
                world.put_back(lease, away)
                if has_room(without):
                    chosen = without
                else:
                    world.take_away(lease, away)
    return chosen


def _younger(world: World, taken: _Taken, chosen: list[str], fits: Fits) -> list[str]:
    """With a younger one in the place of an older one, where that does."""
    tries = _SWAPS if len(chosen) <= _SINGLY else 0
    for id in sorted(chosen, key=lambda id: world.leases[id].epoch):
        for other in taken.allowed:  # the youngest first
            if world.leases[other].epoch <= world.leases[id].epoch or not tries:
                break
            if other in chosen:
                continue
            swapped = [other if each == id else each for each in chosen]
            tries -= 1
            if taken.lawful(swapped) and fits(swapped):
                chosen = swapped
                break
    return chosen


def _by_cost(world: World, one: Waiting, now: int, allowed: dict[str, Cause]) -> list[list[str]]:
    """The victims of each device that could serve it: where fewest have to go first, then the youngest."""
    fleet = world.fleet
    costs: dict[str, tuple[int, int, list[str]]] = {}
    beside = [a.count for m in one.request.members for a in m.alternatives if a.topology in _BESIDE]
    together = max(beside, default=1)
    of_allowed = (spot.devices for id in allowed for spot in world.leases[id].spots())
    # Nothing is won by a device on which nobody has to go, unless several are wanted together.
    devices = world.holders if together > 1 else dict.fromkeys(chain.from_iterable(of_allowed))
    holders = {  # the room of those that end is thought free by now
        device: [one for one in world.holders[device].values() if one.state is not LeaseState.ENDING]
        for device in devices
    }
    for member, usable in zip(one.request.members, usable_alternatives(one, now), strict=True):
        for index in usable:
            alternative = member.alternatives[index]
            mask = world.matcher.eligible(fleet, alternative).devices
            shape = shape_of(alternative, 1)
            for device, there in holders.items():
                cell = fleet.cell_of.get(device)
                if cell is None or not mask[cell]:
                    continue
                cost = _cost(world, device, shape, there, allowed)
                if cost is not None and (device not in costs or cost[:2] < costs[device][:2]):
                    costs[device] = cost
    order = sorted(costs, key=lambda device: (*costs[device][:2], device))
    if together > 1:
        rank = _node_ranks(world, costs, together)
        order.sort(key=lambda device: rank[world.node_of(device)])
    groups = [costs[device][2] for device in order]
    return [*groups, list(allowed)]  # and then those that only hold CPU or RAM of a node


def _cost(
    world: World, device: str, shape: Shape, there: list[Lease], allowed: dict[str, Cause]
) -> tuple[int, int, list[str]] | None:
    """How many have to leave this device, how old the oldest is, and who; None when that is not enough."""
    movable = [lease for lease in there if lease.id in allowed]
    if shape.whole:
        if len(movable) < len(there):
            return None
        leaving = movable
    else:
        cell = world.fleet.cell_of[device]
        short = shape.memory_bytes - int(world.fleet.bytes_free[cell])
        wanting = shape.compute_milli - int(world.fleet.milli_free[cell])
        leaving = []
        for lease in sorted(movable, key=lambda lease: (-_bytes_on(lease, device), -lease.epoch)):
            if short <= 0 and wanting <= 0:
                break
            leaving.append(lease)
            short -= _bytes_on(lease, device)
            wanting -= _milli_on(lease, device)
        if short > 0 or wanting > 0:
            return None
    oldest = min((lease.epoch for lease in leaving), default=0)
    return (len(leaving), -oldest, [lease.id for lease in leaving])


def _node_ranks(
    world: World, costs: dict[str, tuple[int, int, list[str]]], together: int
) -> dict[str, tuple[int, str]]:
    by_node: dict[str, list[int]] = {}
    for device, (count, _, _) in costs.items():
        by_node.setdefault(world.node_of(device), []).append(count)
    ranks = {}
    for node, counts in by_node.items():
        facts = world.fleet.facts[world.fleet.row_of[node]]
        assert facts is not None
        enough = len(facts.devices) >= together
        ranks[node] = (sum(sorted(counts)[:together]) if enough else _NEVER, node)
    return ranks


def _bytes_on(lease: Lease, device: str) -> int:
    return sum(
        1 << 60 if spot.shape.whole else spot.shape.memory_bytes
        for spot in lease.spots()
        if device in spot.devices
    )


def _milli_on(lease: Lease, device: str) -> int:
    return sum(
        1000 if spot.shape.whole else spot.shape.compute_milli
        for spot in lease.spots()
        if device in spot.devices
    )

"""One round after whatever has changed: who is next, who may go ahead, and who has to make room.

The same round runs after every event, so that what a release frees is granted at once. A kind of
request that was found not to fit is tried again only when something has been freed since.
"""

from __future__ import annotations

import heapq

from hal.scheduler.core.admit import Blocked, Plan, Why, plan
from hal.scheduler.core.backfill import in_time, leaves_room, reserve
from hal.scheduler.core.consolidate import moves
from hal.scheduler.core.decisions import Cause, Decision, Grant, Preempt, Propose, Repartition
from hal.scheduler.core.lease import LeaseState, Part, Waiting
from hal.scheduler.core.line import Kind
from hal.scheduler.core.partition import Partitioner
from hal.scheduler.core.reclaim import least, victims
from hal.scheduler.core.world import World

__all__ = ["Scheduling"]

_ROUNDS = 1000  # an end for what has none; each round grants something or moves what is kept
_NOTHING: frozenset[str] = frozenset()

_Heap = list[tuple[int, int, Kind]]


class Scheduling:
    """Turns changes into grants, in rounds until nothing more follows."""

    def __init__(self, world: World, partitioner: Partitioner | None) -> None:
        self.world = world
        self.partitioner = partitioner
        self._seen = -1  # the world's ``freed`` at the last round

    def settled(self) -> None:
        """Nobody who waits now would fit: so it was when this was written down."""
        for kind in self.world.line.kinds.values():
            kind.failed = self.world.freed
        self._seen = self.world.freed

    def run(self, now: int) -> list[Decision]:
        decisions: list[Decision] = []
        world = self.world
        for _ in range(_ROUNDS):
            if world.freed != self._seen:
                self._seen = world.freed
                world.line.fresh = dict(world.line.kinds)
            if not world.line.fresh:
                break
            self._round(now, decisions)
        return decisions

    # ---- a round ----------------------------------------------------------------------------

    def _round(self, now: int, decisions: list[Decision]) -> None:
        world = self.world
        self._forget_head_that_is_gone()
        heaps = self._by_queue()
        world.line.fresh = {}
        names = set(heaps)
        closed: set[str] = set()  # queues at their limit, with somebody in front who waits for it
        closed_quotas: set[str] = set()
        keeping = False  # the next in line has had its turn
        while (queue := world.tree.next_of(names, now)) is not None:
            heap = heaps[queue]
            if not heap:
                names.discard(queue)
                continue
            _, _, kind = heapq.heappop(heap)
            one = world.line.first(kind)
            if one is None:
                continue
            path = set(world.tree.path(queue))
            if path & closed or (not one.request.preemptible and path & closed_quotas):
                kind.failed = world.freed
                continue
            kept = world.counters.reservation
            if kept is not None and kept.id == one.id and kind.failed == world.freed:
                keeping = True
                continue
            found = self._find(one, now, keeping)
            if isinstance(found, Plan):
                decisions.append(self._grant(one, found, now))
                if (following := world.line.first(kind)) is not None:
                    heapq.heappush(heap, (-kind.request.priority, following.order, kind))
                continue
            kind.failed = world.freed
            if not one.request.wait:
                continue
            if found.why is Why.ROOM:
                keeping = keeping or self._becomes_next(one, now, decisions)
            elif not self._never(one, found):
                (closed if found.why is Why.LIMIT else closed_quotas).add(found.queue)
        world.withhold(_NOTHING)

    def _by_queue(self) -> dict[str, _Heap]:
        line, kept = self.world.line, self.world.counters.reservation
        kinds = dict(line.fresh)
        if kept is not None:
            head = line.kind_of[kept.id]
            kinds[head.key] = head
        heaps: dict[str, _Heap] = {}
        for kind in kinds.values():
            one = line.first(kind)
            if one is not None:
                heaps.setdefault(kind.queue, []).append((-kind.request.priority, one.order, kind))
        for heap in heaps.values():
            heapq.heapify(heap)
        return heaps

    def _forget_head_that_is_gone(self) -> None:
        kept = self.world.counters.reservation
        if kept is not None and kept.id not in self.world.line.waiting:
            self._keep_nothing()

    def _keep_nothing(self) -> None:
        """Somebody who was held off may fit now."""
        world = self.world
        world.counters.reservation = None
        world.note("meta", "counters")
        world.freed += 1

    def _find(self, one: Waiting, now: int, keeping: bool) -> Plan | Blocked:
        world = self.world
        kept = world.counters.reservation
        held_off = keeping and kept is not None and not in_time(world, one, now)
        world.withhold(frozenset(kept.devices) if held_off and kept is not None else _NOTHING)
        found = plan(world, one, now)
        if held_off and isinstance(found, Plan) and not leaves_room(world, one, found.charge):
            return Blocked(Why.ROOM, 0)
        return found

    def _never(self, one: Waiting, found: Blocked) -> bool:
        """It would not fit into an empty queue: it holds up nobody."""
        queue = self.world.tree.queues[found.queue]
        bound = queue.limit if found.why is Why.LIMIT else queue.quota
        return not bound.hold(least(one))

    # ---- what follows -----------------------------------------------------------------------

    def _grant(self, one: Waiting, found: Plan, now: int) -> Grant:
        world = self.world
        kept = world.counters.reservation
        world.line.remove(one.id)
        world.note("waiting", one.id)
        if kept is not None and kept.id == one.id:
            self._keep_nothing()
        world.withhold(_NOTHING)
        lease = world.grant(one, found.parts, found.charge, now)
        return Grant(lease, _where(one, found.parts))

    def _becomes_next(self, one: Waiting, now: int, decisions: list[Decision]) -> bool:
        """Make room for it if that may be, and keep what it needs."""
        world = self.world
        world.withhold(_NOTHING)
        self._make_room(one, now, decisions)
        reservation = reserve(world, one, now)
        if reservation is None:
            return False
        known = world.counters.reservation
        if reservation != known:
            world.counters.reservation = reservation
            world.note("meta", "counters")
            if known is not None and (known.id, known.devices) != (reservation.id, reservation.devices):
                world.freed += 1
                world.line.kind_of[one.id].failed = world.freed
        return True

    def _make_room(self, one: Waiting, now: int, decisions: list[Decision]) -> None:
        world = self.world
        found = victims(world, one, now)
        if found is not None:
            for id, cause in found.items():
                lease = world.leases[id]
                lease.state = LeaseState.ENDING
                lease.again = lease.request.requeue
                world.note("lease", id)
                decisions.append(Preempt(lease, one.id, cause, _why(cause, one)))
            return
        proposal = self._proposal(one, now)
        if proposal is not None:
            decisions.append(proposal)

    def _proposal(self, one: Waiting, now: int) -> Decision | None:
        """Moves, or in the end another cut of a device; each is said once."""
        world = self.world
        found = moves(world, one, now)
        if found is not None:
            said = " ".join(f"{move.lease}>{','.join(move.target)}" for move in found)
            proposal: Decision = Propose(one.id, found, f"with {len(found)} moved, '{one.id}' has room")
        elif self.partitioner is not None:
            facts = [device for node in world.fleet.facts if node for device in node.devices]
            idle = tuple(d for d in facts if world.fleet.idle[world.fleet.cell_of[d.id]])
            cut = self.partitioner.cut(one.request, idle)
            if cut is None:
                return None
            said = f"{cut.device}={cut.layout}"
            proposal = Repartition(
                one.id, cut.device, cut.layout, f"cut into {cut.layout}, {cut.device} has room"
            )
        else:
            return None
        if one.proposed == said:
            return None
        one.proposed = said
        world.note("waiting", one.id)
        return proposal


def _why(cause: Cause, one: Waiting) -> str:
    match cause:
        case Cause.OVERDUE:
            return f"it has had the time that it asked for, and '{one.id}' waits"
        case Cause.PREEMPTED:
            return f"'{one.id}' has priority {one.request.priority} in the same queue"
    return f"queue '{one.request.queue}' has less than its quota, and '{one.id}' waits in it"


def _where(one: Waiting, parts: tuple[Part, ...]) -> str:
    devices = [device for part in parts for spot in part.spots for device in spot.devices]
    if not devices:
        return "room on " + ", ".join(spot.node for part in parts for spot in part.spots)
    shown = ", ".join(devices[:4]) + (f" and {len(devices) - 4} more" if len(devices) > 4 else "")
    chosen = {
        f"alternative {part.alternative + 1}"
        for part in parts
        if len(one.request.members[part.member].alternatives) > 1
    }
    return f"room on {shown}" + (f" ({', '.join(sorted(chosen))})" if chosen else "")

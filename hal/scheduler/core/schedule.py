"""One round after whatever has changed: who is next, who may go ahead, and who has to make room.

The same round runs after every event, so that what a release frees is granted at once. Whoever was found not
to fit is asked again only when something has been freed since, and then only if it could fit (``screen``).
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from hal.scheduler.core.admit import Blocked, Plan, Why, plan
from hal.scheduler.core.backfill import in_time, leaves_room, reserve
from hal.scheduler.core.consolidate import moves
from hal.scheduler.core.decisions import Cause, Decision, Grant, Preempt, Propose, Repartition
from hal.scheduler.core.lease import LeaseState, Part, Waiting
from hal.scheduler.core.line import Kind
from hal.scheduler.core.partition import Partitioner
from hal.scheduler.core.reclaim import victims
from hal.scheduler.core.screen import Bools, Screen
from hal.scheduler.core.terms import terms_of
from hal.scheduler.core.turns import Turns, in_order
from hal.scheduler.core.world import World

__all__ = ["Scheduling"]

_ROUNDS = 1000  # an end for what has none; each round grants something or moves what is kept
_NOTHING: frozenset[str] = frozenset()
_BATCH = 64  # so many new kinds are shown to the screen, lest one round has to take in thousands


class _Came(Enum):
    """What came of a turn."""

    GRANTED = "granted"
    NEXT = "next"  # it is next: from here on, what it needs is kept
    NOTHING = "nothing"


class Scheduling:
    """Turns changes into grants, in rounds until nothing more follows."""

    def __init__(self, world: World, partitioner: Partitioner | None) -> None:
        self.world = world
        self.partitioner = partitioner
        self.screen = Screen()
        self._seen = -1  # the world's ``freed`` at the last round
        self._asked = -1  # and when the next in line was last found not to fit

    def settled(self) -> None:
        """Nobody who waits now would fit: so it was when this was written down."""
        self.world.line.fresh.clear()
        self._seen = self._asked = self.world.freed

    def run(self, now: int) -> list[Decision]:
        decisions: list[Decision] = []
        world = self.world
        if not world.line.waiting and world.counters.reservation is None:
            self._seen = world.freed
            world.fleet.gained.clear()
            return decisions
        for _ in range(_ROUNDS):
            everybody = world.freed != self._seen
            fresh, world.line.fresh = world.line.fresh, {}
            if not everybody and not fresh:
                break
            self._seen = world.freed
            self._forget_head_that_is_gone()
            if everybody:
                self._all(now, decisions)
            else:
                self._some(fresh, now, decisions)
            world.withhold(_NOTHING)
        return decisions

    def at_once(self, one: Waiting, now: int) -> Grant | None:
        """What a round would come to where nobody else waits: room, or None, and then nothing has changed."""
        world = self.world
        if world.line.waiting or world.counters.reservation is not None:
            return None
        found = plan(world, one, now)
        if not isinstance(found, Plan):
            return None
        return Grant(world.grant(one, found.parts, found.charge, now), _where(one, found.parts))

    # ---- a round ----------------------------------------------------------------------------

    def _some(self, fresh: dict[tuple[Any, ...], Kind], now: int, decisions: list[Decision]) -> None:
        """Those who have come, as the others are known not to fit; in turn with who is next."""
        line, kept = self.world.line, self.world.counters.reservation
        kinds = list(fresh.values())
        if kept is not None and line.kind_of[kept.id].key not in fresh:
            kinds.append(line.kind_of[kept.id])
        turns, keeping = Turns(self.world.tree, in_order(kinds), now), False
        for kind in turns:
            came = self._turn(kind, turns, now, decisions, keeping=keeping)
            keeping = keeping or came is _Came.NEXT
        if len(line.came) >= _BATCH:
            self.screen.follow(line)

    def _all(self, now: int, decisions: list[Decision]) -> None:
        """Everybody, as something was freed. Of those behind who is next, only who could have room."""
        world, screen = self.world, self.screen
        screen.follow(world.line)
        gained, world.fleet.gained = world.fleet.gained, set()
        if not world.line.kinds:
            return
        could = screen.could(world.fleet, screen.alive, gained)
        left, keeping = screen.alive.copy(), False
        turns = Turns(world.tree, world.line.queues, now)
        for kind in turns:
            slot = screen.slot_of[id(kind)]
            left[slot] = False
            came = self._turn(kind, turns, now, decisions, lacks_room=not could[slot])
            if came is _Came.NEXT:
                keeping = True
                break
        screen.stale[left] = could[left]
        if not keeping:
            return
        left = self._could_beside(left, gained, now)
        while listed := int(left.sum()):
            turns = turns.among(screen.of(left))
            for kind in turns:
                slot = screen.slot_of[id(kind)]
                if not left[slot]:
                    continue
                left[slot] = False
                if self._turn(kind, turns, now, decisions, keeping=True) is _Came.GRANTED:
                    left[slot] = kind.place is not None
                    left = self._could_beside(left, gained, now)  # there is less room now
                    if 2 * int(left.sum()) < listed:
                        break
            else:
                return

    def _could_beside(self, slots: Bools, gained: set[int], now: int) -> Bools:
        """Who of these could have room beside what is kept; or on it, when they are over in time."""
        world, screen, kept = self.world, self.screen, self.world.counters.reservation
        spare = -1 if kept is None or kept.at is None else kept.at - now
        brief = slots & (screen.duration <= spare)
        world.withhold(_NOTHING)
        could = screen.could(world.fleet, brief, gained)
        if kept is not None:
            world.withhold(frozenset(kept.devices))
        could |= screen.could(world.fleet, slots & ~brief, gained)
        screen.stale[slots] = could[slots]
        return could

    def _turn(
        self,
        kind: Kind,
        turns: Turns,
        now: int,
        decisions: list[Decision],
        *,
        keeping: bool = False,
        lacks_room: bool = False,
    ) -> _Came:
        """The turn of the first of a kind. ``keeping``: who is next has had its own before."""
        world, kept = self.world, self.world.counters.reservation
        one = world.line.first(kind)
        assert one is not None
        if turns.is_closed_for(kind):
            self.screen.learn(kind, True)
            return _Came.NOTHING
        is_next = kept is not None and kept.id == one.id
        if is_next and self._asked == world.freed:
            return _Came.NEXT
        found = Blocked(Why.ROOM, 0) if lacks_room else self._find(one, now, keeping)
        if isinstance(found, Plan):
            self.screen.learn(kind, True)
            decisions.append(self._grant(one, found, now))
            turns.granted(kind)
            return _Came.GRANTED
        self.screen.learn(kind, not found.plain)
        if is_next:
            self._asked = world.freed
        if not one.request.wait:
            return _Came.NOTHING
        if found.why is Why.ROOM:
            came = not keeping and self._becomes_next(kind, one, now, decisions)
            return _Came.NEXT if came else _Came.NOTHING
        if not self._never(one, found):
            (turns.closed if found.why is Why.LIMIT else turns.closed_quotas).add(found.queue)
        return _Came.NOTHING

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
            return Blocked(Why.ROOM, 0, plain=False)
        return found

    def _never(self, one: Waiting, found: Blocked) -> bool:
        """It would not fit into an empty queue: it holds up nobody."""
        queue = self.world.tree.queues[found.queue]
        bound = queue.limit if found.why is Why.LIMIT else queue.quota
        return not bound.hold(terms_of(one.request.members).least)

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

    def _becomes_next(self, kind: Kind, one: Waiting, now: int, decisions: list[Decision]) -> bool:
        """Make room for it if that may be, and keep what it needs."""
        world = self.world
        if kind.hopeless == world.altered and self.partitioner is None:
            return False
        world.withhold(_NOTHING)
        soon = self._make_room(one, now, decisions)
        reservation = reserve(world, one, now, soon=soon)
        if isinstance(reservation, Blocked):
            if reservation.plain and kind.single:
                kind.hopeless = world.altered
            return False
        known = world.counters.reservation
        if reservation != known:
            world.counters.reservation = reservation
            world.note("meta", "counters")
            if known is not None and (known.id, known.devices) != (reservation.id, reservation.devices):
                world.freed += 1
        self._asked = world.freed
        return True

    def _make_room(self, one: Waiting, now: int, decisions: list[Decision]) -> bool:
        """True: there will be room once all have ended that are ending by now."""
        world = self.world
        found = victims(world, one, now)
        if found is not None:
            for id, cause in found.items():
                lease = world.leases[id]
                lease.state = LeaseState.ENDING
                lease.again = lease.request.requeue
                world.note("lease", id)
                decisions.append(Preempt(lease, one.id, cause, _why(cause, one)))
            return True
        proposal = self._proposal(one, now)
        if proposal is not None:
            decisions.append(proposal)
        return False

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
    if len(parts) == 1 and len(one.request.members[0].alternatives) == 1:
        return f"room on {shown}"
    chosen = {
        f"alternative {part.alternative + 1}"
        for part in parts
        if len(one.request.members[part.member].alternatives) > 1
    }
    return f"room on {shown}" + (f" ({', '.join(sorted(chosen))})" if chosen else "")

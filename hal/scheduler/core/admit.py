"""Whether a request fits now, and where: every member, or none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum

from msgspec import Struct, structs

from hal.scheduler.core.fleet import Spot
from hal.scheduler.core.lease import Amount, Part, Waiting
from hal.scheduler.core.placement import place
from hal.scheduler.core.request import Alternative, Topology
from hal.scheduler.core.terms import in_turn, shape_of, terms_of, usable_alternatives
from hal.scheduler.core.world import World

__all__ = ["Blocked", "Plan", "Why", "plan"]

_TRIES = 64  # placements beyond four a member, before a gang that may fit in some other way is left


class Why(StrEnum):
    ROOM = "room"
    LIMIT = "limit"
    QUOTA = "quota"  # it must not be preempted, and so has to stay within quota


class Plan(Struct, frozen=True):
    parts: tuple[Part, ...]
    charge: Amount


class Blocked(Struct, frozen=True):
    why: Why
    member: int
    queue: str = ""  # whose limit or quota it is
    plain: bool = True  # nothing but room is lacking: no limit was met, and the search came to its end


def plan(world: World, one: Waiting, now: int, *, limits: bool = True) -> Plan | Blocked:
    """Books nothing. Without ``limits`` only the devices count."""
    search = _Search(world, one, now, limits)
    if len(search.units) == 1:
        return search.run()  # it takes nothing
    with world.fleet.trial():
        return search.run()


class _Search:
    """Depth first over the members, those with the least choice first, within a bound of tries."""

    def __init__(self, world: World, one: Waiting, now: int, limits: bool) -> None:
        self.world = world
        self.one = one
        self.limits = limits
        members = one.request.members
        terms = terms_of(members)
        self.choices = usable_alternatives(one, now) if terms.has_slack else terms.choices
        self.units = in_turn(members, self.choices) if terms.has_slack else terms.units
        self.tries = _TRIES + 4 * len(self.units)
        self.parts: list[Part] = []
        self.blocked = Blocked(Why.ROOM, 0)
        self.reached = -1
        self.met_limit = False

    def run(self) -> Plan | Blocked:
        charge = self._seat(0, Amount())
        if charge is None:
            plain = self.blocked.why is Why.ROOM and not self.met_limit and self.tries >= 0
            return structs.replace(self.blocked, plain=plain)
        parts = self.parts
        if len(parts) > 1:
            parts.sort(key=lambda part: (part.member, part.replica))
        return Plan(tuple(parts), charge)

    def _seat(self, index: int, before: Amount) -> Amount | None:
        if index == len(self.units):
            return before
        member, replica = self.units[index]
        alone = index + 1 == len(self.units)  # nobody comes after it whom it could be in the way of
        for number, spots in self._options(member, index):
            total = self.world.amount(spots)
            if index:
                total += before
            if self.limits and (barred := self._barred(total)):
                self.met_limit = True
                self._note(index, Blocked(barred[0], member, barred[1]))
                continue
            self.parts.append(Part(member, replica, number, spots))
            if alone:
                return total
            for spot in spots:
                self.world.fleet.take(spot)
            charge = self._seat(index + 1, total)
            if charge is not None:
                return charge
            self.parts.pop()
            for spot in reversed(spots):
                self.world.fleet.give(spot)
        return None

    def _options(self, member: int, index: int) -> Iterable[tuple[int, tuple[Spot, ...]]]:
        """Alternatives that fit now; with a price to weigh, all of them, the best first."""
        weigh = self.one.request.price_weight
        found = self._fitting(member, index)
        if not weigh:
            return found
        alternatives = self.one.request.members[member].alternatives
        return sorted(
            found,
            key=lambda option: (
                weigh * self._micros(option[1]) - alternatives[option[0]].weight * 1_000_000,
                option[0],
            ),
        )

    def _fitting(self, member: int, index: int) -> Iterator[tuple[int, tuple[Spot, ...]]]:
        """The next is only placed when the one before was no good."""
        for number in self.choices[member]:
            spots = self.spots(self.one.request.members[member].alternatives[number])
            if spots is None:
                self._note(index, Blocked(Why.ROOM, member))
            else:
                yield number, spots

    def _barred(self, total: Amount) -> tuple[Why, str] | None:
        request, tree = self.one.request, self.world.tree
        if (queue := tree.beyond_limit(request.queue, total)) is not None:
            return Why.LIMIT, queue
        if not request.preemptible and (queue := tree.beyond_quota(request.queue, total)) is not None:
            return Why.QUOTA, queue
        return None

    def _note(self, index: int, blocked: Blocked) -> None:
        """The reason that counts is that of the member up to which it went; room before limits."""
        room = index == self.reached and blocked.why is Why.ROOM
        if index > self.reached or room:
            self.reached, self.blocked = index, blocked

    def _micros(self, spots: tuple[Spot, ...]) -> int:
        devices = [self.world.fleet.device(id) for spot in spots for id in spot.devices]
        return sum(device.micros_per_hour for device in devices if device is not None)

    def spots(self, one: Alternative) -> tuple[Spot, ...] | None:
        world = self.world
        if one.count <= 1 or one.topology is Topology.NODE:
            spot = self._place(one, one.count)
            return None if spot is None else (spot,)
        if one.topology is Topology.FABRIC:
            for fabric in world.matcher.fabrics(world.fleet):
                if (spot := self._place(one, one.count, fabric)) is not None:
                    return (spot,)
            return None
        return self._apart(one)

    def _apart(self, one: Alternative) -> tuple[Spot, ...] | None:
        """Different devices, one at a time; with ``spread`` on different nodes."""
        fleet = self.world.fleet
        found: list[Spot] = []
        closed: list[str] = []
        with fleet.trial():
            while len(found) < one.count and (spot := self._place(one, 1)) is not None:
                fleet.take(spot)
                found.append(spot)
                row = fleet.row_of[spot.node]
                node = fleet.facts[row]
                assert node is not None
                spread = one.topology is Topology.SPREAD
                done = [device.id for device in node.devices] if spread else list(spot.devices)
                closing = [device for device in done if fleet.usable[fleet.cell_of[device]]]
                closed += closing
                for device in closing:
                    fleet.set_usable(device, False)
        for device in closed:
            fleet.set_usable(device, True)
        return tuple(found) if len(found) == one.count else None

    def _place(self, one: Alternative, count: int, fabric: str | None = None) -> Spot | None:
        self.tries -= 1
        if self.tries < 0:
            return None
        world = self.world
        eligible = world.matcher.eligible(world.fleet, one, fabric)
        return place(world.fleet, shape_of(one, count), eligible, world.policy, world.mix)

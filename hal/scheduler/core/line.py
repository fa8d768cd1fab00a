"""Who waits, by queue and by kind: requests that only differ in who asked are tried once for all."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable
from operator import itemgetter
from typing import Any

from hal.scheduler.core.lease import Waiting
from hal.scheduler.core.request import Request

__all__ = ["Entry", "Kind", "Line", "Place", "place_of"]

Place = tuple[int, int]  # in a queue: the priority, negated, and the order of arrival


class Kind:
    """Waiting requests that want the same, in the order of arrival."""

    def __init__(self, key: tuple[Any, ...], request: Request) -> None:
        self.key = key
        self.request = request
        self.queue = request.queue
        self.place: Place | None = None  # of the one that has waited longest
        members = request.members
        self.single = len(members) == 1 and members[0].replicas == 1
        self.stale = True  # not known to lack nothing but room, where the fleet has gained none since
        self.hopeless = -1  # the world's ``altered`` at which it was found not to fit whoever ends
        self.told = ""  # why it does not fit, for people
        self.barred = False  # a limit or quota is in the way, not the devices
        self.told_at: tuple[int, int, str] | None = None
        self.heap: list[tuple[int, str]] = []  # also some that are gone
        self.count = 0


Entry = tuple[Place, Kind]
place_of: Callable[[Entry], Place] = itemgetter(0)


class Line:
    """All that wait."""

    def __init__(self) -> None:
        self.waiting: dict[str, Waiting] = {}
        self.kinds: dict[tuple[Any, ...], Kind] = {}
        self.kind_of: dict[str, Kind] = {}
        self.queues: dict[str, list[Entry]] = {}  # of each, its kinds in their order
        self.fresh: dict[tuple[Any, ...], Kind] = {}  # to be tried
        self.came: dict[tuple[Any, ...], Kind] = {}  # kinds that the screen does not know yet
        self.went: list[Kind] = []  # and those that it still knows
        self.of_owner: Counter[int] = Counter()

    def add(self, one: Waiting) -> Kind:
        key = _key(one)
        kind = self.kinds.get(key)
        if kind is None:
            kind = self.kinds[key] = self.fresh[key] = self.came[key] = Kind(key, one.request)
        heapq.heappush(kind.heap, (one.order, one.id))
        kind.count += 1
        self.of_owner[one.uid] += 1
        self.waiting[one.id] = one
        self.kind_of[one.id] = kind
        self._settle(kind)
        return kind

    def has_kind_of(self, one: Waiting) -> bool:
        return _key(one) in self.kinds

    def remove(self, id: str) -> Waiting:
        one = self.waiting.pop(id)
        kind = self.kind_of.pop(id)
        kind.count -= 1
        if len(kind.heap) > 64 and len(kind.heap) > 4 * kind.count:  # behind one that waits for long
            kind.heap = [entry for entry in kind.heap if self._is_of(kind, entry)]
            heapq.heapify(kind.heap)
        self.of_owner[one.uid] -= 1
        if not self.of_owner[one.uid]:
            del self.of_owner[one.uid]
        self._settle(kind)
        if kind.place is None:
            del self.kinds[kind.key]
            self.fresh.pop(kind.key, None)
            if self.came.pop(kind.key, None) is None:
                self.went.append(kind)
        return one

    def forget(self, queue: str) -> None:
        """There is no such queue any more; nobody waits in it."""
        self.queues.pop(queue, None)

    def first(self, kind: Kind) -> Waiting | None:
        """The one that has waited longest."""
        while kind.heap:
            if self._is_of(kind, kind.heap[0]):
                return self.waiting[kind.heap[0][1]]
            heapq.heappop(kind.heap)
        return None

    def _is_of(self, kind: Kind, entry: tuple[int, str]) -> bool:
        order, id = entry
        one = self.waiting.get(id)
        return one is not None and one.order == order and self.kind_of[id] is kind

    def _settle(self, kind: Kind) -> None:
        """Put it where the first of it belongs."""
        one = self.first(kind)
        place = None if one is None else (-kind.request.priority, one.order)
        if place == kind.place:
            return
        there = self.queues.setdefault(kind.queue, [])
        if kind.place is not None:
            del there[bisect_left(there, kind.place, key=place_of)]
        if place is not None:
            insort(there, (place, kind), key=place_of)
        kind.place = place


def _key(one: Waiting) -> tuple[Any, ...]:
    request = one.request
    timed = any(alternative.slack_ms for member in request.members for alternative in member.alternatives)
    return (
        request.queue,
        request.priority,
        request.members,
        request.preemptible,
        request.price_weight,
        request.duration_ms,
        request.wait,
        (one.arrived, request.deadline_ms) if timed and request.deadline_ms is not None else None,
    )

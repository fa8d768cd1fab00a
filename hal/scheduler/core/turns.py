"""Whose turn it is, in one round: of the queues, and in each of those who wait."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator

from hal.scheduler.core.line import Entry, Kind, Place, place_of
from hal.scheduler.core.queues import Tree

__all__ = ["Turns", "in_order"]

_FRONT: Place = (-(1 << 62), 0)


def in_order(kinds: Iterable[Kind]) -> dict[str, list[Entry]]:
    """Of each queue, those of these kinds that wait in it."""
    queues: dict[str, list[Entry]] = {}
    for kind in kinds:
        if kind.place is not None:
            queues.setdefault(kind.queue, []).append((kind.place, kind))
    for there in queues.values():
        there.sort(key=place_of)
    return queues


class Turns:
    """Each kind in its turn. Whose turn it is, is worked out again after a grant."""

    def __init__(self, tree: Tree, queues: dict[str, list[Entry]], now: int) -> None:
        self.tree, self.queues, self.now = tree, queues, now
        self.closed: set[str] = set()  # at their limit, with somebody in front who waits for it
        self.closed_quotas: set[str] = set()
        self._names = list(queues)
        self._at: dict[str, Place] = {}  # up to where each queue has had its turns
        self._queue: str | None = None

    def among(self, kinds: Iterable[Kind]) -> Turns:
        """The turns of these only, as it goes on."""
        after = Turns(self.tree, in_order(kinds), self.now)
        after.closed, after.closed_quotas = self.closed, self.closed_quotas
        return after

    def __iter__(self) -> Iterator[Kind]:
        while (queue := self._next()) is not None:
            there = self.queues[queue]
            position = bisect_right(there, self._at.get(queue, _FRONT), key=place_of)
            if position == len(there) or not self.closed.isdisjoint(self.tree.path(queue)):
                self._names.remove(queue)
                self._queue = None
                continue
            self._at[queue], kind = there[position]
            yield kind

    def granted(self, kind: Kind) -> None:
        """Another queue may have the turn now, and the next of this kind has its own."""
        self._queue = None
        there = self.queues[kind.queue]
        if kind.place is not None:
            position = bisect_right(there, kind.place, key=place_of)
            if not position or there[position - 1][1] is not kind:
                insort(there, (kind.place, kind), key=place_of)

    def is_closed_for(self, kind: Kind) -> bool:
        firm = not kind.request.preemptible
        return firm and not self.closed_quotas.isdisjoint(self.tree.path(kind.queue))

    def _next(self) -> str | None:
        if self._queue is None:
            self._queue = self.tree.next_of(self._names, self.now)
        return self._queue

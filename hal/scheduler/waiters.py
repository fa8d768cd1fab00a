"""Who is answered later. Looked at are only those for whom something has happened, or whose time is up."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator

from hal.scheduler.answers import Waiter

__all__ = ["Waiters"]


class Waiters:
    """In the order of their coming, by what each waits for: a lease's id, or another name."""

    def __init__(self) -> None:
        self._by_name: dict[str, dict[int, Waiter]] = {}
        self._due: list[tuple[float, int]] = []
        self._names: dict[int, str] = {}  # of those that still wait
        self._touched: dict[str, None] = {}
        self._first: list[int] = []  # that were put off
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Waiter]:
        return (self._by_name[name][number] for number, name in self._names.items())

    def add(self, waiter: Waiter) -> int:
        number = next(self._numbers)
        self._by_name.setdefault(waiter.lease, {})[number] = waiter
        self._names[number] = waiter.lease
        heapq.heappush(self._due, (waiter.until, number))
        return number

    def put_off(self, waiter: Waiter) -> None:
        """It is looked at in the next turn, before others."""
        self._first.append(self.add(waiter))

    def touch(self, name: str) -> None:
        """Something has happened that they may be waiting for."""
        if name in self._by_name:
            self._touched[name] = None

    def touch_all(self) -> None:
        self._touched = dict.fromkeys(self._by_name)

    def next_due(self) -> float | None:
        """When the first has waited long enough; it may be too early."""
        if self._first:
            return float("-inf")
        return self._due[0][0] if self._due else None

    def take(self, now: float) -> list[Waiter]:
        """Those to be looked at now. They wait no longer, unless they are added again."""
        found, self._first = self._first, []
        for name in self._touched:
            found += self._by_name.get(name, ())
        self._touched.clear()
        while self._due and self._due[0][0] <= now:
            found.append(heapq.heappop(self._due)[1])
        return [self._drop(number) for number in dict.fromkeys(found) if number in self._names]

    def _drop(self, number: int) -> Waiter:
        name = self._names.pop(number)
        there = self._by_name[name]
        waiter = there.pop(number)
        if not there:
            del self._by_name[name]
        if len(self._due) > 64 and len(self._due) > 4 * len(self._names):  # of those answered before
            self._due = [entry for entry in self._due if entry[1] in self._names]
            heapq.heapify(self._due)
        return waiter

"""Who waits, by queue and by kind: requests that only differ in who asked are tried once for all."""

from __future__ import annotations

import heapq
from typing import Any

from hal.scheduler.core.lease import Waiting
from hal.scheduler.core.request import Request

__all__ = ["Kind", "Line"]


class Kind:
    """Waiting requests that want the same, in the order of arrival."""

    def __init__(self, key: tuple[Any, ...], request: Request) -> None:
        self.key = key
        self.request = request
        self.queue = request.queue
        self.failed = -1  # the world's ``freed`` when it was last found not to fit
        self.told = ""  # why not, for people
        self.barred = False  # a limit or quota is in the way, not the devices
        self.told_at: tuple[int, int, str] | None = None
        self.heap: list[tuple[int, str]] = []


class Line:
    """All that wait."""

    def __init__(self) -> None:
        self.waiting: dict[str, Waiting] = {}
        self.kinds: dict[tuple[Any, ...], Kind] = {}
        self.kind_of: dict[str, Kind] = {}
        self.fresh: dict[tuple[Any, ...], Kind] = {}  # to be tried

    def add(self, one: Waiting) -> Kind:
        key = _key(one)
        kind = self.kinds.get(key)
        if kind is None:
            kind = self.kinds[key] = Kind(key, one.request)
        heapq.heappush(kind.heap, (one.order, one.id))
        self.waiting[one.id] = one
        self.kind_of[one.id] = kind
        return kind

    def has_kind_of(self, one: Waiting) -> bool:
        return _key(one) in self.kinds

    def remove(self, id: str) -> Waiting:
        one = self.waiting.pop(id)
        kind = self.kind_of.pop(id)
        if self.first(kind) is None:
            del self.kinds[kind.key]
            self.fresh.pop(kind.key, None)
        return one

    def first(self, kind: Kind) -> Waiting | None:
        """The one that has waited longest."""
        while kind.heap:
            order, id = kind.heap[0]
            one = self.waiting.get(id)
            if one is not None and one.order == order and self.kind_of[id] is kind:
                return one
            heapq.heappop(kind.heap)
        return None


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

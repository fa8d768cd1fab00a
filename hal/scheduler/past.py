"""What has become of leases that are no more, and of requests that no longer wait: the latest, by id.

It is in memory: after a restart of the scheduler nothing is known of what ended before it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from hal.scheduler import core
from hal.scheduler.answers import Peer, Refused

if TYPE_CHECKING:
    from hal.scheduler.engine import Engine

__all__ = ["KEPT", "KEPT_MS", "Over", "Past", "gone"]

KEPT = 10_000  # of them
KEPT_MS = 7 * 24 * 3600 * 1000
_BY_WILL = frozenset({core.Cause.RELEASED, core.Cause.DRAINED, core.Cause.LOST})


class Over(Struct):
    """Times are milliseconds since 1970. ``by`` None: nobody asked for it, or the scheduler itself did."""

    id: str
    uid: int
    name: str
    queue: str
    state: str  # "ending", "ended"; "withdrawn": it only waited
    cause: str
    reason: str
    by: str | None
    devices: tuple[str, ...]
    granted_ms: int | None  # None: it never was
    at_ms: int  # when it was taken away, or waited no longer
    ended_ms: int | None = None  # when nothing was left of it

    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(self)
        del found["uid"]
        return found


class Past:
    def __init__(self, kept: int = KEPT, kept_ms: int = KEPT_MS) -> None:
        self._kept, self._kept_ms = kept, kept_ms
        self._over: OrderedDict[str, Over] = OrderedDict()  # the latest at the end

    def note(self, event: core.Event, decisions: Sequence[core.Decision], now: int, who: str) -> None:
        """``who`` asks for what happens now; "": nobody does."""
        if type(event) is core.Ended and (one := self._over.get(event.id)) is not None:
            one.state, one.ended_ms = "ended", now
        for decision in decisions:
            if type(decision) is core.Revoke or type(decision) is core.Preempt:
                lease = decision.lease
                self._add(lease, "ending", decision, who, lease.devices(), lease.granted, now)
            elif type(decision) is core.Withdrawn:
                self._add(decision.one, "withdrawn", decision, who, (), None, now)

    def find(self, id: str, now: int) -> Over | None:
        one = self._over.get(id)
        return None if one is None or one.at_ms <= now - self._kept_ms else one

    def _add(
        self,
        one: core.Lease | core.Waiting,
        state: str,
        why: core.Revoke | core.Preempt | core.Withdrawn,
        who: str,
        devices: tuple[str, ...],
        granted: int | None,
        now: int,
    ) -> None:
        by = who if who and why.cause in _BY_WILL else None
        name, cause = one.request.name or one.id, why.cause.value
        self._over[one.id] = Over(
            one.id, one.uid, name, one.request.queue, state, cause, why.reason, by, devices, granted, now
        )
        self._over.move_to_end(one.id)  # it may have been granted again since
        while len(self._over) > self._kept or next(iter(self._over.values())).at_ms <= now - self._kept_ms:
            self._over.popitem(last=False)


def gone(engine: Engine, id: str, peer: Peer) -> Refused:
    """Why there is no such lease (any more), to whom that may be told."""
    over = engine.past.find(id, engine.now())
    if over is None or not peer.sees(over.uid):
        return Refused("not_found", f"there is no lease '{id:.64}'")
    return Refused(*engine.over.get(id, ("ended", f"the lease '{id}' has ended: {over.reason}")))

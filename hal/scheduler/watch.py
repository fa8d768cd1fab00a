"""What has happened, numbered, for clients that follow it: the latest is kept for those who may see it.

Numbers rise and are never given twice: the scheduler's term is their upper part, so that they go on
rising after a restart. Of what happened before it nothing is kept here, and who asks for it is told so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import islice
from typing import Any

import msgspec
from msgspec import Struct

from hal.lines import nearest
from hal.scheduler import core
from hal.scheduler.answers import Later
from hal.scheduler.page import filled

__all__ = ["KINDS", "NAME", "Happening", "Seen", "Wanted", "Watch", "WatchBody", "Watcher"]

NAME = "/events"  # of what watchers wait for; no lease is called so
KEPT = 16_384  # happenings
_AT_A_TIME = 1024  # are looked at
_TERM_BITS = 32
_LONGEST_WAIT = 60.0
_MOST = 1000
KINDS = (
    "queued",
    "withdrawn",
    "granted",
    "ending",
    "ended",
    "suspended",
    "resumed",
    "node_joined",
    "node_lost",
    "node_forgotten",
    "device_failed",
    "device_recovered",
    "cordoned",
    "drained",
    "uncordoned",
    "queue_set",
    "queue_removed",
)

Seen = Callable[[int], bool]  # whether the happenings of an owner may be seen


class WatchBody(Struct, frozen=True, forbid_unknown_fields=True):
    """What happened after ``after`` (a number that was told before; None: from now on).

    Of that, what fits all that is asked: the lease, the node that it is on or about, the kinds, whose it is,
    and not before ``since_ms``.
    """

    after: int | None = None
    limit: int = 100
    timeout_seconds: float = 20.0
    lease: str | None = None
    node: str | None = None
    kinds: tuple[str, ...] | None = None
    owner: str | None = None
    since_ms: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= _MOST:
            raise ValueError(f"limit is between 1 and {_MOST}")
        if not 0 <= self.timeout_seconds <= _LONGEST_WAIT:
            raise ValueError(f"timeout_seconds is between 0 and {_LONGEST_WAIT:.0f}")
        for kind in self.kinds or ():
            if kind not in KINDS:
                meant = nearest(kind, KINDS) or f"; there are {', '.join(KINDS)}"
                raise ValueError(f"kinds: there is no kind of event '{kind:.40}'{meant}")


class Happening(Struct, frozen=True, omit_defaults=True):
    """One thing that has happened; what it is not about is left out."""

    number: int
    at_ms: int
    kind: str
    lease: str = ""
    name: str = ""
    queue: str = ""
    node: str = ""
    devices: tuple[str, ...] = ()
    epoch: int = 0
    cause: str = ""
    reason: str = ""


class _Kept(Struct, frozen=True):
    """Whose it is (None: everybody's), the nodes that its lease is on, and what has happened."""

    owner: int | None
    nodes: tuple[str, ...]
    one: Happening


class Wanted:
    """Which happenings a client asks for. ``name_of`` gives an owner's name, ``node_of`` a device's node."""

    def __init__(
        self, body: WatchBody, name_of: Callable[[int], str], node_of: Callable[[str], str | None]
    ) -> None:
        self._body, self._name_of, self._node_of = body, name_of, node_of
        nothing = (None, None, None, None, 0)
        self.all = (body.lease, body.node, body.kinds, body.owner, body.since_ms) == nothing
        self._kinds = frozenset(body.kinds or ())
        self._is_meant: dict[int | None, bool] = {None: False}  # owners

    def of(self, some: list[_Kept]) -> list[_Kept]:
        """A condition at a time, for all of them: thousands are looked at for one answer."""
        asked = self._body
        if asked.since_ms:
            some = [kept for kept in some if kept.one.at_ms >= asked.since_ms]
        if asked.lease is not None:
            some = [kept for kept in some if kept.one.lease == asked.lease]
        if asked.kinds is not None:
            some = [kept for kept in some if kept.one.kind in self._kinds]
        if (node := asked.node) is not None:
            node_of = cache(self._node_of)
            some = [
                k for k in some if node in k.nodes or (not k.one.lease and _is_about(k.one, node, node_of))
            ]
        if asked.owner is not None:
            for owner in {kept.owner for kept in some}.difference(self._is_meant):
                assert owner is not None
                self._is_meant[owner] = self._name_of(owner) == asked.owner
            some = [kept for kept in some if self._is_meant[kept.owner]]
        return some


def _is_about(one: Happening, node: str, node_of: Callable[[str], str | None]) -> bool:
    if node in (one.node, one.name):
        return True
    return any(device and node_of(device) == node for device in (one.name, *one.devices))


class Watcher(Later):
    """A client that is answered when something has happened that it may see, and wants to."""

    def __init__(
        self, watch: Watch, body: WatchBody, sees: Seen, until: float, wanted: Wanted | None = None
    ) -> None:
        super().__init__(NAME, until)
        self._wanted = None if wanted is None or wanted.all else wanted
        self._watch = watch
        self._limit = body.limit
        self._sees = sees
        self.after = watch.last if body.after is None else body.after

    def answer(self, *, at_once: bool) -> dict[str, Any] | None:
        """None: nothing yet, unless it is ``at_once``."""
        found, reached, lost = self._watch.since(self.after, self._limit, self._sees, self._wanted)
        if not found and not lost and not at_once:
            self.after = reached  # what it may not see need not be looked at again
            return None
        events, more = filled(found, self._limit, msgspec.to_builtins)
        return {"events": events, "next": events[-1]["number"] if more else reached, "lost": lost}


class _Known(Struct, frozen=True):
    """What is said of a lease, or of a place in the queue, after it is no more."""

    uid: int
    name: str
    queue: str
    nodes: tuple[str, ...] = ()


class Watch:
    """The ring. ``begin`` is called once, before anything happens."""

    def __init__(self, kept: int = KEPT, tell: Callable[[Happening], None] = lambda _: None) -> None:
        """``tell`` gets each as it happens."""
        self._tell = tell
        self._ring: deque[_Kept] = deque(maxlen=kept)
        self._known: dict[str, _Known] = {}
        self._first = self.last = 0  # the number before the oldest that is kept; of the newest

    def begin(self, term: int, there: Iterable[core.Lease | core.Waiting] = ()) -> None:
        """``term`` is the scheduler's; ``there``: what it has taken over."""
        self._first = self.last = term << _TERM_BITS
        for one in there:
            self._known[one.id] = _known(one)

    def since(
        self, after: int, limit: int, sees: Seen, wanted: Wanted | None = None
    ) -> tuple[list[Happening], int, bool]:
        """What was kept of it, the number up to which that is all, and whether something before is lost.

        A number of the future is one of another scheduler: all that is kept may be new to who has it.
        """
        lost = after < self._first or after > self.last
        if lost:
            after = self._first
        found: list[_Kept] = []
        rest = self._latest(self.last - after)
        is_seen: dict[int | None, bool] = {None: True}
        while some := list(islice(rest, _AT_A_TIME)):
            for owner in {kept.owner for kept in some}.difference(is_seen):
                assert owner is not None
                is_seen[owner] = sees(owner)
            some = [kept for kept in some if is_seen[kept.owner]]
            found += some if wanted is None else wanted.of(some)
            if len(found) > limit:
                return [kept.one for kept in found[:limit]], found[limit - 1].one.number, lost
        return [kept.one for kept in found], self.last, lost

    def _latest(self, count: int) -> Iterator[_Kept]:
        """So many, from the oldest. A deque is gone through from the end that is nearer."""
        before = len(self._ring) - count
        if before < count:
            return islice(self._ring, before, None)
        latest = list(islice(reversed(self._ring), count))
        return reversed(latest)

    # ---- what happens -----------------------------------------------------------------------

    def note(self, event: core.Event, decisions: Sequence[core.Decision], now: int) -> None:
        """Events first, then what was decided: so it happened."""
        if type(event) is core.Ended:
            self._of("ended", event.id, now)
            self._known.pop(event.id, None)
        elif type(event) not in _QUIET and not any(isinstance(one, core.Refuse) for one in decisions):
            self._of_event(event, now)
        for decision in decisions:
            if type(decision) is core.Grant:
                lease, why = decision.lease, decision.reason
                if not decision.again:
                    self._known[lease.id] = _known(lease)
                    self._of("granted", lease.id, now, lease.devices(), lease.epoch, "", why)
            elif type(decision) is core.Revoke or type(decision) is core.Preempt:
                lease, cause = decision.lease, decision.cause.value
                self._of("ending", lease.id, now, (), lease.epoch, cause, decision.reason)
            elif isinstance(decision, core.Suspend | core.Resume | core.Withdrawn):
                self._of(_KINDS[type(decision)], decision.id, now, reason=decision.reason)
                if isinstance(decision, core.Withdrawn):
                    self._known.pop(decision.id, None)

    def queued(self, one: core.Waiting, now: int, reason: str = "") -> None:
        """A request waits from now on."""
        self._known[one.id] = _known(one)
        self._of("queued", one.id, now, reason=reason)

    def _of_event(self, event: core.Event, now: int) -> None:
        match event:
            case core.NodeJoined(node=node):
                self._of_all("node_joined", now, node=node.id)
            case core.NodeLost(node=name, reason=reason):
                self._of_all("node_lost", now, node=name, reason=reason)
            case core.NodeForgotten(node=name):
                self._of_all("node_forgotten", now, node=name)
            case core.DeviceFailed(device=device, reason=reason):
                self._of_all("device_failed", now, devices=(device,), reason=reason)
            case core.DeviceRecovered(device=device):
                self._of_all("device_recovered", now, devices=(device,))
            case core.Cordon(target=target, reason=reason):
                self._of_all("cordoned", now, name=target, reason=reason)
            case core.Drain(target=target, reason=reason):
                self._of_all("drained", now, name=target, reason=reason)
            case core.Uncordon(target=target):
                self._of_all("uncordoned", now, name=target)
            case core.SetQueue(queue=queue):
                self._of_all("queue_set", now, queue=queue.name)
            case core.RemoveQueue(name=name):
                self._of_all("queue_removed", now, queue=name)

    def _of(
        self,
        kind: str,
        id: str,
        now: int,
        devices: tuple[str, ...] = (),
        epoch: int = 0,
        cause: str = "",
        reason: str = "",
    ) -> None:
        known = self._known.get(id)
        if known is not None:  # by place: with each lease it comes three times
            number, name, queue = self.last + 1, known.name, known.queue
            one = Happening(number, now, kind, id, name, queue, "", devices, epoch, cause, reason)
            self._add(_Kept(known.uid, known.nodes, one))

    def _of_all(self, kind: str, now: int, **what: Any) -> None:
        self._add(_Kept(None, (), Happening(self.last + 1, now, kind, **what)))

    def _add(self, kept: _Kept) -> None:
        self.last = kept.one.number
        if len(self._ring) == self._ring.maxlen:
            self._first += 1
        self._ring.append(kept)
        self._tell(kept.one)


def _known(one: core.Lease | core.Waiting) -> _Known:
    nodes: tuple[str, ...] = ()
    if isinstance(one, core.Lease):
        spots = one.spots()
        nodes = (spots[0].node,) if len(spots) == 1 else tuple(dict.fromkeys(spot.node for spot in spots))
    return _Known(one.uid, one.request.name, one.request.queue, nodes)


_KINDS = {core.Suspend: "suspended", core.Resume: "resumed", core.Withdrawn: "withdrawn"}
_QUIET = frozenset({core.Tick, core.Renew, core.Submit, core.Release, core.HolderGone, core.InventoryChanged})

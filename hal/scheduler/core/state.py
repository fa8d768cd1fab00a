"""The state machine: an event and the time in, decisions out. No clock, no socket, no file, no chance.

The same events at the same times give the same decisions, byte for byte. A lease is *active* while its
holder renews it, *suspended* while its node is lost, and *ending* from the moment it is taken away until
it is reported that none of its processes is left: what it holds counts until then.
"""

from __future__ import annotations

from collections.abc import Iterable

from hal.scheduler.core import events as on
from hal.scheduler.core.admit import Blocked, Why, plan
from hal.scheduler.core.decisions import (
    Cause,
    Decision,
    Grant,
    Queued,
    Refusal,
    Refuse,
    Renewed,
    Resume,
    Revoke,
    Suspend,
    Withdrawn,
)
from hal.scheduler.core.explain import Explanation, explain, in_short, lost_nodes
from hal.scheduler.core.facts import NodeFacts
from hal.scheduler.core.lease import Lease, LeaseState, Waiting
from hal.scheduler.core.partition import Partitioner
from hal.scheduler.core.placement import Policy
from hal.scheduler.core.queues import QueueError, Tree
from hal.scheduler.core.refuse import never
from hal.scheduler.core.request import InvalidError, check
from hal.scheduler.core.schedule import Scheduling
from hal.scheduler.core.terms import terms_of
from hal.scheduler.core.world import World

__all__ = ["State"]


class State:
    """Nodes, queues, requests and leases, and the rules between them. Times are whole milliseconds."""

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        grace_ms: int = 60_000,
        half_life_ms: int = 24 * 3600 * 1000,
        partitioner: Partitioner | None = None,
        hosts: bool = False,
    ) -> None:
        """``hosts``: requests for CPU and RAM only, without a device, are taken too."""
        self.world = World(Policy() if policy is None else policy, half_life_ms)
        self.grace_ms = grace_ms
        self.hosts = hosts
        self.scheduling = Scheduling(self.world, partitioner)
        self._by_key: dict[tuple[int, str], Lease | Waiting] = {}
        self._due: int | None = None  # nothing runs out before

    @property
    def leases(self) -> dict[str, Lease]:
        return self.world.leases

    @property
    def waiting(self) -> dict[str, Waiting]:
        return self.world.line.waiting

    @property
    def is_worth_keeping(self) -> bool:
        """Somebody holds or waits for something, or something was set."""
        counters = self.world.counters
        was_set = counters.cordoned or counters.labels or self.world.tree.queues != Tree().queues
        return bool(self.leases or self.waiting or was_set)

    def find(self, uid: int, key: str) -> Lease | Waiting | None:
        """What the request of this key has come to."""
        return self._by_key.get((uid, key))

    def apply(self, event: on.Event, now: int) -> list[Decision]:
        decisions = self._happened(event, now)
        decisions += self._scheduled(now)
        return decisions

    def explain(self, id: str, now: int) -> Explanation | None:
        return explain(self.world, id, now)

    def next_deadline(self) -> int | None:
        """When something runs out unless it is renewed; None when nothing does. It may be too early."""
        return self._due

    def restore(
        self, leases: Iterable[Lease], waiting: Iterable[Waiting], nodes: Iterable[NodeFacts]
    ) -> None:
        """What was written down, on these nodes. Counters and queues are set by the caller before."""
        tree, counters = self.world.tree, self.world.counters
        tree.had |= counters.had
        tree.faded_until = counters.faded_until
        for node in nodes:
            self.world.see(node)
        for key in sorted({key for _, key in self.world.mix.counts}):
            self.world.matcher.prepare(self.world.fleet, key)
        for lease in sorted(leases, key=lambda lease: lease.epoch):
            self.world.adopt(lease)
            self._by_key[lease.uid, lease.key] = lease
            counters.epoch = max(counters.epoch, lease.epoch)
        for one in sorted(waiting, key=lambda one: one.order):
            self.world.line.add(one)
            self._by_key[one.uid, one.key] = one
        self.world.changed.clear()
        self.scheduling.settled()
        self._due = -(1 << 62)

    # ---- events -----------------------------------------------------------------------------

    def _happened(self, event: on.Event, now: int) -> list[Decision]:
        match event:
            case on.Submit():
                return self._submit(event, now)
            case on.Renew():
                return [self._renew(event, now)]
            case on.Release():
                return [self._release(event)]
            case on.HolderGone():
                return self._gone(event.id, event.cause, event.reason)
            case on.Ended():
                return self._ended(event.id, now)
            case on.Tick():
                return self._tick(now)
            case on.NodeJoined():
                return self._joined(event.node, now)
            case on.InventoryChanged():
                return (
                    self._joined(event.node, now)
                    if event.node.id in self.world.counters.lost
                    else (self._seen(event.node))
                )
            case on.NodeLost():
                return self._lost(event, now)
            case on.NodeForgotten():
                return self._forgotten(event)
            case on.DeviceFailed():
                self.world.counters.failed[event.device] = event.reason
                self.world.refresh(event.device)
                leases = self.world.on_device(event.device)
                return self._revoke(leases, Cause.FAILED, f"{event.device} has failed: {event.reason}")
            case on.DeviceRecovered():
                self.world.counters.failed.pop(event.device, None)
                self.world.refresh(event.device)
                return []
            case on.Cordon():
                self.world.counters.cordoned[event.target] = event.reason
                self.world.refresh(event.target)
                return []
            case on.Drain():
                self.world.counters.cordoned[event.target] = event.reason
                self.world.refresh(event.target)
                there = {lease.id: lease for lease in self.world.on_device(event.target)}
                there |= {lease.id: lease for lease in self.world.on_node(event.target)}
                why = "" if event.reason == "drained" else f": {event.reason}"
                return self._revoke(there.values(), Cause.DRAINED, f"{event.target} is drained{why}")
            case on.Uncordon():
                self.world.counters.cordoned.pop(event.target, None)
                self.world.refresh(event.target)
                return []
            case on.SetQueue():
                return self._set_queue(event)
            case on.RemoveQueue():
                return self._remove_queue(event.name)
            case on.Resumed():
                for lease in self.world.leases.values():
                    lease.expires = now + lease.request.ttl_ms
                    self.world.note("lease", lease.id)
                lost = self.world.counters.lost
                lost.update(dict.fromkeys(lost, now + self.grace_ms))
                self.world.note("meta", "counters")
                return []

    # ---- requests ---------------------------------------------------------------------------

    def _submit(self, event: on.Submit, now: int) -> list[Decision]:
        world, request = self.world, event.request
        try:
            check(request, hosts=self.hosts)
        except InvalidError as error:
            return [Refuse(Refusal.INVALID, str(error), event.id, error.field)]
        known = self._by_key.get((event.uid, event.key))
        if known is not None:
            return [self._known(known)]
        if event.id in world.leases or event.id in world.line.waiting:
            return [Refuse(Refusal.TAKEN, f"there is a lease '{event.id}' already", event.id)]
        if request.queue not in world.tree.queues:
            reason = f"queue: there is no queue '{request.queue}'"
            return [Refuse(Refusal.INVALID, reason, event.id, "queue")]
        one = Waiting(
            event.id, request, event.uid, event.key, event.holder_pid, now, world.counters.order + 1
        )
        if (refused := self._cannot_be(one)) is not None:
            return [refused]
        world.counters.order += 1
        before = world.mix.arrivals
        for shape, key in terms_of(request.members).expected:
            world.mix.arrived(shape, key)
        if world.mix.is_worth_noting(before):
            world.note("mix", "mix")
        if (grant := self.scheduling.at_once(one, now)) is not None:
            self._granted(grant)
            return [grant]
        kind = world.line.add(one)
        decisions = self._scheduled(now)
        if event.id in world.leases:
            return decisions
        kept = world.counters.reservation
        moment = (world.freed, world.counters.epoch, "" if kept is None else kept.id)
        if kind.told_at != moment:
            found = plan(world, one, now)
            blocked = found if isinstance(found, Blocked) else Blocked(Why.ROOM, 0)
            told = in_short(world, one, blocked, now) if isinstance(found, Blocked) else self._held_off()
            kind.told, kind.barred, kind.told_at = told, blocked.why is not Why.ROOM, moment
        if not request.wait:
            world.line.remove(one.id)
            code = Refusal.LIMIT if kind.barred else Refusal.NO_ROOM
            return [*decisions, Refuse(code, kind.told, event.id)]
        self._by_key[one.uid, one.key] = one
        world.note("waiting", one.id)
        if request.deadline_ms is not None:
            self._runs_out(now + request.deadline_ms)
        return [*decisions, Queued(one.id, kind.told)]

    def _held_off(self) -> str:
        kept = self.world.counters.reservation
        who = f"'{kept.id}', which is" if kept is not None else "somebody who is"
        return f"there is room, and it is kept for {who} next"

    def _known(self, known: Lease | Waiting) -> Decision:
        if isinstance(known, Waiting):
            return Queued(known.id, "this request waits already", again=True)
        if known.state is LeaseState.ENDING:
            reason = "this request was granted before, and its lease has ended"
            return Refuse(Refusal.ENDED, reason, known.id)
        return Grant(known, "this request was granted before", again=True)

    def _cannot_be(self, one: Waiting) -> Refuse | None:
        world = self.world
        queue = world.tree.never_within_limit(one.request.queue, terms_of(one.request.members).least)
        if queue is not None:
            return Refuse(Refusal.TOO_LARGE, f"it is more than the limit of queue '{queue}' alone", one.id)
        if one.request.wait and (world.counters.lost or world.line.has_kind_of(one)):
            return None  # who knows what comes back; or others of the kind wait already
        found = never(world, one.request)
        if found is None:
            return None
        if (away := lost_nodes(world)) is not None:  # who knows whether it would do
            return Refuse(Refusal.NO_ROOM, f"{found[1]}; {away}", one.id)
        return Refuse(found[0], found[1], one.id)

    # ---- leases -----------------------------------------------------------------------------

    def _renew(self, event: on.Renew, now: int) -> Decision:
        one = self._owned(event.id, event.uid)
        if isinstance(one, Refuse):
            return one
        if isinstance(one, Waiting):
            return Renewed(one.id, None)
        one.expires = now + one.request.ttl_ms
        return Renewed(one.id, one.expires)

    def _release(self, event: on.Release) -> Decision:
        ending = self.world.leases.get(event.id)
        if ending is not None and ending.again and event.uid in (ending.uid, 0):
            ending.again = False  # it was taken away and would wait again: nobody wants it any more
            self.world.note("lease", event.id)
        one = self._owned(event.id, event.uid)
        if isinstance(one, Refuse):
            return one
        (decision,) = self._gone(one.id, Cause.RELEASED, event.reason)
        return decision

    def _owned(self, id: str, uid: int) -> Lease | Waiting | Refuse:
        one = self.world.leases.get(id) or self.world.line.waiting.get(id)
        if one is None or uid not in (one.uid, 0):
            return Refuse(Refusal.NOT_FOUND, f"there is no lease '{id}'", id)
        if isinstance(one, Lease) and one.state is LeaseState.ENDING:
            return Refuse(Refusal.ENDED, f"the lease '{id}' has ended", id)
        return one

    def _gone(self, id: str, cause: Cause, reason: str) -> list[Decision]:
        lease = self.world.leases.get(id)
        if lease is not None:
            decisions = self._revoke([lease], cause, reason)
            lease.again = False  # whoever wanted it wants it no more
            self.world.note("lease", id)
            return decisions
        return self._withdraw(id, cause, reason)

    def _withdraw(self, id: str, cause: Cause, reason: str) -> list[Decision]:
        if id not in self.world.line.waiting:
            return []
        one = self.world.line.remove(id)
        self._by_key.pop((one.uid, one.key), None)
        self.world.note("waiting", id)
        return [Withdrawn(id, cause, reason, one)]

    def _revoke(self, leases: Iterable[Lease], cause: Cause, reason: str) -> list[Decision]:
        decisions: list[Decision] = []
        for lease in sorted(leases, key=lambda lease: lease.epoch):
            if lease.state is LeaseState.ENDING:
                continue
            lease.state = LeaseState.ENDING
            lease.again = lease.request.requeue and cause not in (
                Cause.RELEASED,
                Cause.HOLDER_GONE,
                Cause.EXPIRED,
            )
            self.world.note("lease", lease.id)
            decisions.append(Revoke(lease, cause, reason))
        return decisions

    def _ended(self, id: str, now: int) -> list[Decision]:
        lease = self.world.leases.get(id)
        if lease is None:
            return []
        self.world.remove(lease, now)
        self._by_key.pop((lease.uid, lease.key), None)
        if not lease.again:
            return []
        one = Waiting(id, lease.request, lease.uid, lease.key, lease.holder_pid, lease.arrived, lease.order)
        kind = self.world.line.add(one)
        self.world.line.fresh[kind.key] = kind
        self._by_key[one.uid, one.key] = one
        self.world.note("waiting", id)
        return [Queued(id, "its lease was taken away: it waits in its old place")]

    # ---- time -------------------------------------------------------------------------------

    def _runs_out(self, at: int) -> None:
        self._due = at if self._due is None else min(self._due, at)

    def _tick(self, now: int) -> list[Decision]:
        if self._due is None or now < self._due:
            return []
        decisions: list[Decision] = []
        world = self.world
        for node, until in sorted(world.counters.lost.items()):
            if until <= now:
                suspended = [one for one in world.on_node(node) if one.state is LeaseState.SUSPENDED]
                decisions += self._revoke(suspended, Cause.LOST, f"node '{node}' has not come back in time")
        for lease in list(world.leases.values()):
            if lease.state is LeaseState.ACTIVE and lease.expires <= now:
                decisions += self._revoke([lease], Cause.EXPIRED, "it was not renewed in time")
            elif not lease.overdue and lease.ends is not None and lease.ends <= now:
                lease.overdue = True
                world.note("lease", lease.id)
                world.freed += 1  # whoever waits may have it now
        for one in list(world.line.waiting.values()):
            deadline = one.request.deadline_ms
            if deadline is not None and one.arrived + deadline <= now:
                decisions += self._withdraw(one.id, Cause.EXPIRED, "its deadline has passed")
        self._due = min(self._deadlines(now), default=None)
        return decisions

    def _deadlines(self, now: int) -> Iterable[int]:
        world = self.world
        yield from (until for until in world.counters.lost.values() if until > now)
        for lease in world.leases.values():
            if lease.state is LeaseState.ACTIVE:
                yield lease.expires
            if not lease.overdue and lease.ends is not None:
                yield lease.ends
        for one in world.line.waiting.values():
            if one.request.deadline_ms is not None:
                yield one.arrived + one.request.deadline_ms

    def _scheduled(self, now: int) -> list[Decision]:
        decisions = self.scheduling.run(now)
        for decision in decisions:
            if isinstance(decision, Grant):
                self._granted(decision)
        return decisions

    def _granted(self, grant: Grant) -> None:
        lease = grant.lease
        self._by_key[lease.uid, lease.key] = lease
        self._runs_out(lease.expires if lease.ends is None else min(lease.expires, lease.ends))

    # ---- nodes ------------------------------------------------------------------------------

    def _seen(self, node: NodeFacts) -> list[Decision]:
        try:
            self.world.see(node)
        except ValueError as error:
            return [Refuse(Refusal.INVALID, f"node: {error}", node.id, "node")]
        return []

    def _joined(self, node: NodeFacts, now: int) -> list[Decision]:
        refused = self._seen(node)
        if not refused:
            self.world.changed.pop(("node", node.id), None)  # forgotten a moment ago, it is here again
        if refused or node.id not in self.world.counters.lost:
            return refused
        del self.world.counters.lost[node.id]
        self.world.note("meta", "counters")
        decisions: list[Decision] = []
        for lease in self.world.on_node(node.id):
            elsewhere = any(spot.node in self.world.counters.lost for spot in lease.spots())
            if lease.state is LeaseState.SUSPENDED and not elsewhere:
                lease.state = LeaseState.ACTIVE
                lease.expires = now + lease.request.ttl_ms
                self._runs_out(lease.expires)
                self.world.note("lease", lease.id)
                decisions.append(Resume(lease.id, f"node '{node.id}' has come back"))
        return decisions

    def _lost(self, event: on.NodeLost, now: int) -> list[Decision]:
        world = self.world
        if event.node not in world.fleet.row_of:
            return []
        world.leave(event.node)
        until = now + self.grace_ms
        world.counters.lost[event.node] = until
        world.note("meta", "counters")
        self._runs_out(until)
        decisions: list[Decision] = []
        for lease in world.on_node(event.node):
            if lease.state is LeaseState.ACTIVE:
                lease.state = LeaseState.SUSPENDED
                world.note("lease", lease.id)
                decisions.append(Suspend(lease.id, until, event.reason))
        return decisions

    def _forgotten(self, event: on.NodeForgotten) -> list[Decision]:
        world, counters = self.world, self.world.counters
        if event.node in world.fleet.row_of:
            world.leave(event.node)
        counters.lost.pop(event.node, None)
        counters.labels.pop(event.node, None)
        for target in (event.node, *event.devices):
            counters.cordoned.pop(target, None)
            counters.failed.pop(target, None)
        world.note("node", event.node)
        world.note("meta", "counters")
        return self._revoke(world.on_node(event.node), Cause.LOST, f"node '{event.node}' was given up")

    def _set_queue(self, event: on.SetQueue) -> list[Decision]:
        try:
            self.world.tree.set(event.queue)
        except QueueError as error:
            return [Refuse(Refusal.INVALID, str(error), event.queue.name, error.field)]
        self.world.note("queue", event.queue.name)
        self.world.altered += 1
        self.world.freed += 1
        return []

    def _remove_queue(self, name: str) -> list[Decision]:
        world = self.world
        requests = [lease.request for lease in world.leases.values()]
        requests += [one.request for one in world.line.waiting.values()]
        if found := sum(request.queue == name for request in requests):
            why = f"queue '{name}' is not empty: leases and requests that wait: {found}"
            return [Refuse(Refusal.IN_USE, why, name)]
        try:
            world.tree.remove(name)
        except QueueError as error:
            code = Refusal.INVALID if error.field == "queue" else Refusal.IN_USE
            return [Refuse(code, error.message, name, error.field)]
        world.line.forget(name)
        world.note("queue", name)
        world.altered += 1
        world.freed += 1  # what it could have back need not be kept for it
        return []

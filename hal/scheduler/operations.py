"""What clients and agents can ask for: one function per operation of the protocol (docs/protocol.md)."""

from __future__ import annotations

import heapq
import secrets
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from hal.scheduler import bodies, core, operating, wire
from hal.scheduler.agent.binding import Beat, Join
from hal.scheduler.answers import FAULTS, Peer, Refused, Waiter, fault
from hal.scheduler.jobs import operations as jobs
from hal.scheduler.watch import WatchBody, Watcher

if TYPE_CHECKING:
    from hal.scheduler.daemon import Daemon
    from hal.scheduler.engine import Engine

__all__ = ["OPERATIONS", "Operation", "granted"]

Operation = Callable[["Daemon", wire.Body, Peer], wire.Body | Waiter]

_PATIENCE = 8.0  # seconds for nodes to make slices, before the client is told to ask again


def hello(daemon: Daemon, _body: wire.Body, _peer: Peer) -> wire.Body:
    return {
        "pid": daemon.pid,
        "private": daemon.private,
        "node": daemon.nodes.own,
        "term": daemon.nodes.term,
        "leases": len(daemon.state.leases),
        "waiting": len(daemon.state.waiting),
        "classes": sorted(daemon.config.classes),
        "now_ms": daemon.now(),
        "event": daemon.watch_ring.last,
        "trouble": daemon.trouble,
    }


# ---- leases ---------------------------------------------------------------------------------


def acquire(daemon: Daemon, body: wire.Body, peer: Peer) -> wire.Body | Waiter:
    return _acquire(daemon, msgspec.convert(body, bodies.Acquire), peer)


def acquire_many(daemon: Daemon, body: wire.Body, peer: Peer) -> wire.Body:
    """One whose slices take a while is answered with ``waiting``: nobody is kept from the others' answers."""
    replies = []
    for asked in msgspec.convert(body, bodies.AcquireMany).requests:
        try:
            answer = _acquire(daemon, asked, peer)
        except FAULTS as wrong:
            replies.append({"ok": False, "error": msgspec.to_builtins(fault(wrong))})
            continue
        if isinstance(answer, Waiter):
            answer = {"waiting": bodies.being_made(daemon.state.leases[answer.lease], daemon.now())}
        replies.append({"ok": True, "body": answer})
    return {"replies": replies}


def release_many(daemon: Daemon, body: wire.Body, peer: Peer) -> wire.Body:
    replies: list[wire.Body] = []
    for id in msgspec.convert(body, bodies.ReleaseMany).leases:
        try:
            replies.append({"ok": True, "body": _release(daemon, id, peer)})
        except FAULTS as wrong:
            replies.append({"ok": False, "error": msgspec.to_builtins(fault(wrong))})
    return {"replies": replies}


def _acquire(daemon: Daemon, asked: bodies.Acquire, peer: Peer) -> wire.Body | Waiter:
    request = asked.wanted(daemon.config.classes)
    if request.wait and daemon.state.find(peer.uid, asked.key) is None:
        daemon.limits.queue(peer, daemon.state.world.line.of_owner[peer.uid])
    daemon.look_at_devices()
    id = _fresh_id(daemon)
    daemon.board.accounts.know(peer.name, peer.uid)
    daemon.decide(core.Submit(request, id, asked.key, peer.uid, peer.pid))
    one = daemon.state.find(peer.uid, asked.key)
    if isinstance(one, core.Waiting):
        daemon.watch(one.id, one.holder_pid)
        told = daemon.state.explain(one.id, daemon.now())
        reason = "" if told is None else "; ".join((*told.reasons, f"nearest: {told.nearest}"))
        return {"waiting": bodies.queued(one, daemon.now(), reason)}
    if one is None or one.state is core.LeaseState.ENDING:
        raise Refused(*daemon.over.pop(id, ("failed", "the lease has ended at once")))
    if daemon.nodes.is_bound(one):
        return granted(daemon, one)
    return Waiter(one.id, time.monotonic() + _PATIENCE)


def granted(daemon: Engine, lease: core.Lease) -> wire.Body:
    """What its holder is told of a lease whose slices are made."""
    environments = daemon.nodes.environments(lease)
    return {
        "lease": _described(daemon, lease),
        "environment": environments[0],
        "environments": environments,
    }


def wait(daemon: Daemon, body: wire.Body, peer: Peer) -> wire.Body | Waiter:
    asked = msgspec.convert(body, bodies.Wait)
    one = _commanded(daemon, asked.lease, peer)
    if one.holder_pid == peer.pid:  # and nobody else who asks: a job's lease has no such process
        daemon.watch(asked.lease, peer.pid)  # after a restart of the scheduler
    waiter = Waiter(asked.lease, time.monotonic() + asked.timeout_seconds)
    return waiter if (answer := daemon.outcome(waiter)) is None else answer


def renew(daemon: Daemon, body: wire.Body, peer: Peer) -> wire.Body:
    id = msgspec.convert(body, bodies.Named).lease
    one = daemon.state.leases.get(id) or daemon.state.waiting.get(id)
    if one is None or peer.uid not in (one.uid, 0):  # what is made up is no event: those are kept
        raise Refused(*daemon.over.get(id, ("not_found", f"there is no lease '{id:.64}'")))
    daemon.decide(core.Renew(id, peer.uid))
    one = daemon.state.leases.get(id) or daemon.state.waiting.get(id) or one
    if one.holder_pid == peer.pid:
        daemon.watch(id, peer.pid)  # a successor has not seen its holder yet; one elsewhere has been heard
    if isinstance(one, core.Waiting):
        return {"waiting": bodies.queued(one, daemon.now())}
    return {"lease": _described(daemon, one)}


def release(daemon: Daemon, body: wire.Body, peer: Peer) -> wire.Body:
    return _release(daemon, msgspec.convert(body, bodies.Named).lease, peer)


def _release(daemon: Daemon, id: str, peer: Peer) -> wire.Body:
    one = _commanded(daemon, id, peer)
    if isinstance(one, core.Waiting):
        daemon.decide(core.Release(id, one.uid))
        return {"waiting": bodies.queued(one, daemon.now()), "ended": True}
    # It has stopped its program before it says so. Of those on other machines only the owner is known.
    if peer.pid == one.holder_pid and peer.uid == one.uid:
        daemon.unwatch(id)
    daemon.decide(core.Release(id, one.uid))
    return {"lease": _described(daemon, one), "ended": id not in daemon.state.leases}


def list_leases(daemon: Daemon, body: wire.Body, peer: Peer) -> wire.Body:
    """A page of leases and of those that wait, together by the order of their arrival."""
    page = msgspec.convert(body, bodies.Page)
    state = daemon.state
    there: list[core.Lease | core.Waiting] = [*state.leases.values(), *state.waiting.values()]
    seen = (one for one in there if one.order > page.after and peer.sees(one.uid))
    shown = heapq.nsmallest(page.limit + 1, seen, key=lambda one: one.order)
    more, shown = len(shown) > page.limit, shown[: page.limit]
    now = daemon.now()
    return {
        "leases": [_described(daemon, one) for one in shown if isinstance(one, core.Lease)],
        "waiting": [bodies.queued(one, now) for one in shown if isinstance(one, core.Waiting)],
        "next": shown[-1].order if more else None,
    }


def watch(daemon: Daemon, body: wire.Body, peer: Peer) -> wire.Body | Waiter:
    asked = msgspec.convert(body, WatchBody)
    watcher = Watcher(daemon.watch_ring, asked, peer.sees, time.monotonic() + asked.timeout_seconds)
    answer = watcher.answer(at_once=not asked.timeout_seconds)
    return watcher if answer is None else answer


def explain(daemon: Daemon, body: wire.Body, peer: Peer) -> wire.Body:
    id = msgspec.convert(body, bodies.Named).lease
    _seen(daemon, id, peer)
    daemon.look_at_devices()
    told = daemon.state.explain(id, daemon.now())
    if told is None:  # it has been withdrawn this moment
        raise Refused("not_found", f"there is no lease '{id}'")
    return {"explanation": msgspec.to_builtins(told)}


def _seen(daemon: Daemon, id: str, peer: Peer) -> core.Lease | core.Waiting:
    """To whom it is not shown, it does not exist. Raises Refused."""
    one = daemon.state.leases.get(id) or daemon.state.waiting.get(id)
    if one is None or not peer.sees(one.uid):
        raise Refused(*daemon.over.get(id, ("not_found", f"there is no lease '{id}'")))
    return one


def _commanded(daemon: Daemon, id: str, peer: Peer) -> core.Lease | core.Waiting:
    one = _seen(daemon, id, peer)
    if not peer.commands(one.uid):
        raise Refused("denied", f"the lease '{id}' is another's")
    return one


def _fresh_id(daemon: Daemon) -> str:
    while True:
        id = secrets.token_hex(4)
        if id not in daemon.state.leases and id not in daemon.state.waiting:
            return id


def _described(daemon: Engine, lease: core.Lease) -> dict[str, Any]:
    nodes = daemon.nodes
    return bodies.described(lease, nodes.use(lease), nodes.enforcement(lease), daemon.now())


# ---- queues ---------------------------------------------------------------------------------


def queues(daemon: Daemon, _body: wire.Body, _peer: Peer) -> wire.Body:
    waiting = Counter(one.request.queue for one in daemon.state.waiting.values())
    return {"queues": bodies.queues(daemon.state.world.tree, waiting)}


def set_queue(daemon: Daemon, body: wire.Body, peer: Peer) -> wire.Body:
    asked = msgspec.convert(body, bodies.SetQueueBody)
    daemon.decide(core.SetQueue(asked.queue(daemon.state.world.tree.queues.get(asked.name))))
    return queues(daemon, body, peer)


# ---- agents ---------------------------------------------------------------------------------


def join(daemon: Daemon, body: wire.Body, peer: Peer) -> wire.Body:
    joining = msgspec.convert(body, Join)
    _check(joining)
    return daemon.join(joining, peer)


def beat(daemon: Daemon, body: wire.Body, peer: Peer) -> wire.Body:
    """``durable`` false: what has ended is to be told again."""
    told = msgspec.convert(body, Beat)
    _check(told)
    daemon.beat(told, peer)
    return {"durable": True}


def _check(told: Join | Beat) -> None:
    try:
        told.check()
    except ValueError as wrong:
        raise Refused("malformed", str(wrong)) from None


OPERATIONS: dict[str, Operation] = {
    "hello": hello,
    "acquire": acquire,
    "acquire_many": acquire_many,
    "release_many": release_many,
    "watch": watch,
    "wait": wait,
    "renew": renew,
    "release": release,
    "list": list_leases,
    "explain": explain,
    "queues": queues,
    "set_queue": set_queue,
    "join": join,
    "beat": beat,
    **operating.OPERATIONS,
    **jobs.OPERATIONS,
}

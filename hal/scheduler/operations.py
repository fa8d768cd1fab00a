"""What clients and agents can ask for: one function per operation of the protocol (docs/protocol.md)."""

from __future__ import annotations

import heapq
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from hal.scheduler import bodies, core, operating, wire
from hal.scheduler.agent.binding import Beat, Join
from hal.scheduler.answers import FAULTS, Peer, Refused, Waiter, fault
from hal.scheduler.jobs import operations as jobs
from hal.scheduler.page import filled
from hal.scheduler.past import gone
from hal.scheduler.watch import Wanted, WatchBody, Watcher

if TYPE_CHECKING:
    from hal.scheduler.engine import Engine

__all__ = ["OPERATIONS", "Operation", "granted"]

Operation = Callable[["Engine", wire.Body, Peer], wire.Body | Waiter]

_MOST_QUEUES = 10_000  # an answer has all of them
_PATIENCE = 8.0  # seconds for nodes to make slices, before the client is told to ask again


def hello(engine: Engine, _body: wire.Body, _peer: Peer) -> wire.Body:
    return {
        "pid": engine.pid,
        "private": engine.private,
        "node": engine.nodes.own,
        "term": engine.nodes.term,
        "leases": len(engine.state.leases),
        "waiting": len(engine.state.waiting),
        "classes": sorted(engine.config.classes),
        "now_ms": engine.now(),
        "event": engine.watch_ring.last,
        "trouble": engine.trouble,
        "unnoted": engine.unnoted,
    }


# ---- leases ---------------------------------------------------------------------------------


def acquire(engine: Engine, body: wire.Body, peer: Peer) -> wire.Body | Waiter:
    return _acquire(engine, msgspec.convert(body, bodies.Acquire), peer)


def acquire_many(engine: Engine, body: wire.Body, peer: Peer) -> wire.Body:
    """One whose slices take a while is answered with ``waiting``: nobody is kept from the others' answers."""
    replies = []
    for asked in msgspec.convert(body, bodies.AcquireMany).requests:
        try:
            answer = _acquire(engine, asked, peer)
        except FAULTS as wrong:
            replies.append({"ok": False, "error": msgspec.to_builtins(fault(wrong))})
            continue
        if isinstance(answer, Waiter):
            answer = {"waiting": bodies.being_made(engine.state.leases[answer.lease], engine.now())}
        replies.append({"ok": True, "body": answer})
    return {"replies": replies}


def release_many(engine: Engine, body: wire.Body, peer: Peer) -> wire.Body:
    replies: list[wire.Body] = []
    for id in msgspec.convert(body, bodies.ReleaseMany).leases:
        try:
            replies.append({"ok": True, "body": _release(engine, id, peer)})
        except FAULTS as wrong:
            replies.append({"ok": False, "error": msgspec.to_builtins(fault(wrong))})
    return {"replies": replies}


def _acquire(engine: Engine, asked: bodies.Acquire, peer: Peer) -> wire.Body | Waiter:
    request = asked.wanted(engine.config.classes)
    if request.wait and engine.state.find(peer.uid, asked.key) is None:
        there = engine.state.world.line.of_owner[peer.uid]
        engine.limits.queue(peer, there, 1, engine.kept, wire.MAX_FRAME_BYTES)  # it has no more than that
    engine.look_at_devices()
    id = _fresh_id(engine)
    engine.board.accounts.know(peer.name, peer.uid)
    engine.decide(core.Submit(request, id, asked.key, peer.uid, peer.pid))
    one = engine.state.find(peer.uid, asked.key)
    if isinstance(one, core.Waiting):
        engine.watch(one.id, one.holder_pid)
        told = engine.state.explain(one.id, engine.now())
        reason = "" if told is None else "; ".join((*told.reasons, f"nearest: {told.nearest}"))
        return {"waiting": bodies.queued(one, engine.now(), reason)}
    if one is None or one.state is core.LeaseState.ENDING:
        raise Refused(*engine.over.pop(id, ("failed", "the lease has ended at once")))
    if engine.nodes.is_bound(one):
        return granted(engine, one)
    return Waiter(one.id, time.monotonic() + _PATIENCE)


def granted(engine: Engine, lease: core.Lease) -> wire.Body:
    """What its holder is told of a lease whose slices are made."""
    environments = engine.nodes.environments(lease)
    return {
        "lease": _described(engine, lease),
        "environment": environments[0],
        "environments": environments,
    }


def wait(engine: Engine, body: wire.Body, peer: Peer) -> wire.Body | Waiter:
    asked = msgspec.convert(body, bodies.Wait)
    one = _commanded(engine, asked.lease, peer)
    if one.holder_pid == peer.pid:  # and nobody else who asks: a job's lease has no such process
        engine.watch(asked.lease, peer.pid)  # after a restart of the scheduler
    waiter = Waiter(asked.lease, time.monotonic() + asked.timeout_seconds)
    return waiter if (answer := engine.outcome(waiter)) is None else answer


def renew(engine: Engine, body: wire.Body, peer: Peer) -> wire.Body:
    id = msgspec.convert(body, bodies.Named).lease
    one = engine.state.leases.get(id) or engine.state.waiting.get(id)
    if one is None or peer.uid not in (one.uid, 0):  # what is made up is no event: those are kept
        raise gone(engine, id, peer)
    engine.decide(core.Renew(id, peer.uid))
    engine.board.accounts.know(peer.name, peer.uid)  # a successor has not heard of its holder yet
    one = engine.state.leases.get(id) or engine.state.waiting.get(id) or one
    if one.holder_pid == peer.pid:
        engine.watch(id, peer.pid)  # a successor has not seen its holder yet; one elsewhere has been heard
    if isinstance(one, core.Waiting):
        return {"waiting": bodies.queued(one, engine.now())}
    return {"lease": _described(engine, one)}


def release(engine: Engine, body: wire.Body, peer: Peer) -> wire.Body:
    asked = msgspec.convert(body, bodies.Release)
    return _release(engine, asked.lease, peer, lost_epoch=asked.lost_epoch)


def _release(engine: Engine, id: str, peer: Peer, *, lost_epoch: int | None = None) -> wire.Body:
    one = _commanded(engine, id, peer)
    if isinstance(one, core.Waiting):
        engine.decide(core.Release(id, one.uid))
        return {"waiting": bodies.queued(one, engine.now()), "ended": True}
    # It has stopped its program before it says so, but for a grant that it has just lost. Of those on other
    # machines only the owner is known.
    if peer.pid == one.holder_pid and peer.uid == one.uid and one.epoch != lost_epoch:
        engine.unwatch(id)
    engine.decide(core.Release(id, one.uid))
    return {"lease": _described(engine, one), "ended": id not in engine.state.leases}


def list_leases(engine: Engine, body: wire.Body, peer: Peer) -> wire.Body:
    """A page of leases and of those that wait, together by the order of their arrival."""
    page = msgspec.convert(body, bodies.Page)
    state = engine.state
    there: list[core.Lease | core.Waiting] = [*state.leases.values(), *state.waiting.values()]
    seen = (one for one in there if one.order > page.after and peer.sees(one.uid))
    first = heapq.nsmallest(page.limit + 1, seen, key=lambda one: one.order)
    now, name_of = engine.now(), engine.board.accounts.name_of

    def told(one: core.Lease | core.Waiting) -> wire.Body:
        body = _described(engine, one) if isinstance(one, core.Lease) else bodies.queued(one, now)
        return body | {"owner": name_of(one.uid)}

    shown, more = filled(first, page.limit, told)
    are_leases = [isinstance(one, core.Lease) for one in first[: len(shown)]]
    return {
        "leases": [body for body, is_lease in zip(shown, are_leases, strict=True) if is_lease],
        "waiting": [body for body, is_lease in zip(shown, are_leases, strict=True) if not is_lease],
        "next": first[len(shown) - 1].order if more else None,
    }


def watch(engine: Engine, body: wire.Body, peer: Peer) -> wire.Body | Waiter:
    asked = msgspec.convert(body, WatchBody)
    wanted = Wanted(asked, engine.board.accounts.name_of, engine.nodes.node_of)
    watcher = Watcher(engine.watch_ring, asked, peer.sees, time.monotonic() + asked.timeout_seconds, wanted)
    answer = watcher.answer(at_once=not asked.timeout_seconds)
    return watcher if answer is None else answer


def lease(engine: Engine, body: wire.Body, peer: Peer) -> wire.Body:
    """One, or who waits for one; also what has become of either, while that is known."""
    id = msgspec.convert(body, bodies.Named).lease
    one = engine.state.leases.get(id) or engine.state.waiting.get(id)
    over = engine.past.find(id, engine.now())
    shown = None if over is None or not peer.sees(over.uid) else over.told()
    name_of = engine.board.accounts.name_of
    if shown is not None and over is not None:
        shown["owner"] = name_of(over.uid)
        if one is None:
            return {"over": shown}
    one = _seen(engine, id, peer)
    owner = {"owner": name_of(one.uid)}
    if isinstance(one, core.Waiting):
        told = engine.state.explain(id, engine.now())
        reason = "" if told is None else "; ".join(told.reasons)
        return {"waiting": bodies.queued(one, engine.now(), reason) | owner}
    ends = one.state is core.LeaseState.ENDING and shown is not None  # else that was an earlier time
    return {"lease": _described(engine, one) | owner} | ({"over": shown} if ends else {})


def explain(engine: Engine, body: wire.Body, peer: Peer) -> wire.Body:
    id = msgspec.convert(body, bodies.Named).lease
    _seen(engine, id, peer)
    engine.look_at_devices()
    told = engine.state.explain(id, engine.now())
    if told is None:  # it has been withdrawn this moment
        raise Refused("not_found", f"there is no lease '{id}'")
    return {"explanation": msgspec.to_builtins(told)}


def _seen(engine: Engine, id: str, peer: Peer) -> core.Lease | core.Waiting:
    """To whom it is not shown, it does not exist. Raises Refused."""
    one = engine.state.leases.get(id) or engine.state.waiting.get(id)
    if one is None or not peer.sees(one.uid):
        raise gone(engine, id, peer)
    return one


def _commanded(engine: Engine, id: str, peer: Peer) -> core.Lease | core.Waiting:
    one = _seen(engine, id, peer)
    if not peer.commands(one.uid):
        raise Refused("denied", f"the lease '{id}' is another's")
    return one


def _fresh_id(engine: Engine) -> str:
    while True:
        id = os.urandom(4).hex()
        if id not in engine.state.leases and id not in engine.state.waiting:
            return id


def _described(engine: Engine, lease: core.Lease) -> dict[str, Any]:
    nodes = engine.nodes
    return bodies.described(lease, nodes.use(lease), nodes.enforcement(lease), engine.now())


# ---- queues ---------------------------------------------------------------------------------


def queues(engine: Engine, _body: wire.Body, _peer: Peer) -> wire.Body:
    waiting = Counter(one.request.queue for one in engine.state.waiting.values())
    return {"queues": bodies.queues(engine.state.world.tree, waiting)}


def set_queue(engine: Engine, body: wire.Body, peer: Peer) -> wire.Body:
    asked = msgspec.convert(body, bodies.SetQueueBody)
    there = engine.state.world.tree.queues
    if asked.name not in there and len(there) >= _MOST_QUEUES:
        raise Refused("limit", f"there are {len(there)} queues; remove one that is not needed")
    engine.decide(core.SetQueue(asked.queue(there.get(asked.name))))
    return queues(engine, body, peer)


def remove_queue(engine: Engine, body: wire.Body, peer: Peer) -> wire.Body:
    name = msgspec.convert(body, bodies.QueueName).name
    if jobs := engine.board.living_in(name):
        raise Refused("failed", f"queue '{name:.64}' is not empty: jobs that are not over: {jobs}")
    engine.decide(core.RemoveQueue(name))
    return queues(engine, body, peer)


# ---- agents ---------------------------------------------------------------------------------


def join(engine: Engine, body: wire.Body, peer: Peer) -> wire.Body:
    joining = msgspec.convert(body, Join)
    _check(joining)
    return engine.join(joining, peer)


def beat(engine: Engine, body: wire.Body, peer: Peer) -> wire.Body:
    """``durable`` false: what has ended is to be told again."""
    told = msgspec.convert(body, Beat)
    _check(told)
    engine.beat(told, peer)
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
    "lease": lease,
    "explain": explain,
    "queues": queues,
    "set_queue": set_queue,
    "remove_queue": remove_queue,
    "join": join,
    "beat": beat,
    **operating.OPERATIONS,
    **jobs.OPERATIONS,
}

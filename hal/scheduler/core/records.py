"""The state as rows of bytes: what has changed since the last time, and a state made of them again.

Nodes are written by whoever knows them: they are here until they report again after a restart.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from hal.scheduler.core.facts import NodeFacts
from hal.scheduler.core.lease import Lease, Waiting
from hal.scheduler.core.mix import Mix, MixState
from hal.scheduler.core.queues import Queue
from hal.scheduler.core.state import State
from hal.scheduler.core.world import Counters

__all__ = ["APART", "DamagedError", "Row", "Saved", "changes", "everything", "read", "restore"]

# (kind, id, value); None: it is no more
Row = tuple[str, str, bytes | None]

_TYPES: dict[str, Any] = {
    "lease": Lease,
    "waiting": Waiting,
    "queue": Queue,
    "meta": Counters,
    "mix": MixState,
    "node": NodeFacts,
}


# Kinds of rows that lie beside the state's: no event of the core makes them.
APART = frozenset({"account", "job", "told"})


class DamagedError(ValueError):
    """Rows of which no state can be made."""


def changes(state: State) -> list[Row]:
    """What to write so that everything that was decided so far is known to a successor."""
    changed = state.world.changed
    if not changed:
        return []
    changed["meta", "counters"] = None
    rows = [_row(state, kind, id) for kind, id in changed]
    changed.clear()
    return rows


def everything(state: State) -> list[Row]:
    world = state.world
    keys = [("lease", id) for id in world.leases]
    keys += [("waiting", id) for id in world.line.waiting]
    keys += [("queue", name) for name in world.tree.queues]
    return [_row(state, kind, id) for kind, id in [*keys, ("meta", "counters"), ("mix", "mix")]]


class Saved(msgspec.Struct):
    """What was written down, read again."""

    leases: list[Lease] = []
    waiting: list[Waiting] = []
    queues: list[Queue] = []
    counters: Counters | None = None
    mix: MixState | None = None
    nodes: list[NodeFacts] = []


def read(rows: Iterable[Row]) -> Saved:
    """Raises DamagedError."""
    saved = Saved()
    for kind, id, value in rows:
        if kind in APART:
            continue
        try:
            if value is None:
                raise DamagedError(f"the {kind:.20} '{id:.64}' is empty")
            one = msgspec.msgpack.decode(value, type=_TYPES[kind])
        except KeyError:
            raise DamagedError(f"there is a row of an unknown kind '{kind:.40}'") from None
        except msgspec.DecodeError as error:
            raise DamagedError(f"the {kind} '{id:.64}' cannot be read: {error}") from None
        match one:
            case Lease():
                saved.leases.append(one)
            case Waiting():
                saved.waiting.append(one)
            case Queue():
                saved.queues.append(one)
            case Counters():
                saved.counters = one
            case MixState():
                saved.mix = one
            case NodeFacts():
                saved.nodes.append(one)
    return saved


def restore(saved: Saved, nodes: Iterable[NodeFacts], **options: Any) -> State:
    """Raises DamagedError. ``options`` are those of State; apply ``Resumed`` next."""
    state = State(**options)
    world = state.world
    _put_queues(state, saved.queues)
    if saved.counters is not None:
        world.counters = saved.counters
    if saved.mix is not None:
        world.mix = Mix.of(saved.mix)
    queued = [(one.id, one.request.queue) for one in saved.leases]
    queued += [(one.id, one.request.queue) for one in saved.waiting]
    for id, queue in queued:
        if queue not in world.tree.queues:
            raise DamagedError(f"'{id:.64}' is in a queue that is not there")
    state.restore(saved.leases, saved.waiting, nodes)
    return state


def _put_queues(state: State, queues: list[Queue]) -> None:
    left = {queue.name: queue for queue in queues}
    while left:
        ready = [q for q in left.values() if not q.parent or q.parent in state.world.tree.queues]
        if not ready:
            raise DamagedError("the queues' parents are not there")
        for queue in ready:
            try:
                state.world.tree.set(left.pop(queue.name))
            except ValueError as error:
                raise DamagedError(f"the queue '{queue.name:.64}' cannot be: {error}") from None


def _row(state: State, kind: str, id: str) -> Row:
    world = state.world
    value: Any
    match kind:
        case "lease":
            value = world.leases.get(id)
        case "waiting":
            value = world.line.waiting.get(id)
        case "queue":
            value = world.tree.queues.get(id)
        case "mix":
            value = world.mix.state()
        case _:
            world.counters.had = world.tree.had
            world.counters.faded_until = world.tree.faded_until
            value = world.counters
    return kind, id, None if value is None else msgspec.msgpack.encode(value)

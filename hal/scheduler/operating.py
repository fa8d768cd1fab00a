"""What operators ask: nodes and what they are for, which to leave, and how it all goes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from hal.scheduler import bodies, core, wire
from hal.scheduler.answers import Peer, Refused
from hal.scheduler.core.facts import WHOLE_MILLI, NodeFacts
from hal.scheduler.core.shape import Spot
from hal.scheduler.names import check_label
from hal.scheduler.node import Node
from hal.scheduler.page import filled
from hal.scheduler.store import journal

if TYPE_CHECKING:
    from hal.scheduler.engine import Engine

__all__ = ["OPERATIONS", "Label", "NodesPage", "Target", "labelled"]

_MOST_NODES = 200  # on a page
_MOST_NAMES = 8  # of nodes, told to whoever gives another


class NodesPage(Struct, frozen=True, forbid_unknown_fields=True):
    """Nodes by name, behind ``after``; ``node``: only that one."""

    after: str = ""
    limit: int = _MOST_NODES
    node: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= _MOST_NODES:
            raise ValueError(f"limit is between 1 and {_MOST_NODES}")


class Target(Struct, frozen=True, forbid_unknown_fields=True):
    """A node, or a device, named as in lists or by a part of it that fits no other."""

    target: str
    reason: str = ""

    def __post_init__(self) -> None:
        if not self.target or len(self.reason) > 256:
            raise ValueError("there is a target, and a reason of at most 256 characters")


class Label(Struct, frozen=True, forbid_unknown_fields=True):
    """What is set of a node beside what its agent says; None takes one away that was set here."""

    node: str
    labels: dict[str, str | None]

    def __post_init__(self) -> None:
        for name, value in self.labels.items():
            check_label(name, value)


class Forget(Struct, frozen=True, forbid_unknown_fields=True):
    """A node that will not come back; ``force``: whatever it holds."""

    node: str
    force: bool = False


def labelled(facts: NodeFacts, labels: dict[str, str]) -> NodeFacts:
    """Its devices have the node's name and labels as attributes: ``device.attributes["node"].rack``."""
    own = {f"node.{name}": value for name, value in labels.items()} | {"node.name": facts.id}
    devices = tuple(
        msgspec.structs.replace(device, attributes={**device.attributes, **own}) for device in facts.devices
    )
    return msgspec.structs.replace(facts, devices=devices, labels=labels)


# ---- nodes ----------------------------------------------------------------------------------


def nodes(engine: Engine, body: wire.Body, _peer: Peer) -> wire.Body:
    page = msgspec.convert(body, NodesPage)
    there = engine.nodes.nodes
    if page.node is not None:
        return {"nodes": [_described(engine, _known(engine, page.node))], "next": None}
    first = [there[name] for name in sorted(name for name in there if name > page.after)[: page.limit + 1]]
    shown, more = filled(first, page.limit, lambda node: _described(engine, node))
    return {"nodes": shown, "next": shown[-1]["id"] if more else None}


def cordon(engine: Engine, body: wire.Body, _peer: Peer) -> wire.Body:
    asked = msgspec.convert(body, Target)
    target = _target(engine, asked.target)
    engine.decide(core.Cordon(target, asked.reason or "cordoned"))
    return {"target": target, "leases": len(_leases(engine, target))}


def drain(engine: Engine, body: wire.Body, _peer: Peer) -> wire.Body:
    """``leases`` is how many are there still: they have been told to end."""
    asked = msgspec.convert(body, Target)
    target = _target(engine, asked.target)
    engine.decide(core.Drain(target, asked.reason or "drained"))
    return {"target": target, "leases": len(_leases(engine, target))}


def uncordon(engine: Engine, body: wire.Body, _peer: Peer) -> wire.Body:
    target = _target(engine, msgspec.convert(body, Target).target)
    engine.decide(core.Uncordon(target))
    return {"target": target, "leases": len(_leases(engine, target))}


def label(engine: Engine, body: wire.Body, _peer: Peer) -> wire.Body:
    asked = msgspec.convert(body, Label)
    node = _known(engine, asked.node)
    world = engine.state.world
    kept = dict(world.counters.labels.get(node.id, {}))
    for name, value in asked.labels.items():
        kept.pop(name, None)
        if value is not None:
            kept[name] = value
    world.counters.labels.pop(node.id, None)
    if kept:
        world.counters.labels[node.id] = kept
    world.note("meta", "counters")
    engine.noted(journal.Labelled(node.id, kept))
    if node.facts is not None and engine.nodes.reports(node):
        engine.happens(core.InventoryChanged(engine.laid_over(node.facts)))
    return {"node": node.id, "labels": engine.labels(node.id), "agents": node.labels}


def forget(engine: Engine, body: wire.Body, _peer: Peer) -> wire.Body:
    """``leases`` is how many were on it: they have been told to end."""
    asked = msgspec.convert(body, Forget)
    node = _known(engine, asked.node)
    if engine.nodes.reports(node):
        raise Refused("failed", f"node '{node.id}' is connected: stop its agent first")
    leases = _leases(engine, node.id)
    left = engine.nodes.stops_in(node, time.monotonic())
    if leases and not asked.force:
        raise Refused("failed", f"node '{node.id}' has leases ({len(leases)}), which only --force would end")
    if left and not asked.force:
        raise Refused("failed", f"node '{node.id}' may run something for {left:.0f} s more, unless --force")
    counters = engine.state.world.counters
    marked = sorted(id for id in {*counters.cordoned, *counters.failed} if id.startswith(node.prefix))
    for lease in leases:  # what it has used so far, at the price of devices that are known now
        engine.board.charge(lease, ended=False)
    engine.forget(node.id)
    engine.decide(core.NodeForgotten(node.id, tuple(marked)))
    return {"node": node.id, "leases": len(leases)}


def _known(engine: Engine, name: str) -> Node:
    node = engine.nodes.nodes.get(name)
    if node is None:
        raise Refused("not_found", f"there is no node '{name:.64}'; {_names(engine)}")
    return node


def _names(engine: Engine) -> str:
    own, names = engine.nodes.own, sorted(engine.nodes.nodes)
    told = [f"{name} (the scheduler's own)" if name == own else name for name in names[:_MOST_NAMES]]
    more = [f"{len(names) - _MOST_NAMES} more"] if len(names) > _MOST_NAMES else []
    return f"the nodes are {', '.join(told + more)}" if told else "no node has joined yet"


def _target(engine: Engine, name: str) -> str:
    """The id of a node or device. Raises Refused."""
    cordoned = engine.state.world.counters.cordoned
    if name in engine.nodes.nodes or name in cordoned:  # a device may have gone since
        return name
    name = name.removeprefix(f"{engine.nodes.own}/")  # the scheduler's own devices have no node before them
    facts = [node.facts for node in engine.nodes.nodes.values() if node.facts is not None]
    meant = [device.id for node in facts for device in node.devices if name in device.id]
    if name in meant:
        return name
    if len(meant) > 1:
        raise Refused("malformed", f"'{name:.64}' fits {len(meant)} devices, such as {meant[0]}: write more")
    if not meant:
        raise Refused("not_found", f"there is no node or device '{name:.64}'; {_names(engine)}")
    return meant[0]


def _leases(engine: Engine, target: str) -> list[core.Lease]:
    world = engine.state.world
    return world.on_node(target) if target in engine.nodes.nodes else world.on_device(target)


def _state(engine: Engine, node: Node) -> str:
    """ "up", "cordoned", "draining", "drained"; "lost" when it is silent, "absent" until it has joined."""
    if not engine.nodes.reports(node):
        return "absent" if node.lost_since is None else "lost"
    if node.id not in engine.state.world.counters.cordoned:
        return "up"
    leases = [engine.state.leases[id] for id in node.leases if id in engine.state.leases]
    if any(lease.state is core.LeaseState.ENDING for lease in leases):
        return "draining"
    return "cordoned" if leases else "drained"


def _state_of_device(engine: Engine, device: str) -> str:
    """Of itself, whatever its node is: "up", "failed", "cordoned", "draining", "drained"."""
    counters = engine.state.world.counters
    if device in counters.failed or device not in counters.cordoned:
        return "failed" if device in counters.failed else "up"
    leases = engine.state.world.on_device(device)
    if any(lease.state is core.LeaseState.ENDING for lease in leases):
        return "draining"
    return "cordoned" if leases else "drained"


def _described(engine: Engine, node: Node) -> dict[str, Any]:
    counters = engine.state.world.counters
    leases = [engine.state.leases[id] for id in node.leases if id in engine.state.leases]
    lent = _lent(spot for lease in leases for spot in lease.spots() if spot.node == node.id)
    return {
        "id": node.id,
        "state": _state(engine, node),
        "reason": counters.cordoned.get(node.id),
        "labels": engine.labels(node.id),
        "devices": [
            {
                "id": device.id,
                "vendor": device.vendor,
                "model": device.model,
                "memory_bytes": device.memory_bytes,
                "state": _state_of_device(engine, device.id),
                "lent_milli": lent.milli[device.id],
                "lent_bytes": min(lent.memory[device.id], device.memory_bytes),
                "cordoned": counters.cordoned.get(device.id),
                "failed": counters.failed.get(device.id),
            }
            for device in (() if node.facts is None else node.facts.devices)
            if device.holds_slices
        ],
        "leases": len(leases),
        "last_beat_seconds": 0.0 if _own(engine, node) else time.monotonic() - node.heard,
        "agent_version": (engine.version if _own(engine, node) else node.version) or None,
    }


def _own(engine: Engine, node: Node) -> bool:
    return engine.nodes.own == node.id


class _Lent:
    def __init__(self) -> None:
        self.milli: Counter[str] = Counter()
        self.memory: Counter[str] = Counter()


def _lent(spots: Iterable[Spot]) -> _Lent:
    """What is lent of each device: thousandths of its time, or 1000 where it is whole; bytes."""
    found = _Lent()
    for spot in spots:
        for device in spot.devices:
            found.milli[device] += WHOLE_MILLI if spot.shape.whole else spot.shape.compute_milli
            found.memory[device] += 1 << 62 if spot.shape.whole else spot.shape.memory_bytes
    return found


# ---- all of it ------------------------------------------------------------------------------


def status(engine: Engine, _body: wire.Body, _peer: Peer) -> wire.Body:
    state, now = engine.state, engine.now()
    leases = Counter(_lease_state(engine, lease) for lease in state.leases.values())
    waiting = Counter(one.request.queue for one in state.waiting.values())
    oldest = min((one.arrived for one in state.waiting.values()), default=None)
    return {
        "version": engine.version,
        "pid": engine.pid,
        "private": engine.private,
        "term": engine.nodes.term,
        "started_ms": engine.started_ms,
        "now_ms": now,
        "event": engine.watch_ring.last,
        "trouble": engine.trouble,
        "unnoted": engine.unnoted,
        "nodes": dict(Counter(_state(engine, node) for node in engine.nodes.nodes.values())),
        "devices": _devices(engine),
        "leases": dict(leases),
        "waiting": len(state.waiting),
        "longest_wait_seconds": None if oldest is None else max((now - oldest) / 1000, 0),
        "queues": bodies.queues(state.world.tree, waiting),
        **engine.monitor.told(),
    }


def _lease_state(engine: Engine, lease: core.Lease) -> str:
    if lease.state is core.LeaseState.ACTIVE and not engine.nodes.is_bound(lease):
        return "binding"
    return lease.state.value


def _devices(engine: Engine) -> dict[str, int]:
    """Counts and bytes of what can hold slices, on nodes that report; ``usable``: may be lent."""
    world = engine.state.world
    nodes = [n for n in engine.nodes.nodes.values() if n.facts is not None and engine.nodes.reports(n)]
    devices = [(n.id, d) for n in nodes for d in (n.facts.devices if n.facts else ()) if d.holds_slices]
    lent = _lent(spot for lease in engine.state.leases.values() for spot in lease.spots())
    return {
        "total": len(devices),
        "usable": sum(world.unusable(device.id, node) is None for node, device in devices),
        "lent": sum(device.id in lent.milli for _, device in devices),
        "memory_bytes": sum(device.memory_bytes for _, device in devices),
        "lent_bytes": sum(min(lent.memory[d.id], d.memory_bytes) for _, d in devices),
    }


OPERATIONS: dict[str, Any] = {
    "nodes": nodes,
    "cordon": cordon,
    "drain": drain,
    "uncordon": uncordon,
    "label": label,
    "forget": forget,
    "status": status,
}

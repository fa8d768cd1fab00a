"""What operators ask: nodes and what they are for, which to leave, and how it all goes."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from hal.scheduler import bodies, core, wire
from hal.scheduler.answers import Peer, Refused
from hal.scheduler.core.facts import WHOLE_MILLI, NodeFacts
from hal.scheduler.nodes import Node
from hal.scheduler.store import journal

if TYPE_CHECKING:
    from hal.scheduler.daemon import Daemon

__all__ = ["OPERATIONS", "Label", "NodesPage", "Target", "labelled"]

_MOST_NODES = 200  # on a page
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


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
            if not _NAME.fullmatch(name):
                raise ValueError(f"'{name:.64}' is no name of a label: letters, digits, '.', '_' and '-'")
            if value is not None and not (value.isprintable() and len(value) <= 256):
                raise ValueError(f"the label '{name}' has at most 256 printable characters")


def labelled(facts: NodeFacts, labels: dict[str, str]) -> NodeFacts:
    """Its devices have the node's name and labels as attributes: ``device.attributes["node"].rack``."""
    own = {"node.name": facts.id} | {f"node.{name}": value for name, value in labels.items()}
    devices = tuple(
        msgspec.structs.replace(device, attributes={**device.attributes, **own}) for device in facts.devices
    )
    return msgspec.structs.replace(facts, devices=devices, labels=labels)


# ---- nodes ----------------------------------------------------------------------------------


def nodes(daemon: Daemon, body: wire.Body, _peer: Peer) -> wire.Body:
    page = msgspec.convert(body, NodesPage)
    there = daemon.nodes.nodes
    if page.node is not None:
        return {"nodes": [_described(daemon, [_known(daemon, page.node)])[0]], "next": None}
    names = sorted(name for name in there if name > page.after)
    more, names = len(names) > page.limit, names[: page.limit]
    return {
        "nodes": _described(daemon, [there[name] for name in names]),
        "next": names[-1] if more else None,
    }


def cordon(daemon: Daemon, body: wire.Body, _peer: Peer) -> wire.Body:
    asked = msgspec.convert(body, Target)
    target = _target(daemon, asked.target)
    daemon.decide(core.Cordon(target, asked.reason or "cordoned"))
    return {"target": target, "leases": len(_leases(daemon, target))}


def drain(daemon: Daemon, body: wire.Body, _peer: Peer) -> wire.Body:
    """``leases`` is how many are there still: they have been told to end."""
    asked = msgspec.convert(body, Target)
    target = _target(daemon, asked.target)
    daemon.decide(core.Drain(target, asked.reason or "drained"))
    return {"target": target, "leases": len(_leases(daemon, target))}


def uncordon(daemon: Daemon, body: wire.Body, _peer: Peer) -> wire.Body:
    target = _target(daemon, msgspec.convert(body, Target).target)
    daemon.decide(core.Uncordon(target))
    return {"target": target, "leases": len(_leases(daemon, target))}


def label(daemon: Daemon, body: wire.Body, _peer: Peer) -> wire.Body:
    asked = msgspec.convert(body, Label)
    node = _known(daemon, asked.node)
    world = daemon.state.world
    kept = dict(world.counters.labels.get(node.id, {}))
    for name, value in asked.labels.items():
        kept.pop(name, None)
        if value is not None:
            kept[name] = value
    world.counters.labels.pop(node.id, None)
    if kept:
        world.counters.labels[node.id] = kept
    world.note("meta", "counters")
    daemon.noted(journal.Labelled(node.id, kept))
    if node.facts is not None and daemon.nodes.reports(node):
        daemon.happens(core.InventoryChanged(daemon.laid_over(node.facts)))
    return {"node": node.id, "labels": daemon.labels(node.id)}


def _known(daemon: Daemon, name: str) -> Node:
    node = daemon.nodes.nodes.get(name)
    if node is None:
        raise Refused("not_found", f"there is no node '{name:.64}'")
    return node


def _target(daemon: Daemon, name: str) -> str:
    """The id of a node or device. Raises Refused."""
    cordoned = daemon.state.world.counters.cordoned
    if name in daemon.nodes.nodes or name in cordoned:  # a device may have gone since
        return name
    facts = [node.facts for node in daemon.nodes.nodes.values() if node.facts is not None]
    meant = [device.id for node in facts for device in node.devices if name in device.id]
    if name in meant:
        return name
    if len(meant) > 1:
        raise Refused("malformed", f"'{name:.64}' fits {len(meant)} devices, such as {meant[0]}: write more")
    if not meant:
        raise Refused("not_found", f"there is no node or device '{name:.64}'")
    return meant[0]


def _leases(daemon: Daemon, target: str) -> list[core.Lease]:
    world = daemon.state.world
    return world.on_node(target) if target in daemon.nodes.nodes else world.on_device(target)


def _state(daemon: Daemon, node: Node) -> str:
    """ "up", "cordoned", "draining", "drained"; "lost" when it is silent, "absent" until it has joined."""
    if not daemon.nodes.reports(node):
        return "absent" if node.lost_since is None else "lost"
    if node.id not in daemon.state.world.counters.cordoned:
        return "up"
    leases = [daemon.state.leases[id] for id in node.leases if id in daemon.state.leases]
    if any(lease.state is core.LeaseState.ENDING for lease in leases):
        return "draining"
    return "cordoned" if leases else "drained"


def _described(daemon: Daemon, shown: list[Node]) -> list[dict[str, Any]]:
    counters, now = daemon.state.world.counters, time.monotonic()
    here = {id for node in shown for id in node.leases}
    lent = _lent(daemon.state.leases[id] for id in here if id in daemon.state.leases)
    return [
        {
            "id": node.id,
            "state": _state(daemon, node),
            "reason": counters.cordoned.get(node.id),
            "labels": daemon.labels(node.id),
            "devices": [
                {
                    "id": device.id,
                    "vendor": device.vendor,
                    "model": device.model,
                    "memory_bytes": device.memory_bytes,
                    "lent_milli": lent.milli[device.id],
                    "lent_bytes": min(lent.memory[device.id], device.memory_bytes),
                    "cordoned": counters.cordoned.get(device.id),
                    "failed": counters.failed.get(device.id),
                }
                for device in (() if node.facts is None else node.facts.devices)
                if device.holds_slices
            ],
            "leases": sum(id in daemon.state.leases for id in node.leases),
            "last_beat_seconds": 0.0 if _own(daemon, node) else now - node.heard,
            "agent_version": (daemon.version if _own(daemon, node) else node.version) or None,
        }
        for node in shown
    ]


def _own(daemon: Daemon, node: Node) -> bool:
    return daemon.nodes.own == node.id


class _Lent:
    def __init__(self) -> None:
        self.milli: Counter[str] = Counter()
        self.memory: Counter[str] = Counter()


def _lent(leases: Iterable[core.Lease]) -> _Lent:
    """What is lent of each device: thousandths of its time, or 1000 where it is whole; bytes."""
    found = _Lent()
    for lease in leases:
        for spot in lease.spots():
            for device in spot.devices:
                found.milli[device] += WHOLE_MILLI if spot.shape.whole else spot.shape.compute_milli
                found.memory[device] += 1 << 62 if spot.shape.whole else spot.shape.memory_bytes
    return found


# ---- all of it ------------------------------------------------------------------------------


def status(daemon: Daemon, _body: wire.Body, _peer: Peer) -> wire.Body:
    state, now = daemon.state, daemon.now()
    leases = Counter(_lease_state(daemon, lease) for lease in state.leases.values())
    waiting = Counter(one.request.queue for one in state.waiting.values())
    oldest = min((one.arrived for one in state.waiting.values()), default=None)
    return {
        "version": daemon.version,
        "pid": daemon.pid,
        "private": daemon.private,
        "term": daemon.nodes.term,
        "started_ms": daemon.started_ms,
        "now_ms": now,
        "event": daemon.watch_ring.last,
        "trouble": daemon.trouble,
        "nodes": dict(Counter(_state(daemon, node) for node in daemon.nodes.nodes.values())),
        "devices": _devices(daemon),
        "leases": dict(leases),
        "waiting": len(state.waiting),
        "longest_wait_seconds": None if oldest is None else max((now - oldest) / 1000, 0),
        "queues": bodies.queues(state.world.tree, waiting),
        **daemon.monitor.told(),
    }


def _lease_state(daemon: Daemon, lease: core.Lease) -> str:
    if lease.state is core.LeaseState.ACTIVE and not daemon.nodes.is_bound(lease):
        return "binding"
    return lease.state.value


def _devices(daemon: Daemon) -> dict[str, int]:
    """Counts and bytes of what can hold slices, on nodes that report; ``usable``: may be lent."""
    world = daemon.state.world
    nodes = [n for n in daemon.nodes.nodes.values() if n.facts is not None and daemon.nodes.reports(n)]
    devices = [(n.id, d) for n in nodes for d in (n.facts.devices if n.facts else ()) if d.holds_slices]
    lent = _lent(daemon.state.leases.values())
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
    "status": status,
}

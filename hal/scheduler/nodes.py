"""The nodes that a scheduler knows, and what each was ordered to hold.

The scheduler's own node is reached by a call, any other by a message to the agent that joined from it. A
node that says nothing for ``lost_seconds`` is lost; after ``grace_seconds`` more it has stopped by itself
all that it held (hal/scheduler/agent/service.py), so that its leases can be called ended. What counts for
that is what the node was told, which outlives a restart and another configuration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from msgspec import Struct

from hal.backend import HalError
from hal.enforce.ledger import DeviceUse
from hal.model import Enforcement, Rung
from hal.scheduler.agent import binding as on
from hal.scheduler.agent.agent import Agent
from hal.scheduler.agent.until import clock
from hal.scheduler.answers import Address, Refused
from hal.scheduler.core.facts import NodeFacts
from hal.scheduler.core.lease import Lease, LeaseState
from hal.scheduler.core.records import Row
from hal.scheduler.node import Node
from hal.scheduler.orders import AGAIN, Orders

__all__ = ["Nodes"]

BEAT_SECONDS = 1.0
KIND = "told"  # of rows: by node, after how many seconds without an answer it has stopped


class _Held(Struct, eq=False):
    """How far the nodes of a lease have come."""

    epoch: int
    nodes: list[str]
    bound: dict[str, on.Bound] = {}
    ended: set[str] = set()
    ending: bool = False
    usable: bool = False  # all of it was bound at a time: who holds it may have been told how to use it


class Nodes:
    def __init__(self, agent: Agent | None, *, lost_seconds: float, grace_seconds: float) -> None:
        self._agent = agent
        self.lost_seconds = lost_seconds
        self.grace_seconds = grace_seconds
        self.term = 0
        self.nodes: dict[str, Node] = {}
        self.orders = Orders(agent)
        self.settled: set[str] = set()  # leases of which a node has answered since it was last looked at
        self._held: dict[str, _Held] = {}
        self._failed: list[tuple[str, str]] = []
        self._refused: dict[tuple[str, str], None] = {}  # leases that are to end, and nodes that could not
        self._refused_until = float("-inf")  # they are not asked again before
        self._heard_until = float("-inf")  # no node can be lost before
        self._changed: set[str] = set()  # nodes whose ``told`` is to be written down
        self._allowed_until = float("-inf")  # what runs on this node is not told anew before

    # ---- leases -----------------------------------------------------------------------------

    def bind(self, lease: Lease, now: float) -> None:
        """Have its slices made. Raises StateError when this node cannot; of others ``failures`` tells."""
        held = self._hold(lease, now)
        for id in held.nodes:
            self._order_bind(lease, self.nodes[id], now)

    def unbind(self, lease: Lease, now: float) -> None:
        """Have it stopped and taken away; ``has_ended`` tells when that is done."""
        held = self._held.get(lease.id) or self._hold(lease, now)
        held.ending = True
        self.orders.drop(lease=lease.id)
        for id in held.nodes:
            if id not in held.ended:
                self._order_unbind(lease.id, held, self.nodes[id], now)

    def take_over(self, lease: Lease, now: float) -> bool:
        """A lease from before a restart; False when this node has lost its slice."""
        held = self._hold(lease, now)
        here = [id for id in held.nodes if self._is_own(id)]
        if all(self._own.take_over(on.binding_of(lease, id)) for id in here):
            held.usable = True
            return True
        self.forget(lease.id)
        return False

    def forget(self, lease: str) -> None:
        held = self._held.pop(lease, None)
        for id in () if held is None else held.nodes:
            self.nodes[id].leases.discard(lease)

    def forget_node(self, id: str) -> None:
        """It is no more, and neither is what it held; who joins under its name is another."""
        node = self.nodes.pop(id)
        self.orders.drop(node=node)
        for lease in node.leases:
            self._held[lease].nodes.remove(id)
            self._held[lease].bound.pop(id, None)
        self._changed.add(id)

    def was_usable(self, lease: str) -> bool:
        """Whoever holds it may have been told how: it was bound at a time, or is from before a restart."""
        return lease in self._held and self._held[lease].usable

    def is_bound(self, lease: Lease) -> bool:
        held = self._held.get(lease.id)
        return held is not None and len(held.bound) == len(held.nodes)

    def has_ended(self, lease: str, now: float) -> bool:
        """Nothing of it is left on any node, or its node has had the time after which it stops by itself."""
        held = self._held.get(lease)
        return held is None or all(id in held.ended or self._has_stopped(id, now) for id in held.nodes)

    def environments(self, lease: Lease) -> list[dict[str, str]]:
        """For each member, what a program needs to run in its slice."""
        found: dict[int, dict[str, str]] = {}
        for bound in self._held[lease.id].bound.values():
            for number, environment in bound.environments:
                found.setdefault(number, environment)
        return [found.get(number, {}) for number in range(len(lease.parts))]

    def enforcement(self, lease: Lease) -> Enforcement:
        """Who holds it to its limits; on several nodes, what the first of its members has."""
        held = self._held.get(lease.id)
        if held is not None:
            for id in held.nodes:
                if id in held.bound:
                    return held.bound[id].enforcement
        return Enforcement(Rung.NONE, Rung.NONE)

    def port(self, lease: Lease) -> int:
        """Where the members of a gang may meet, on the node of the first; 0: its agent found none."""
        held = self._held[lease.id]
        return held.bound[held.nodes[0]].port

    def use(self, lease: Lease) -> list[DeviceUse]:
        found: list[DeviceUse] = []
        held = self._held.get(lease.id)
        for id in on.nodes_of(lease) if held is None else held.nodes:
            if self._is_own(id):
                found += self._own.use(lease.id)
            elif id in self.nodes:
                found += self.nodes[id].use.get(lease.id, [])
        return found

    def failures(self) -> list[tuple[str, str]]:
        """Leases that a node could not give, or has lost, and why; each is told once."""
        told, self._failed = self._failed, []
        return told

    def know(self, facts: NodeFacts, now: float) -> None:
        """What a node had before a restart: it has a while in which to report."""
        self._node(facts.id, now).facts = facts

    def know_lost(self, id: str, now: float) -> None:
        """A node that was lost before a restart, nobody remembers since when."""
        self._node(id, now).lost_since = now

    def load(self, rows: Iterable[Row], now: float) -> None:
        """Which nodes there were before a restart, and what they were told. Raises msgspec.DecodeError."""
        for kind, id, value in rows:
            if kind == "node":
                self._node(id, now)
            elif kind == KIND:
                self._node(id, now).told = msgspec.msgpack.decode(value or b"", type=float)

    def changes(self) -> list[Row]:
        """What to write down before a node is told it."""
        found: list[Row] = []
        for id in self._changed:
            node = self.nodes.get(id)
            found.append((KIND, id, None if node is None else msgspec.msgpack.encode(node.told)))
        self._changed.clear()
        return found

    # ---- agents -----------------------------------------------------------------------------

    def join(self, address: Address, joining: on.Join, leases: Mapping[str, Lease], now: float) -> on.Joined:
        """A node reports for the first time, or again. Raises Refused."""
        if self._is_own(joining.node):
            raise Refused("denied", f"'{joining.node}' is the scheduler's own node: name this one otherwise")
        if joining.term > self.term:
            raise Refused(
                "stale",
                f"node '{joining.node}' obeys a newer scheduler (term {joining.term}, not {self.term})",
            )
        node = self._node(joining.node, now)
        alive = node.address is not None and node.lost_since is None and node.address != address
        if alive and node.boot and node.boot != joining.boot:
            raise Refused("denied", f"there is a node '{joining.node}' already: name this one otherwise")
        if joining.boot == node.boot and joining.sent <= node.joined:
            raise Refused("stale", f"node '{node.id}' has joined again since")
        here = [(leases[id], self._held[id]) for id in sorted(node.leases)]
        keep = {lease.id: lease.epoch for lease, held in here if node.id not in held.ended}
        cut_off = self.cut_off_seconds
        node.tells = self._stops_after
        self._goes_by(node, max(node.told, node.tells))  # nobody knows whether it gets this answer
        if any(keep.get(id) != epoch for id, epoch in joining.bound.items()):
            return on.Joined(self.term, BEAT_SECONDS, cut_off, keep, again=True)
        self.orders.drop(node=node)
        rebooted = bool(node.boot) and node.boot != joining.boot
        how = "was cut off and stopped it" if node.address is None else "has lost its slice"
        how = "was started anew, which ended it" if rebooted else how
        node.address, node.boot, node.version = address, joining.boot, joining.version
        node.heard, node.lost_since, node.joined, node.use = now, None, joining.sent, {}
        node.labels = joining.labels
        node.facts = self._named_here(node, joining.facts)
        for lease, held in here:
            if node.id in held.ended:
                continue
            has = lease.id in joining.bound
            if lease.state is LeaseState.ENDING:
                if has:
                    self._order_unbind(lease.id, held, node, now)
                else:
                    held.ended.add(node.id)
            elif rebooted or (not has and node.id in held.bound):
                held.ended.add(node.id)
                self._failed.append((lease.id, f"node '{node.id}' {how}"))
            else:
                self._order_bind(lease, node, now)
        return on.Joined(self.term, BEAT_SECONDS, cut_off, keep)

    def beat(self, address: Address, beat: on.Beat, now: float) -> bool:
        """False: this agent has to join (again). True with ``facts``: what its node has is another now."""
        node = self.nodes.get(beat.node)
        if node is None or node.address != address or beat.term != self.term or node.lost_since is not None:
            return False
        if node.tells != self._stops_after:  # the configuration has changed: it is told when it joins
            return False
        node.heard = now
        self._goes_by(node, node.tells)
        if beat.facts is not None:
            node.facts = self._named_here(node, beat.facts)
        if beat.use:
            named = {
                lease: [msgspec.structs.replace(use, device=node.prefix + use.device) for use in uses]
                for lease, uses in beat.use.items()
            }
            node.use.update(named)
        for lease, epoch in beat.ended:
            held = self._held.get(lease)
            if held is not None and held.epoch == epoch:
                self._has_left(lease, held, node)
        return True

    # ---- time -------------------------------------------------------------------------------

    def turn(self, now: float) -> None:
        """Let this node go on with its endings, and ask others again what they have not answered."""
        self.orders.repeat(now)
        if self._refused and now >= self._refused_until:
            self._refused_until = now + AGAIN
            self._end_refused(now)
        if self._agent is None:
            return
        if now >= self._allowed_until:
            self._allowed_until = now + BEAT_SECONDS
            self._agent.allow(clock() + self.cut_off_seconds)
        self._agent.turn(now)
        ended = self._agent.ended()
        for lease, epoch in ended:
            held = self._held.get(lease)
            if held is not None and held.epoch == epoch:
                self._has_left(lease, held, self.nodes[self._agent.node])
        self._agent.acknowledge(ended)

    def lost(self, now: float) -> list[str]:
        """Nodes that have said nothing for too long, each told once."""
        if now < self._heard_until:  # at each turn, of a thousand nodes, that would be most of it
            return []
        found = []
        for node in self.nodes.values():
            silent = now - node.heard >= self.lost_seconds
            if node.lost_since is None and silent and not self._is_own(node.id):
                node.lost_since, node.address = now, None
                found.append(node.id)
                for id in sorted(node.leases):  # nobody waits for a slice that may never be made
                    if node.id not in self._held[id].bound and not self._held[id].ending:
                        self._failed.append((id, f"node '{node.id}' has not answered in time"))
        others = (one for one in self.nodes.values() if one.lost_since is None and not self._is_own(one.id))
        heard = (node.heard for node in others)
        self._heard_until = min(min(heard, default=now) + self.lost_seconds, now + min(1, self.lost_seconds))
        return found

    @property
    def cut_off_seconds(self) -> float:
        """Without an answer for so long, a node stops all that it holds, some time before it is taken for
        stopped: its programs have to end, and its devices to be free, in that time."""
        whole = self.lost_seconds + self.grace_seconds
        return whole - min(max(self.grace_seconds / 4, min(2.0, whole / 3)), 10.0)

    @property
    def own(self) -> str | None:
        """The scheduler's own node, if it has one."""
        return None if self._agent is None else self._agent.node

    def node_of(self, device: str) -> str | None:
        """Of a device by its id, which may have gone since; None: of none that is known."""
        name = device.partition("/")[0]
        if "/" in device and name in self.nodes:
            return name
        own = None if self.own is None else self.nodes[self.own].facts
        return own.id if own is not None and any(device == one.id for one in own.devices) else None

    def reports(self, node: Node) -> bool:
        """It can be ordered something now."""
        return self._is_own(node.id) or (node.address is not None and node.lost_since is None)

    @property
    def has_others(self) -> bool:
        """Nodes besides this one have joined: they remember this scheduler's term."""
        return any(not self._is_own(id) for id in self.nodes)

    @property
    def busy(self) -> bool:
        """This node has something ending: ``turn`` is wanted soon."""
        return self._agent is not None and self._agent.busy

    # ---- inside -----------------------------------------------------------------------------

    @property
    def _own(self) -> Agent:
        assert self._agent is not None
        return self._agent

    def _is_own(self, id: str) -> bool:
        return self._agent is not None and self._agent.node == id

    def _node(self, id: str, now: float) -> Node:
        node = self.nodes.get(id)
        if node is None:
            node = self.nodes[id] = Node(id, now)
        return node

    def _hold(self, lease: Lease, now: float) -> _Held:
        there = on.nodes_of(lease)
        if lease.state is LeaseState.ENDING:  # as it goes on after a restart: a node may have been forgotten
            there = [id for id in there if id in self.nodes or self._is_own(id)]
        held = self._held[lease.id] = _Held(lease.epoch, there)
        for id in held.nodes:
            self._node(id, now).leases.add(lease.id)
        return held

    @property
    def _stops_after(self) -> float:
        return self.lost_seconds + self.grace_seconds

    def _goes_by(self, node: Node, seconds: float) -> None:
        if node.told != seconds:
            node.told = seconds
            self._changed.add(node.id)

    def stops_in(self, node: Node, now: float) -> float:
        """Seconds after which one that is cut off has stopped all that it held; 0: it has."""
        lost = now if node.lost_since is None else node.lost_since
        return max(lost + self.grace_seconds - now, node.heard + node.told - now, 0.0)

    def _has_stopped(self, id: str, now: float) -> bool:
        return self.nodes[id].lost_since is not None and not self.stops_in(self.nodes[id], now)

    def _order_bind(self, lease: Lease, node: Node, now: float) -> None:
        held = self._held[lease.id]

        def done(answer: on.Bound | HalError) -> None:
            self.settled.add(lease.id)
            if isinstance(answer, HalError):
                self._failed.append((lease.id, str(answer)))
            else:
                held.bound[node.id] = answer
                held.usable = held.usable or len(held.bound) == len(held.nodes)

        prefix = "" if self._is_own(node.id) else node.prefix
        order = on.BindOrder(self.term, on.binding_of(lease, node.id, prefix))
        self.orders.give(node, order, done, now, lease.id)

    def _order_unbind(self, lease: str, held: _Held, node: Node, now: float) -> None:
        def done(answer: on.Unbound | HalError) -> None:
            if isinstance(answer, HalError):
                self._refused[lease, node.id] = None
            elif answer.ended:
                self._has_left(lease, held, node)

        self.orders.give(node, on.UnbindOrder(self.term, lease, held.epoch), done, now, lease)

    def _end_refused(self, now: float) -> None:
        """What a node could not end, because of its disk, say, is not forgotten: it is ordered again."""
        refused, self._refused = self._refused, {}
        for lease, id in refused:
            held = self._held.get(lease)
            wanted = held is not None and held.ending and id in held.nodes and id not in held.ended
            if held is not None and wanted and self.reports(self.nodes[id]):  # else it is, when that joins
                self._order_unbind(lease, held, self.nodes[id], now)

    def _has_left(self, lease: str, held: _Held, node: Node) -> None:
        held.ended.add(node.id)
        node.use.pop(lease, None)
        if not held.ending:
            self._failed.append((lease, f"node '{node.id}' has stopped it"))

    def _named_here(self, node: Node, facts: NodeFacts) -> NodeFacts:
        devices = tuple(msgspec.structs.replace(one, id=node.prefix + one.id) for one in facts.devices)
        return msgspec.structs.replace(facts, id=node.id, devices=devices)

"""Scheduler and agents over a network that delays, reorders, repeats and loses, with restarts of both.

The real core, the real bookkeeping of nodes and the real agents; only sockets, slices and clocks are played.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import zmq
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hal.enforce.ledger import DeviceUse
from hal.model import Enforcement, Rung
from hal.scheduler import core, wire
from hal.scheduler.agent import service as service_module
from hal.scheduler.agent.agent import Agent
from hal.scheduler.agent.binding import Beat, Binding, Join
from hal.scheduler.agent.service import Service
from hal.scheduler.answers import Address, Refused
from hal.scheduler.core import records
from hal.scheduler.nodes import Nodes
from hal.scheduler.places import Places

HISTORIES = int(os.environ.get("HAL_HISTORIES", "100"))
GIB = 1 << 30
MEMORY = 10 * GIB
LOST, GRACE = 5.0, 20.0
NAMES = ("a", "b")


class PlayedSlices:
    """The slices of one node, which outlive its agent as files and programs do."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.made: dict[str, Binding] = {}
        self.stubborn: set[str] = set()  # leases whose programs do not end when they are asked to

    def create(self, binding: Binding) -> None:
        """The node's book of claims would refuse it, but then something else was wrong before."""
        assert binding.lease not in self.made
        self.made[binding.lease] = binding
        for device in {device for spot in binding.spots() for device in spot.devices}:
            there = [s.shape for b in self.made.values() for s in b.spots() if device in s.devices]
            assert len(there) == 1 or not any(shape.whole for shape in there), "two owners of one device"
            assert sum(shape.memory_bytes for shape in there if not shape.whole) <= MEMORY, "over-committed"

    def adopt(self, binding: Binding) -> bool:
        return binding.lease in self.made

    def renew_limits(self, binding: Binding) -> None:
        assert self.made[binding.lease].epoch == binding.epoch

    def sweep(self, bindings: Iterable[str]) -> None:
        pass

    def environments(self, binding: Binding) -> dict[int, dict[str, str]]:
        return {part.number: {"NODE": self.node} for part in binding.parts}

    def enforcement(self, _binding: Binding) -> Enforcement:
        return Enforcement(Rung.GUARD, Rung.NONE)

    def use(self, _lease: str) -> list[DeviceUse]:
        return []

    def reap(self) -> None:
        pass

    def correct_shares(self, _now: float) -> None:
        pass

    def stop(self, lease: str, with_signal: int) -> bool:
        if with_signal == 9:
            self.stubborn.discard(lease)
        return lease not in self.stubborn

    def remove(self, lease: str) -> None:
        self.made.pop(lease, None)

    def close(self) -> None:
        pass

    def facts(self, node: str) -> core.NodeFacts:
        devices = tuple(core.DeviceFacts(f"gpu{n}", "v", "m", MEMORY) for n in range(2))
        return core.NodeFacts(node, 64_000, 1 << 40, devices)


class PlayedSocket:
    """One connection of an agent; what is sent goes into the network."""

    def __init__(self, network: Network, node: str) -> None:
        self.network, self.node = network, node
        network.connections += 1
        self.identity = f"{node}-{network.connections}".encode()
        self.arrived: list[bytes] = []

    def set(self, _option: int, _value: object) -> None:
        pass

    def send(self, message: bytes, flags: int = 0) -> None:
        self.network.to_scheduler.append((self.identity, message))

    def recv(self, flags: int = 0) -> bytes:
        if not self.arrived:
            raise zmq.Again
        return self.arrived.pop(0)

    def close(self) -> None:
        pass


class Network:
    def __init__(self) -> None:
        self.connections = 0
        self.to_scheduler: list[tuple[bytes, bytes]] = []
        self.to_agents: list[tuple[bytes, bytes]] = []
        self.router: Any = object()


class Scheduler:
    """What hal/scheduler/daemon.py does with events and orders, without its files and sockets."""

    def __init__(
        self, network: Network, saved: Iterable[records.Row], now: float, grace: float = GRACE
    ) -> None:
        self.network = network
        rows = list(saved)
        read = records.read(rows)
        self.nodes = Nodes(None, lost_seconds=LOST, grace_seconds=grace)
        self.nodes.load(rows, now)
        self.told = {id: value for kind, id, value in rows if kind == "told"}
        for lease in read.leases:
            assert self.nodes.take_over(lease, now)
        lost = set() if read.counters is None else set(read.counters.lost)
        known = [facts for facts in read.nodes if facts.id not in lost]
        self.state = records.restore(read, known, grace_ms=round(grace * 1000))
        for facts in known:
            self.nodes.know(facts, now)
        for id in lost:
            self.nodes.know_lost(id, now)
        self.state.world.counters.term += 1
        self.nodes.term = self.state.world.counters.term
        self.node_rows: dict[str, core.NodeFacts] = {facts.id: facts for facts in read.nodes}
        for lease in list(self.state.leases.values()):
            if lease.state is core.LeaseState.ENDING:
                self.nodes.unbind(lease, now)
            else:
                self.nodes.bind(lease, now)
        self.happens(core.Resumed(), now)

    def saved(self) -> list[records.Row]:
        rows = [("node", id, msgspec.msgpack.encode(facts)) for id, facts in self.node_rows.items()]
        self.told |= {id: value for _, id, value in self.nodes.changes()}
        self.told = {id: value for id, value in self.told.items() if value is not None}
        return [*records.everything(self.state), *rows, *(("told", *one) for one in self.told.items())]

    def happens(self, event: core.Event, now: float) -> list[core.Decision]:
        decisions = self.state.apply(event, round(now * 1000))
        for decision in decisions:
            match decision:
                case core.Grant(lease=lease, again=False):
                    self.nodes.bind(lease, now)
                case core.Revoke(lease=lease) | core.Preempt(lease=lease):
                    self.nodes.unbind(lease, now)
        return decisions

    def forget(self, name: str, now: float) -> None:
        """As ``forget`` by force does (hal/scheduler/operating.py)."""
        self.nodes.forget_node(name)
        self.node_rows.pop(name, None)
        self.happens(core.NodeForgotten(name), now)

    def hear(self, identity: bytes, message: bytes, now: float) -> None:
        address = Address(self.network.router, identity)
        said = wire.unpack_message(message)
        if isinstance(said, wire.Reply):
            self.nodes.orders.answered(address, said)
            return
        body: dict[str, Any] | None = {}
        try:
            if said.op == "join":
                joining = msgspec.convert(said.body, Join)
                answer = self.nodes.join(address, joining, self.state.leases, now)
                body = msgspec.to_builtins(answer)
                facts = self.nodes.nodes[joining.node].facts
                if facts is not None and not answer.again:
                    self.node_rows[facts.id] = facts
                    self.happens(core.NodeJoined(facts), now)
            elif not self.nodes.beat(address, msgspec.convert(said.body, Beat), now):
                raise Refused("not_joined", "join first")
            reply = wire.Reply(wire.VERSION, said.id, True, body or {})
        except Refused as wrong:
            reply = wire.Reply(wire.VERSION, said.id, False, error=wire.ErrorBody(wrong.code, str(wrong)))
        self.network.to_agents.append((identity, wire.pack(reply)))

    def turn(self, now: float) -> None:
        self.nodes.turn(now)
        for id in self.nodes.lost(now):
            self.happens(core.NodeLost(id), now)
        for id, _ in self.nodes.failures():
            if id in self.state.leases:
                self.happens(core.HolderGone(id), now)
        self.happens(core.Tick(), now)
        for lease in list(self.state.leases.values()):
            if lease.state is core.LeaseState.ENDING and self.nodes.has_ended(lease.id, now):
                self.nodes.forget(lease.id)
                self.happens(core.Ended(lease.id), now)
        for address, message in self.nodes.orders.outbox:
            self.network.to_agents.append((address.identity, message))
        self.nodes.orders.outbox = []


class Cluster(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.clock = mock.patch.object(service_module, "clock", lambda: self.now)
        self.clock.start()
        self.folder = tempfile.TemporaryDirectory(prefix="hal-test-")
        self.network = Network()
        self.scheduler = Scheduler(self.network, [], self.now)
        self.slices = {name: PlayedSlices(name) for name in NAMES}
        self.services: dict[str, Service] = {}
        self.asked = 0
        for name in NAMES:
            self.begin(name)

    def begin(self, name: str) -> None:
        directory = Path(self.folder.name, name)
        directory.mkdir(mode=0o700, exist_ok=True)
        places = Places(directory)
        agent = Agent(self.slices[name], places, name)  # type: ignore[arg-type]
        service = Service(agent, places, lambda _: None, scheduler="ipc://x", version="1")
        service._begin()
        service._context = mock.Mock(socket=lambda _kind: PlayedSocket(self.network, name))  # type: ignore
        self.services[name] = service

    def teardown(self) -> None:
        """Once all is heard again, what is granted is bound, and what was given back leaves nothing."""
        self.network.to_agents.clear()
        self.network.to_scheduler.clear()
        self.settle(40)
        for lease in list(self.scheduler.state.leases.values()):
            assert lease.state is core.LeaseState.ACTIVE
            assert self.scheduler.nodes.is_bound(lease), "granted, and never bound"
        held = {
            (name, id, binding.epoch)
            for name, slices in self.slices.items()
            for id, binding in slices.made.items()
        }
        assert held == {
            (spot.node, lease.id, lease.epoch)
            for lease in self.scheduler.state.leases.values()
            for spot in lease.spots()
        }
        for id in [*self.scheduler.state.leases, *self.scheduler.state.waiting]:
            self.scheduler.happens(core.Release(id, 7), self.now)
        self.settle(20)
        assert not any(slices.made for slices in self.slices.values())
        assert not self.scheduler.state.leases
        self.clock.stop()
        self.folder.cleanup()

    def settle(self, seconds: int) -> None:
        for _ in range(seconds):
            for lease in self.scheduler.state.leases.values():
                if lease.state is core.LeaseState.ACTIVE:
                    self.scheduler.happens(core.Renew(lease.id, 7), self.now)
            for name in NAMES:
                self.agent_turn(name)
            self.scheduler.turn(self.now)
            while self.network.to_scheduler or self.network.to_agents:
                while self.network.to_scheduler:
                    self.scheduler.hear(*self.network.to_scheduler.pop(0), self.now)
                self.scheduler.turn(self.now)
                while self.network.to_agents:
                    self.deliver(*self.network.to_agents.pop(0))
            self.now += 1.0

    def agent_turn(self, name: str) -> None:
        service = self.services[name]
        service._keep_dialling(self.now)
        service._drain()
        service._advance(self.now)

    def deliver(self, identity: bytes, message: bytes) -> None:
        for service in self.services.values():
            socket: Any = service._socket
            if socket is not None and socket.identity == identity:  # else the connection is no more
                socket.arrived.append(message)
                service._drain()

    # ---- what users do ----------------------------------------------------------------------

    @rule(
        gib=st.sampled_from([None, 3, 6, 10]),
        members=st.integers(1, 3),
        wait=st.booleans(),
        again=st.booleans(),
    )
    def submit(self, gib: int | None, members: int, wait: bool, again: bool) -> None:
        self.asked += 1
        size = None if gib is None else gib * GIB
        member = core.Member((core.Alternative("", size),))
        request = core.Request((member,) * members, wait=wait, requeue=again, ttl_ms=60_000)
        self.scheduler.happens(core.Submit(request, f"l{self.asked}", f"k{self.asked}", 7), self.now)

    @precondition(lambda self: self.scheduler.state.leases)
    @rule(which=st.integers(0, 99))
    def release(self, which: int) -> None:
        ids = sorted(self.scheduler.state.leases)
        self.scheduler.happens(core.Release(ids[which % len(ids)], 7), self.now)

    @rule(name=st.sampled_from(NAMES), which=st.integers(0, 99))
    def a_program_does_not_end(self, name: str, which: int) -> None:
        made = sorted(self.slices[name].made)
        self.slices[name].stubborn |= set(made[which % len(made) :][:1]) if made else set()

    # ---- what networks do -------------------------------------------------------------------

    @precondition(lambda self: self.network.to_scheduler)
    @rule(which=st.integers(0, 99), repeat=st.booleans())
    def the_scheduler_hears(self, which: int, repeat: bool) -> None:
        messages = self.network.to_scheduler
        at = which % len(messages)
        self.scheduler.hear(*(messages[at] if repeat else messages.pop(at)), self.now)

    @precondition(lambda self: self.network.to_agents)
    @rule(which=st.integers(0, 99), repeat=st.booleans())
    def an_agent_hears(self, which: int, repeat: bool) -> None:
        messages = self.network.to_agents
        at = which % len(messages)
        self.deliver(*(messages[at] if repeat else messages.pop(at)))

    @rule(seconds=st.integers(1, 4))
    def all_is_heard(self, seconds: int) -> None:
        self.settle(seconds)

    @rule()
    def all_is_lost(self) -> None:
        self.network.to_agents.clear()
        self.network.to_scheduler.clear()

    # ---- what time does ---------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0, 6.0, 12.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def the_scheduler_turns(self) -> None:
        self.scheduler.turn(self.now)

    @rule(name=st.sampled_from(NAMES))
    def an_agent_turns(self, name: str) -> None:
        self.agent_turn(name)

    # ---- what operators do -------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES))
    def a_node_is_forgotten(self, name: str) -> None:
        """By force, whatever it may still run: nothing of it is lent again before it has ended that."""
        node = self.scheduler.nodes.nodes.get(name)
        if node is not None and not self.scheduler.nodes.reports(node):
            self.scheduler.forget(name, self.now)

    # ---- what dies --------------------------------------------------------------------------

    @rule(grace=st.sampled_from([GRACE, GRACE / 4]))
    def the_scheduler_restarts(self, grace: float) -> None:
        self.scheduler = Scheduler(self.network, self.scheduler.saved(), self.now, grace)

    @rule(grace=st.sampled_from([GRACE, GRACE / 4]))
    def the_configuration_is_another(self, grace: float) -> None:
        self.scheduler.nodes.grace_seconds = grace
        self.scheduler.state.grace_ms = round(grace * 1000)

    @rule(name=st.sampled_from(NAMES))
    def an_agent_restarts(self, name: str) -> None:
        self.begin(name)

    # ---- what holds -------------------------------------------------------------------------

    @invariant()
    def no_node_goes_on_for_longer_than_the_scheduler_waits(self) -> None:
        """But one that was forgotten while it ran something: it gets leases once that has ended."""
        for name, service in self.services.items():
            node = self.scheduler.nodes.nodes.get(name)
            known = node is not None and (node.leases or node.address is not None)
            if node is not None and known and self.slices[name].made:
                assert service._until < node.heard + node.told, "it is taken for stopped, and goes on"

    @invariant()
    def no_node_holds_what_is_newer_than_was_granted(self) -> None:
        newest = self.scheduler.state.world.counters.epoch
        for slices in self.slices.values():
            for binding in slices.made.values():
                assert binding.epoch <= newest


TestCluster = Cluster.TestCase
TestCluster.settings = settings(
    max_examples=HISTORIES,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

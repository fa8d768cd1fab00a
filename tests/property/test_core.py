"""The scheduler's core against a naive model: whatever happens in whatever order, its promises hold.

No device, node or queue has more on it than it has; gangs are whole; every decision says why; the same
events give the same bytes; a restart changes nothing; and nobody waits for ever who could be served.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from hal.scheduler.core import (
    Alternative,
    Cordon,
    Decision,
    DeviceFacts,
    DeviceFailed,
    DeviceRecovered,
    Drain,
    Ended,
    Event,
    Grant,
    HolderGone,
    InventoryChanged,
    Lease,
    LeaseState,
    Limits,
    Member,
    NodeFacts,
    NodeForgotten,
    NodeJoined,
    NodeLost,
    Preempt,
    Queue,
    Queued,
    Refuse,
    Release,
    RemoveQueue,
    Renew,
    Request,
    Resumed,
    Revoke,
    SetQueue,
    State,
    Submit,
    Suspend,
    Tick,
    Topology,
    Uncordon,
    Withdrawn,
)
from hal.scheduler.core.fleet import Fleet
from hal.scheduler.core.records import Row, changes, everything, read, restore
from hal.scheduler.core.screen import Bools, Screen

# Selectors, and what they mean to somebody who cannot read CEL.
SELECTORS = {
    "": lambda d: d.holds_slices,
    'vendor == "nvidia"': lambda d: d.vendor == "nvidia",
    'vendor == "amd" || memory >= 200': lambda d: d.vendor == "amd" or d.memory_bytes >= 200,
    'id == "cpu:a"': lambda d: d.id == "cpu:a",
    'device.attributes["hal"].generation > 1': lambda d: d.holds_slices and d.attributes["generation"] > 1,
    'nothing == "known"': lambda d: False,
}
TEMPLATES = {
    "a": (("nvidia", "nvidia", "amd", "cpu"), 8000, 64),
    "b": (("nvidia", "amd"), 4000, 32),
    "c": (("amd", "amd", "amd", "amd"), 2000, 16),
}
NODES = sorted(TEMPLATES)
DEVICES = [
    f"{vendor}:{name}{'' if vendor == 'cpu' else number}"
    for name, (vendors, _, _) in TEMPLATES.items()
    for number, vendor in enumerate(vendors)
]
QUEUES = ("default", "one", "two", "two/left", "two/right")
EXAMPLES = int(os.environ.get("HAL_HISTORIES", "300"))

amounts = st.sampled_from([None, None, 1, 10, 33, 50, 51, 100, 200])
alternatives = st.builds(
    Alternative,
    selector=st.sampled_from(sorted(SELECTORS)),
    memory_bytes=amounts,
    compute_milli=st.just(0),
    count=st.sampled_from([1, 1, 1, 2, 3]),
    weight=st.sampled_from([1, 1, 5]),
    cpu_milli=st.sampled_from([0, 0, 1000, 3000]),
    ram_bytes=st.sampled_from([0, 0, 10]),
    topology=st.sampled_from(list(Topology)),
    max_micros_per_hour=st.sampled_from([None, None, 2]),
    slack_ms=st.sampled_from([0, 0, 0, 30_000]),
)
shares = st.sampled_from([0, 100, 334, 500, 1000])
slices = st.builds(
    lambda a, share: a if a.memory_bytes is None else msgspec.structs.replace(a, compute_milli=share),
    alternatives,
    shares,
)
members = st.builds(
    Member, st.lists(slices, min_size=1, max_size=3).map(tuple), st.sampled_from([1, 1, 1, 2, 3])
)
requests = st.builds(
    Request,
    members=st.lists(members, min_size=1, max_size=2).map(tuple),
    queue=st.sampled_from(QUEUES),
    priority=st.sampled_from([0, 0, 5]),
    preemptible=st.sampled_from([True, True, True, False]),
    price_weight=st.sampled_from([0, 0, 1_000_000]),
    duration_ms=st.sampled_from([None, 5_000, 60_000]),
    deadline_ms=st.sampled_from([None, None, 40_000]),
    wait=st.sampled_from([True, True, True, False]),
    requeue=st.booleans(),
    movable=st.booleans(),
    ttl_ms=st.sampled_from([5_000, 3_600_000]),
)
limits = st.builds(
    Limits,
    st.sampled_from([None, None, 0, 1000, 2500, 5000]),
    st.sampled_from([None, None, None, 100, 300]),
)


def node(name: str, memory: int = 100, outside: int | None = 0, without: int = 0) -> NodeFacts:
    vendors, cpu, ram = TEMPLATES[name]
    devices = []
    for number, vendor in enumerate(vendors[: len(vendors) - without]):
        id = f"{vendor}:{name}{'' if vendor == 'cpu' else number}"
        devices.append(
            DeviceFacts(
                id,
                vendor,
                f"{vendor} model",
                memory * 2 if vendor == "amd" else memory,
                outside if number == 0 else 0,
                vendor != "cpu",
                {"generation": number},
                f"fabric{number // 2}",
                number,
            )
        )
    return NodeFacts(name, cpu, ram, tuple(devices))


def encoded(decisions: list[Decision]) -> bytes:
    return msgspec.msgpack.encode(decisions)


def timeless(rows: Iterable[Row]) -> dict[tuple[str, str], object]:
    """Without when leases expire: renewing is not written down, for a successor gives each a new time."""
    found: dict[tuple[str, str], object] = {}
    for kind, id, value in rows:
        assert value is not None
        decoded = msgspec.msgpack.decode(value)
        if kind == "lease":
            del decoded["expires"]
        found[kind, id] = decoded
    return found


class Unscreened(State):
    """Tries every request again whenever something was freed: slow, and plainly leaves nobody out."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.scheduling.screen = TakesAll()


class TakesAll(Screen):
    def could(self, fleet: Fleet, slots: Bools, gained: Iterable[int]) -> Bools:
        return slots.copy()


class Core(RuleBasedStateMachine):
    """``held`` is the model: what has been granted and not yet ended, with its parts."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.state = State(grace_ms=10_000, half_life_ms=64_000)
        self.twin: State | None = None  # one that was restored on the way, and has to decide alike
        self.plain = Unscreened(grace_ms=10_000, half_life_ms=64_000)  # and one without a screen
        self.written = {row[:2]: row for row in everything(self.state)}
        self.now = 1_000_000
        self.nodes: dict[str, NodeFacts] = {}
        self.held: dict[str, Lease] = {}
        self.ending: set[str] = set()
        self.waits: set[str] = set()
        self.unusable: set[str] = set()
        self.queues: dict[str, Queue] = {"default": Queue("default")}
        self.log: list[tuple[Event, int, bytes]] = []
        self.number = 0
        self.epoch = 0

    # ---- what is done -----------------------------------------------------------------------

    def apply(self, event: Event) -> list[Decision]:
        decisions = self.state.apply(event, self.now)
        self.log.append((event, self.now, encoded(decisions)))
        assert encoded(self.plain.apply(event, self.now)) == self.log[-1][2]
        if self.twin is not None:
            assert encoded(self.twin.apply(event, self.now)) == self.log[-1][2]
        for kind, id, value in changes(self.state):
            if value is None:
                self.written.pop((kind, id), None)
            else:
                self.written[kind, id] = (kind, id, value)
        for decision in decisions:
            self.decided(decision)
        return decisions

    def decided(self, decision: Decision) -> None:
        assert re.fullmatch(r"[^\n]+[^.\n]", decision.reason), decision.reason
        match decision:
            case Grant(lease=lease, again=False):
                self.granted(lease)
            case Queued(id=id):
                assert id not in self.held
                self.waits.add(id)
            case Withdrawn(id=id):
                self.waits.remove(id)
            case Preempt(lease=lease) | Revoke(lease=lease):
                assert lease.id in self.held
                assert lease.id not in self.ending, "it ends once"
                self.ending.add(lease.id)
                if isinstance(decision, Preempt):
                    assert decision.by in {*self.waits, f"r{self.number}"}
                    assert lease.request.preemptible or lease.overdue

    def granted(self, lease: Lease) -> None:
        id, request = lease.id, lease.request
        assert id not in self.held
        self.waits.discard(id)
        assert lease.epoch > self.epoch
        self.epoch = lease.epoch
        wanted = [(m, r) for m, member in enumerate(request.members) for r in range(member.replicas)]
        assert [(part.member, part.replica) for part in lease.parts] == wanted, "the gang is whole"
        self.held[id] = msgspec.structs.replace(lease)
        for part in lease.parts:
            self.part_fits(request.members[part.member].alternatives[part.alternative], part.spots)
        for name in {spot.node for spot in lease.spots()}:
            self.node_holds(name)
        self.limits_hold(request.queue, request.preemptible)

    def part_fits(self, one: Alternative, spots: tuple[Any, ...]) -> None:
        devices = [device for spot in spots for device in spot.devices]
        assert len(set(devices)) == len(devices) == one.count
        facts = [self.facts(device) for device in devices]
        assert all(SELECTORS[one.selector](device) for device in facts)
        assert not self.unusable & {*devices, *(spot.node for spot in spots)}
        for device in facts:
            assert one.memory_bytes is None or device.holds_slices
            assert device.outside_bytes is not None or not device.holds_slices
            assert one.max_micros_per_hour is None or device.micros_per_hour <= one.max_micros_per_hour
        for spot in spots:
            assert spot.shape.whole is (one.memory_bytes is None)
            assert spot.shape.memory_bytes == (one.memory_bytes or 0)
            assert spot.shape.compute_milli == (0 if one.memory_bytes is None else one.compute_milli)
            assert (spot.shape.cpu_milli, spot.shape.ram_bytes) == (one.cpu_milli, one.ram_bytes)
        if one.topology is Topology.SPREAD:
            assert len({spot.node for spot in spots}) == one.count
        if one.topology in (Topology.NODE, Topology.FABRIC):
            assert len({spot.node for spot in spots}) == 1
        if one.topology is Topology.FABRIC and one.count > 1:
            assert len({device.fabric for device in facts}) == 1

    def facts(self, device: str) -> DeviceFacts:
        (found,) = [d for one in self.nodes.values() for d in one.devices if d.id == device]
        return found

    def node_holds(self, name: str) -> None:
        """Nothing on the node, nor on a device of it that has just been lent, is lent twice."""
        node = self.nodes[name]
        spots = [spot for lease in self.held.values() for spot in lease.spots() if spot.node == name]
        assert sum(spot.shape.cpu_milli for spot in spots) <= node.cpu_milli
        assert sum(spot.shape.ram_bytes for spot in spots) <= node.ram_bytes
        newest = max(self.held.values(), key=lambda lease: lease.epoch)
        for device in {d for spot in newest.spots() for d in spot.devices if spot.node == name}:
            facts = self.facts(device)
            there = [spot.shape for spot in spots if device in spot.devices]
            if any(shape.whole for shape in there):
                assert len(there) == 1, device
            elif facts.holds_slices:
                used = sum(shape.memory_bytes for shape in there)
                assert used + (facts.outside_bytes or 0) <= facts.memory_bytes, device
                assert sum(shape.compute_milli for shape in there) <= 1000, device

    def limits_hold(self, queue: str, preemptible: bool) -> None:
        name = queue
        while name:
            below = [x for x in self.held.values() if x.request.queue == name or self.is_below(x, name)]
            milli = sum(lease.charge.devices_milli for lease in below)
            size = sum(lease.charge.memory_bytes for lease in below)
            limit, quota = self.queues[name].limit, self.queues[name].quota
            assert limit.devices_milli is None or milli <= limit.devices_milli
            assert limit.memory_bytes is None or size <= limit.memory_bytes
            if not preemptible:
                firm = [lease for lease in below if not lease.request.preemptible]
                most = quota.devices_milli
                assert most is None or sum(lease.charge.devices_milli for lease in firm) <= most
            name = self.queues[name].parent

    def is_below(self, lease: Lease, name: str) -> bool:
        at = lease.request.queue
        while at:
            if at == name:
                return True
            at = self.queues[at].parent
        return False

    # ---- rules ------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        for name, parent in (("one", ""), ("two", ""), ("two/left", "two"), ("two/right", "two")):
            self.set_queue(Queue(name, parent))
        for name in NODES[:2]:
            self.join(name, 100, 0, 0)

    def set_queue(self, queue: Queue) -> None:
        self.queues[queue.name] = queue
        self.apply(SetQueue(queue))

    @rule(name=st.sampled_from(QUEUES))
    def remove_queue(self, name: str) -> None:
        taken = {lease.request.queue for lease in self.held.values()}
        taken |= {self.state.waiting[id].request.queue for id in self.waits}
        taken |= {"default", *(queue.parent for queue in self.queues.values())}
        decisions = self.apply(RemoveQueue(name))
        assert bool(decisions) == (name in taken or name not in self.queues)
        if not decisions:
            del self.queues[name]

    @rule(name=st.sampled_from(QUEUES), quota=limits, limit=limits, weight=st.sampled_from([1, 3]))
    def change_queue(self, name: str, quota: Limits, limit: Limits, weight: int) -> None:
        parent = "two" if "/" in name else ""
        queue = Queue(name, parent, quota, limit, weight)
        if parent and parent not in self.queues:
            assert isinstance(self.apply(SetQueue(queue))[0], Refuse)
            return
        for most, least in zip(msgspec.structs.astuple(limit), msgspec.structs.astuple(quota), strict=True):
            if None not in (most, least) and least > most:
                assert isinstance(self.apply(SetQueue(queue))[0], Refuse)
                return
        self.set_queue(queue)

    @rule(
        name=st.sampled_from(NODES),
        memory=st.sampled_from([50, 100, 101]),
        outside=st.sampled_from([0, 0, 1, 60, None]),
        without=st.sampled_from([0, 0, 0, 1]),
    )
    def join(self, name: str, memory: int, outside: int | None, without: int) -> None:
        facts = node(name, memory, outside, without)
        event = InventoryChanged if name in self.nodes else NodeJoined
        self.nodes[name] = facts
        self.apply(event(facts))

    @rule(target=ids, request=requests)
    def submit(self, request: Request) -> str:
        self.number += 1
        id = f"r{self.number}"
        decisions = self.apply(Submit(request, id, f"key-{id}", 1000))
        own = [
            d for d in decisions
            if (isinstance(d, Grant) and d.lease.id == id) or (isinstance(d, Queued | Refuse) and d.id == id)
        ]  # fmt: skip
        assert len(own) == 1
        assert request.wait or not isinstance(own[0], Queued)
        return multiple() if isinstance(own[0], Refuse) else id

    @rule(id=ids, request=requests)
    def submit_again(self, id: str, request: Request) -> None:
        if id not in self.held and id not in self.waits:
            return
        before = everything(self.state)
        (decision,) = self.apply(Submit(request, "another", f"key-{id}", 1000))
        if id in self.ending:
            assert isinstance(decision, Refuse)
        else:
            assert isinstance(decision, Grant | Queued)
            assert decision.again
        assert everything(self.state) == before

    @rule(id=ids, uid=st.sampled_from([0, 1000, 1001]), event=st.sampled_from([Renew, Release]))
    def renew_or_release(self, id: str, uid: int, event: Any) -> None:
        known = id in self.waits or id in self.held.keys() - self.ending
        decision = self.apply(event(id, uid))[0]
        if not known or uid == 1001:
            assert isinstance(decision, Refuse)

    @rule(id=ids)
    def holder_gone(self, id: str) -> None:
        self.apply(HolderGone(id))
        assert id not in self.waits

    @rule(data=st.data())
    def processes_gone(self, data: st.DataObject) -> None:
        if self.ending:
            self.end(data.draw(st.sampled_from(sorted(self.ending))))

    def end(self, id: str) -> None:
        del self.held[id]
        self.ending.discard(id)
        self.apply(Ended(id))

    @rule(what=st.sampled_from([*NODES, *DEVICES]), event=st.sampled_from([Cordon, Drain]))
    def cordon(self, what: str, event: Any) -> None:
        self.unusable.add(what)
        self.apply(event(what))

    @rule(what=st.sampled_from([*NODES, *DEVICES]))
    def uncordon(self, what: str) -> None:
        if what not in self.state.world.counters.failed:
            self.unusable.discard(what)
        self.apply(Uncordon(what))

    @rule(device=st.sampled_from(DEVICES), fails=st.booleans())
    def device_fails_or_recovers(self, device: str, fails: bool) -> None:
        if fails:
            self.unusable.add(device)
            self.apply(DeviceFailed(device, "it said so"))
            on_it = {id for id, lease in self.held.items() if any(device in s.devices for s in lease.spots())}
            assert on_it <= self.ending
        else:
            if device not in self.state.world.counters.cordoned:
                self.unusable.discard(device)
            self.apply(DeviceRecovered(device))

    @rule(name=st.sampled_from(NODES))
    def node_lost(self, name: str) -> None:
        if self.nodes.pop(name, None) is None:
            return
        there = {id for id, lease in self.held.items() if any(s.node == name for s in lease.spots())}
        active = {id for id in there if self.state.leases[id].state is LeaseState.ACTIVE}
        decisions = self.apply(NodeLost(name))
        assert {d.id for d in decisions if isinstance(d, Suspend)} == active

    @rule(name=st.sampled_from(NODES))
    def node_forgotten(self, name: str) -> None:
        self.nodes.pop(name, None)
        self.unusable.discard(name)
        there = {id for id, lease in self.held.items() if any(s.node == name for s in lease.spots())}
        self.apply(NodeForgotten(name))
        assert there <= self.ending
        assert name not in self.state.world.counters.lost
        assert name not in self.state.world.fleet.row_of

    @rule(milliseconds=st.sampled_from([0, 1, 1_000, 5_000, 10_000, 60_000, 10_000_000]))
    def tick(self, milliseconds: int) -> None:
        self.now += milliseconds
        self.apply(Tick())
        for id, lease in self.state.leases.items():
            assert lease.state is not LeaseState.ACTIVE or lease.expires > self.now
            if id not in self.ending:
                lost = [spot.node for spot in lease.spots() if spot.node not in self.nodes]
                assert (lease.state is LeaseState.SUSPENDED) is bool(lost)

    @rule()
    def restart(self) -> None:
        """A successor, made of what was written down, decides from here on as the one before would have."""
        self.apply(Resumed())
        nodes = [one for one in self.state.world.fleet.facts if one is not None]
        if [n.id for n in nodes] == NODES[: len(nodes)]:  # joined again, nodes have the same rows
            self.twin = restore(read(self.written.values()), nodes, grace_ms=10_000, half_life_ms=64_000)

    # ---- what always holds ------------------------------------------------------------------

    @invariant()
    def model_and_core_agree(self) -> None:
        assert self.state.leases.keys() == self.held.keys()
        assert self.state.waiting.keys() == self.waits
        assert timeless(everything(self.state)) == timeless(self.written.values())
        for id, lease in self.state.leases.items():
            assert (lease.state is LeaseState.ENDING) is (id in self.ending)
            assert lease.parts == self.held[id].parts

    @invariant()
    def everybody_can_be_told_why(self) -> None:
        for id in sorted(self.waits)[:3]:
            told = self.state.explain(id, self.now)
            assert told is not None
            assert told.nearest
            assert all(re.fullmatch(r"[^\n]+", reason) for reason in told.reasons)

    def teardown(self) -> None:
        self.nobody_starves()
        again = State(grace_ms=10_000, half_life_ms=64_000)
        for event, now, decided in self.log:
            assert encoded(again.apply(event, now)) == decided, "the same events give the same decisions"

    def nobody_starves(self) -> None:
        """If every lease ends when it is asked to, who could be served alone is served in bounded time."""
        targets, self.unusable = sorted(self.unusable), set()
        for target in targets:
            self.apply(Uncordon(target))
            self.apply(DeviceRecovered(target))
        for name in NODES:
            self.join(name, 100, 0, 0)
        # Who was taken away and waits again has its turn again, too.
        for _ in range(4 * (len(self.waits) + len(self.held)) + 4):
            for id in sorted(self.held):
                self.apply(Release(id, 0))
                self.end(id)
        assert not self.held
        for id in sorted(self.waits):
            one = self.state.waiting[id].request
            assert not self.could_run(one), (id, one, self.state.explain(id, self.now))

    def could_run(self, request: Request) -> bool:
        """For requests so simple that it is plain: one member, one device, nobody's limit."""
        name = request.queue
        while name:
            queue = self.queues[name]
            if queue.limit.are_set or (queue.quota.are_set and not request.preemptible):
                return False
            name = queue.parent
        if len(request.members) > 1 or request.members[0].replicas > 1:
            return False
        devices = [(d, one) for one in self.nodes.values() for d in one.devices]
        return any(
            a.count == 1 and not a.slack_ms and SELECTORS[a.selector](d)
            and (a.max_micros_per_hour is None or d.micros_per_hour <= a.max_micros_per_hour)
            and (a.memory_bytes is None or (d.holds_slices and a.memory_bytes <= d.memory_bytes))
            and a.cpu_milli <= n.cpu_milli and a.ram_bytes <= n.ram_bytes
            for a in request.members[0].alternatives for d, n in devices
        )  # fmt: skip


# As many as are asked for take as long as they take.
TestCore = pytest.mark.timeout(0 if EXAMPLES > 1000 else 120)(Core.TestCase)
TestCore.settings = settings(max_examples=EXAMPLES, stateful_step_count=40, deadline=None)

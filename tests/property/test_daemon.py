"""The whole daemon but its sockets: whatever clients, operators and nodes say, in any order, with lost
answers, full disks and restarts, it goes on, answers each request once, and lends nothing twice.

The nodes are played: they obey orders by the rules of docs/agents.md, some of them late or never.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import zmq
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hal.model import Enforcement, Rung
from hal.scheduler import wire
from hal.scheduler.agent import binding as on
from hal.scheduler.core.facts import DeviceFacts, NodeFacts
from hal.scheduler.daemon import Daemon
from hal.scheduler.holders import Holders
from hal.scheduler.jobs.output import Piece
from hal.scheduler.jobs.spec import Ended
from hal.scheduler.places import Places
from hal.scheduler.store import Store
from hal.scheduler.store.file import NotDurable

HISTORIES = int(os.environ.get("HAL_HISTORIES", "100"))
GIB = 1 << 30
MEMORY = 10 * GIB
NAMES = ("a", "b", "c")
CODES = {
    *("no_room", "limit", "no_device", "too_large", "not_found", "ended", "malformed", "unknown_op"),
    *("denied", "busy", "late", "leaving", "failed", "not_joined", "stale"),
}
LONGEST_WAIT = 60.0
SILENCE = 3.0  # hal.scheduler.agent.service
MINE = f"localhost:{os.geteuid()}:0:{os.getpid()}"


class Clock:
    """All that the daemon reads of time."""

    def __init__(self) -> None:
        self.at = 1000.0

    def monotonic(self) -> float:
        return self.at

    def monotonic_ns(self) -> int:
        return round(self.at * 1e9)

    def time(self) -> float:
        return 1.7e9 + self.at

    def time_ns(self) -> int:
        return round(self.time() * 1e9)


class Frame:
    more = False

    def __init__(self, content: bytes) -> None:
        self.bytes = content

    def __len__(self) -> int:
        return len(self.bytes)

    def get(self, _name: str) -> str:
        return MINE


class Router:
    """The daemon's socket: what has arrived, and what it has sent to whom."""

    def __init__(self) -> None:
        self.arrived: list[bytes | Frame] = []
        self.sent: list[bytes] = []

    def recv(self, _flags: int, _copy: bool = True) -> bytes | Frame:
        if not self.arrived:
            raise zmq.Again
        return self.arrived.pop(0)

    def send(self, part: bytes, _flags: int) -> None:
        self.sent.append(part)


class Poller:
    def __init__(self, router: Router) -> None:
        self.router = router

    def register(self, *_: object) -> None: ...
    def unregister(self, *_: object) -> None: ...

    def poll(self, _timeout: int) -> list[tuple[Any, int]]:
        return [(self.router, zmq.POLLIN)] if self.router.arrived else []


class Node:
    """One that obeys. What it holds outlives its connection, and not its boot."""

    def __init__(self, name: str) -> None:
        self.name, self.boot, self.joined = name, 1, False
        self.connection, self.heard = 1, 0.0
        self.devices = 2
        self.term, self.until, self.cut_off = 0, float("inf"), 50.0
        self.held: dict[str, on.Binding] = {}
        self.runs: set[tuple[str, int, int]] = set()
        self.ended: list[tuple[str, int]] = []
        self.ended_runs: list[Ended] = []
        self.over_with: dict[str, int] = {}
        self.orders: list[wire.Request] = []
        self.stubborn = False  # programs take their time to end

    def facts(self) -> NodeFacts:
        devices = tuple(
            DeviceFacts(f"gpu{number}", "v", f"m{number}", MEMORY) for number in range(self.devices)
        )
        return NodeFacts(self.name, 64_000, 1 << 40, devices)

    def obey(self, order: wire.Request) -> wire.Reply:
        kind = {op: kind for kind, (op, _) in on.ORDERS.items()}[order.op]
        found = self.carry_out(msgspec.convert(order.body, kind))
        if isinstance(found, str):
            return wire.Reply(wire.VERSION, order.id, False, error=wire.ErrorBody("failed", found))
        return wire.Reply(wire.VERSION, order.id, True, msgspec.to_builtins(found))

    def carry_out(self, order: on.Order) -> msgspec.Struct | str:
        if not isinstance(order, on.OutputOrder):
            if order.term < self.term:
                return "it obeys a newer scheduler"
            self.term = order.term
        match order:
            case on.BindOrder(binding=binding):
                return self.bind(binding)
            case on.UnbindOrder(lease=lease, epoch=epoch):
                self.over_with[lease] = max(epoch, self.over_with.get(lease, epoch))
                there = self.held.get(lease)
                if there is not None and there.epoch > epoch:
                    return "the lease was granted anew"
                if there is not None and not self.stubborn:
                    self.end(lease)
                return on.Unbound(lease not in self.held)
            case on.RunOrder(lease=lease, epoch=epoch, member=member):
                if lease not in self.held or self.held[lease].epoch != epoch:
                    return "it is not bound here"
                self.runs.add((lease, epoch, member))
                return on.Started()
            case on.SignalOrder():
                return on.Started()
            case on.OutputOrder(offset=offset):
                return Piece(offset, b"", end=True)

    def bind(self, binding: on.Binding) -> on.Bound | str:
        there = self.held.get(binding.lease)
        if self.over_with.get(binding.lease, -1) >= binding.epoch:
            return "it has ended here"
        if there is not None and there.epoch != binding.epoch:
            return "what ran in it before has not ended"
        self.held[binding.lease] = binding
        for device in {device for spot in binding.spots() for device in spot.devices}:
            shapes = [s.shape for b in self.held.values() for s in b.spots() if device in s.devices]
            assert len(shapes) == 1 or not any(shape.whole for shape in shapes), "two owners of one device"
            assert sum(shape.memory_bytes for shape in shapes if not shape.whole) <= MEMORY, "over-committed"
        port = 20_000 if binding.members > 1 else 0
        return on.Bound(
            [(part.number, {}) for part in binding.parts], Enforcement(Rung.GUARD, Rung.NONE), port
        )

    def end(self, lease: str, *, lost: bool = False) -> None:
        epoch = self.held.pop(lease).epoch
        self.ended.append((lease, epoch))
        self.over_with[lease] = epoch
        for run in sorted(run for run in self.runs if run[0] == lease):
            self.finish(run, None, 15, lost=lost)

    def finish(self, run: tuple[str, int, int], code: int | None, number: int | None, **more: bool) -> None:
        self.runs.discard(run)
        self.ended_runs.append(Ended(*run, code, number, "", 1, 2, 0.5, **more))

    def stop_all(self) -> None:
        for lease in list(self.held):
            self.end(lease, lost=True)

    @property
    def identity(self) -> bytes:
        return f"{self.name}-{self.connection}".encode()

    def keep_dialling(self, now: float) -> None:
        """As hal.scheduler.agent.service does."""
        if now - self.heard > SILENCE:
            self.dial()
            self.heard = now

    def dial(self) -> None:
        """What was on its way over the connection before this one is lost."""
        self.joined, self.connection = False, self.connection + 1
        self.orders.clear()

    def reboot(self) -> None:
        self.dial()
        self.boot, self.term, self.until = self.boot + 1, 0, float("inf")
        for kept in (self.held, self.runs, self.ended, self.ended_runs, self.over_with):
            kept.clear()


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.patches = [
            mock.patch.object(time, name, getattr(self.clock, name))
            for name in ("monotonic", "monotonic_ns", "time", "time_ns")
        ]
        for one in self.patches:
            one.start()
        self.folder = tempfile.TemporaryDirectory(prefix="hal-test-")
        self.nodes = {name: Node(name) for name in NAMES}
        self.asked: dict[str, tuple[str, float]] = {}  # requests without an answer: operation, since when
        self.reports: dict[str, tuple[Node, float, on.Beat | None]] = {}
        self.granted: dict[str, None] = {}  # leases that somebody was promised
        self.jobs: dict[str, None] = {}
        self.number = 0
        self.full = False
        self.begin()

    # ---- the daemon -------------------------------------------------------------------------

    def begin(self) -> None:
        self.daemon = daemon = Daemon(None, Places(Path(self.folder.name, "r")))
        daemon.places.make()
        daemon.store = Store(daemon.places.store)
        self.router = Router()
        daemon._poller = Poller(self.router)  # type: ignore[assignment]
        daemon.holders = Holders(daemon._poller)
        daemon.recover()
        daemon._published = daemon.watch_ring.last
        daemon._routers = [self.router]  # type: ignore[list-item]
        daemon._numbers = mock.Mock()
        write = daemon.store.commit

        def commit(*options: Any, **more: Any) -> None:
            if self.full:
                raise NotDurable("the disk is full")
            write(*options, **more)

        daemon.store.commit = commit  # type: ignore[method-assign]

    def close(self) -> None:
        self.daemon.holders.close()
        self.daemon.store._db.close()  # what was not committed is lost

    def turn(self) -> None:
        """As long as something arrives; one more carries out what the last has decided."""
        more = True
        while more:
            more = bool(self.router.arrived)
            self.daemon._turn(mock.Mock(fileno=lambda: -1))
            sent, self.router.sent = self.router.sent, []
            for to, content in zip(sent[::2], sent[1::2], strict=True):
                self.hear(to, content)

    def hear(self, to: bytes, content: bytes) -> None:
        said = wire.unpack_message(content)
        if isinstance(said, wire.Request):
            for node in self.nodes.values():
                if node.identity == to and node.joined:  # else it does not know yet when to stop
                    node.orders.append(said)
            return
        if not said.ok:
            assert said.error is not None and said.error.code in CODES, said
        if said.id in self.reports:
            self.answered(to, said)
            return
        op, _ = self.asked.pop(said.id)  # each once
        if said.ok and (id := said.body.get("lease")) and op in ("acquire", "wait"):
            self.granted[id["id"]] = None
        if said.ok and op == "submit":
            self.jobs |= dict.fromkeys(said.body["jobs"])

    def answered(self, to: bytes, said: wire.Reply) -> None:
        node, sent, beat = self.reports.pop(said.id)
        if node.identity != to:
            return
        if not said.ok:
            node.joined = False
            return
        if beat is None:
            joined = msgspec.convert(said.body, on.Joined)
            if joined.term < node.term:
                return
            node.term, node.cut_off = joined.term, joined.cut_off_seconds
            for lease in [id for id, binding in node.held.items() if joined.keep.get(id) != binding.epoch]:
                node.end(lease)
            node.joined = not joined.again
            if joined.again:
                return
        elif said.body.get("durable", True):
            node.ended = [one for one in node.ended if one not in beat.ended]
            node.ended_runs = [one for one in node.ended_runs if one not in beat.runs]
        node.until = sent + node.cut_off
        node.heard = max(node.heard, sent)

    # ---- what arrives -----------------------------------------------------------------------

    def ask(self, op: str, **body: Any) -> None:
        self.number += 1
        self.asked[f"r{self.number}"] = (op, self.clock.at)
        request = wire.Request(wire.VERSION, f"r{self.number}", op, body)
        self.router.arrived += [b"client", Frame(wire.pack(request))]
        self.turn()

    def report(self, node: Node) -> None:
        self.number += 1
        id, now, beat = f"n{self.number}", self.clock.at, None
        if node.joined:
            beat = on.Beat(node.name, node.term, node.facts(), list(node.ended), {}, node.ended_runs[:32])
        held = {lease: binding.epoch for lease, binding in node.held.items()}
        joining = on.Join(node.name, f"boot{node.boot}", node.term, now, "1", node.facts(), held)
        op, body = ("join", joining) if beat is None else ("beat", beat)
        self.reports[id] = (node, now, beat)
        request = wire.Request(wire.VERSION, id, op, msgspec.to_builtins(body))
        self.router.arrived += [node.identity, Frame(wire.pack(request))]

    # ---- clients ----------------------------------------------------------------------------

    @rule(
        gib=st.sampled_from([None, 3, 6, 10, 11]),
        members=st.integers(1, 4),
        wait=st.booleans(),
        requeue=st.booleans(),
        priority=st.sampled_from([0, 0, 5]),
        queue=st.sampled_from(["default", "default", "q"]),
        ttl=st.sampled_from([1000, 15_000, 600_000]),
        duration=st.sampled_from([None, None, 5000]),
    )
    def acquire(self, gib: int | None, members: int, ttl: int, duration: int | None, **more: Any) -> None:
        member = {"alternatives": [{"memory_bytes": None if gib is None else gib * GIB}]}
        request = {"members": [member] * members, "ttl_ms": ttl, "duration_ms": duration, **more}
        self.ask("acquire", key=f"k{self.number}", request=request)

    @rule(which=st.integers(0, 99), op=st.sampled_from(["release", "renew", "wait", "explain", "lease"]))
    def about_a_lease(self, which: int, op: str) -> None:
        ids = [*self.daemon.state.leases, *self.daemon.state.waiting, *self.granted, "none"]
        self.ask(op, lease=ids[which % len(ids)])

    @rule(
        gib=st.sampled_from([None, 3, 6]),
        members=st.integers(1, 2),
        retries=st.integers(0, 2),
        array=st.sampled_from([None, None, [0, 1, 2]]),
        queue=st.sampled_from(["default", "default", "q"]),
    )
    def submit(
        self, gib: int | None, members: int, retries: int, array: list[int] | None, queue: str
    ) -> None:
        member = {"alternatives": [{"memory_bytes": None if gib is None else gib * GIB}]}
        request = {"members": [member] * members, "queue": queue}
        job = {"command": ["true"]}
        self.ask("submit", key=f"j{self.number}", job=job, request=request, retries=retries, array=array)

    @rule(which=st.integers(0, 99), op=st.sampled_from(["job", "cancel_job", "wait_job", "job_logs"]))
    def about_a_job(self, which: int, op: str) -> None:
        ids = [*self.daemon.board.jobs, "none"]
        self.ask(op, job=ids[which % len(ids)])

    @rule(op=st.sampled_from(["list", "jobs", "queues", "status", "nodes", "accounting", "watch"]))
    def look(self, op: str) -> None:
        self.ask(op)

    # ---- operators --------------------------------------------------------------------------

    @rule(
        op=st.sampled_from(["cordon", "drain", "drain", "uncordon", "uncordon"]),
        node=st.sampled_from(NAMES),
        device=st.sampled_from(["", "/gpu0", "/gpu1"]),
    )
    def mark(self, op: str, node: str, device: str) -> None:
        self.ask(op, target=node + device)

    @rule(node=st.sampled_from(NAMES), force=st.booleans())
    def forget(self, node: str, force: bool) -> None:
        """By force only when the machine is off, as the operator is told (docs/operations.md)."""
        if force:
            self.nodes[node].reboot()
        self.ask("forget", node=node, force=force)

    @rule(limit=st.sampled_from([-1, 1000, 3000]), quota=st.sampled_from([-1, 1000]))
    def set_queue(self, limit: int, quota: int) -> None:
        self.ask("set_queue", name="q", limit_devices_milli=limit, quota_devices_milli=quota)

    @rule()
    def remove_queue(self) -> None:
        self.ask("remove_queue", name="q")

    # ---- nodes, disks and time --------------------------------------------------------------

    @rule(node=st.sampled_from(NAMES), how=st.sampled_from(["obey", "obey", "obey", "refuse", "lose"]))
    def work(self, node: str, how: str) -> None:
        one = self.nodes[node]
        one.keep_dialling(self.clock.at)
        orders, one.orders = one.orders, []
        for order in orders if how != "lose" else []:
            if how == "obey":
                reply = one.obey(order)
            else:
                reply = wire.Reply(wire.VERSION, order.id, False, error=wire.ErrorBody("failed", "not now"))
            self.router.arrived += [one.identity, Frame(wire.pack(reply))]
        self.turn()

    @rule(node=st.sampled_from(NAMES), which=st.integers(0, 9), code=st.sampled_from([0, 1]))
    def a_program_ends(self, node: str, which: int, code: int) -> None:
        runs = sorted(self.nodes[node].runs)
        if runs:
            self.nodes[node].finish(runs[which % len(runs)], code, None)

    @rule(node=st.sampled_from(NAMES), what=st.sampled_from(["stubborn", "meek", "reboot", "lose", "mend"]))
    def trouble(self, node: str, what: str) -> None:
        one = self.nodes[node]
        match what:
            case "stubborn" | "meek":
                one.stubborn = what == "stubborn"
            case "reboot":
                one.reboot()
            case "lose" | "mend":
                one.devices = 1 if what == "lose" else 2

    @rule(
        seconds=st.sampled_from([0.1, 1.0, 5.0, 30.0]),
        silent=st.sets(st.sampled_from(NAMES), max_size=2),
    )
    def time_passes(self, seconds: float, silent: set[str]) -> None:
        self.settle(seconds, silent)

    def settle(self, seconds: float, silent: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        end = self.clock.at + seconds
        while self.clock.at < end:
            self.clock.at = min(self.clock.at + 1.0, end)
            for node in self.nodes.values():
                if not node.stubborn:
                    for lease in [
                        id for id in node.held if node.over_with.get(id, -1) >= node.held[id].epoch
                    ]:
                        node.end(lease)
                if node.name not in silent:
                    node.keep_dialling(self.clock.at)
                    self.report(node)
                if self.clock.at > node.until:
                    node.stop_all()
            self.turn()

    @rule()
    def the_disk_is_full(self) -> None:
        self.full = True

    @rule()
    def there_is_room_again(self) -> None:
        self.full = False
        self.turn()

    @precondition(lambda self: not self.full)
    @rule()
    def restart(self) -> None:
        """As after SIGKILL: who waits for an answer asks the next one."""
        self.close()
        self.asked.clear()
        self.reports.clear()
        for node in self.nodes.values():
            node.dial()
        before = {id: (one.epoch, one.state) for id, one in self.daemon.state.leases.items()}
        waiting, jobs = set(self.daemon.state.waiting), set(self.daemon.board.jobs)
        self.begin()
        after = {id: (one.epoch, one.state) for id, one in self.daemon.state.leases.items()}
        assert after.keys() | set(self.daemon.state.waiting) >= before.keys() | waiting
        assert set(self.daemon.board.jobs) >= jobs

    # ---- what holds -------------------------------------------------------------------------

    @invariant()
    def what_is_counted_as_kept_is_there(self) -> None:
        board, there = self.daemon.board, set(self.daemon.state.waiting)
        assert set(self.daemon.kept._sizes) == there | {f"job:{id}" for id in board._living}

    @invariant()
    def everybody_is_answered(self) -> None:
        late = [op for op, since in self.asked.values() if self.clock.at - since > LONGEST_WAIT + 2]
        assert not late, f"no answer to {late}"

    def teardown(self) -> None:
        """Once all have what they need, everything that was given back is free."""
        try:
            self.full = False
            for node in self.nodes.values():
                node.stubborn, node.devices = False, 2
            for name in NAMES:
                self.ask("uncordon", target=name)
            self.obeying(100)
            for id in [*self.daemon.state.leases, *self.daemon.state.waiting]:
                if id in self.daemon.board.jobs:
                    self.ask("cancel_job", job=id)
                else:
                    self.ask("release", lease=id)
            self.obeying(100)
            assert not self.daemon.state.leases and not self.daemon.state.waiting
            assert not any(node.held for node in self.nodes.values())
            assert not self.asked
        finally:
            self.close()
            for one in self.patches:
                one.stop()
            self.folder.cleanup()

    def obeying(self, seconds: int) -> None:
        for _ in range(seconds):
            self.settle(1.0)
            for name in NAMES:
                self.work(name, "obey")


def test_what_a_node_could_not_end_is_ordered_again() -> None:
    machine = Machine()
    machine.time_passes(1.0, set())
    request = {"gib": 6, "members": 1, "priority": 0, "queue": "default", "requeue": False, "wait": False}
    machine.acquire(ttl=600_000, duration=None, **request)
    (lease,) = machine.daemon.state.leases.values()
    node = lease.spots()[0].node
    machine.work(node, "obey")
    machine.about_a_lease(0, "release")
    machine.work(node, "refuse")
    machine.teardown()


TestDaemon = Machine.TestCase
TestDaemon.settings = settings(
    max_examples=HISTORIES,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)

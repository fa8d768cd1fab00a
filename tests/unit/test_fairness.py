"""The real daemon but its sockets: whoever asks for much, or for what takes long, is in nobody's way."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from unittest import mock

import msgspec
import pytest
import zmq

from hal.scheduler import core, page, wire
from hal.scheduler.agent.binding import Join
from hal.scheduler.answers import Address, Peer, Refused, Waiter
from hal.scheduler.bench.ground import NoAgent, node_facts
from hal.scheduler.config import Config
from hal.scheduler.daemon import Daemon
from hal.scheduler.holders import Holders
from hal.scheduler.jobs import board
from hal.scheduler.jobs.accounting import Account, together
from hal.scheduler.jobs.spec import JobSpec
from hal.scheduler.operations import OPERATIONS
from hal.scheduler.places import Places
from hal.scheduler.sections import LimitsSection
from hal.scheduler.security.roles import Role
from hal.scheduler.store import Store
from tests.property.test_daemon import Clock, Frame, Poller, Router

GIB = 1 << 30
NOWHERE = Address(cast("zmq.Socket[bytes]", None), b"")
ALICE = Peer(NOWHERE, "alice", 1 << 32, -1, Role.USER)
BOB = Peer(NOWHERE, "bob", (1 << 32) + 1, -1, Role.USER)
ROOT = Peer(NOWHERE, "uid:0", 0, -1, Role.ADMIN)
WAITS = {"members": [{"alternatives": [{"memory_bytes": 80 * GIB, "count": 4}]}], "wait": True}


class Sent(Frame):
    """A message of the user with this number, who is no admin."""

    def __init__(self, uid: int, op: str, **body: Any) -> None:
        super().__init__(wire.pack(wire.Request(wire.VERSION, f"{uid}-{op}", op, body)))
        self.uid = uid

    def get(self, _name: str) -> str:
        return f"localhost:{self.uid}:0:{os.getpid()}"


class Place:
    def __init__(self, folder: Path, devices: int = 4) -> None:
        limits = LimitsSection(requests_per_second=1000, burst=100)
        self.daemon = daemon = Daemon(NoAgent(devices), Places(folder), config=Config(limits=limits))
        daemon.places.make()
        daemon.store = Store(daemon.places.store)
        self.router = Router()
        daemon._poller = Poller(self.router)  # type: ignore[assignment]
        daemon._routers = [self.router]  # type: ignore[list-item]
        daemon._numbers = mock.Mock()
        daemon.holders = Holders(daemon._poller)
        daemon.recover()
        daemon._door.gate.open_to_others = True

    def close(self) -> None:
        self.daemon.holders.close()
        self.daemon.store.close()

    def ask(self, op: str, who: Peer = ALICE, **body: Any) -> dict[str, Any]:
        answer = OPERATIONS[op](self.daemon, body, who)
        assert not isinstance(answer, Waiter)
        return answer

    def turn(self) -> list[wire.Reply]:
        """What is answered in it; an identity and a frame for each that was sent."""
        self.router.sent.clear()
        self.daemon._turn(mock.Mock(fileno=lambda: -1))
        return [wire.unpack_reply(frame) for frame in self.router.sent[1::2]]

    def arrives(self, *messages: Sent) -> None:
        for one in messages:
            self.router.arrived += [f"from {one.uid}".encode(), one]

    def pages(self, op: str, *names: str, **body: Any) -> list[dict[str, Any]]:
        found = [self.ask(op, ROOT, **body)]
        while found[-1]["next"] is not None:
            found.append(self.ask(op, ROOT, **body, after=found[-1]["next"]))
        for one in found:
            assert len(msgspec.msgpack.encode(one)) < 2 * page.MOST_BYTES
        return found


@pytest.fixture
def place(own_environment: Path) -> Iterator[Place]:
    one = Place(own_environment)
    yield one
    one.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    for name in ("monotonic", "monotonic_ns", "time", "time_ns"):
        monkeypatch.setattr(time, name, getattr(found, name))
    monkeypatch.setattr(time, "thread_time", found.monotonic)
    return found


# ---- pages ------------------------------------------------------------------------------------


def test_large_jobs_are_told_in_pages_that_can_be_sent(place: Place) -> None:
    place.ask("acquire", ROOT, key="all", request=WAITS)
    job = {"command": ["true", "x" * 30_000], "environment": {f"V{n:040}": "" for n in range(650)}}
    for number in range(290):
        place.ask("submit", ROOT, key=f"k{number}", request=WAITS, job=job)
    found = [job for one in place.pages("jobs") for job in one["jobs"]]
    assert len({job["id"] for job in found}) == len(found) == 290
    assert found[0]["command"] == job["command"]  # what it means stays


def test_each_list_ends_at_so_many_bytes_and_goes_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        place.ask("acquire", key=f"l{number}", memory_bytes=GIB)
    place.ask("acquire", ROOT, key="rest", request={"members": [{"alternatives": [{"count": 2}]}]})
    for number in range(20):
        who = Peer(
            Address(cast("zmq.Socket[bytes]", None), b"%d" % number), f"n{number:02}", 0, -1, Role.ADMIN
        )
        place.daemon.join(Join(f"n{number:02}", "b", 0, 0.0, "1", node_facts(f"n{number:02}", 2)), who)
    for number in range(20):
        place.ask("acquire", key=f"w{number}", request=WAITS | {"priority": number})
    monkeypatch.setattr(page, "MOST_BYTES", 2000)
    lists = place.pages("list")
    assert len(lists) > 5
    assert len({one["id"] for each in lists for one in each["leases"]}) == 21
    assert len({one["id"] for each in lists for one in each["waiting"]}) == 20
    nodes = [one["id"] for each in place.pages("nodes") for one in each["nodes"]]
    assert nodes == ["local", *(f"n{number:02}" for number in range(20))]
    after, seen = place.daemon.nodes.term << 32, list[int]()
    while events := (answer := place.ask("watch", ROOT, after=after, timeout_seconds=0, limit=1000))[
        "events"
    ]:
        assert len(events) < 30
        seen += [one["number"] for one in events]
        after = answer["next"]
    assert len(seen) == len(set(seen)) == place.daemon.watch_ring.last - (place.daemon.nodes.term << 32)


def test_all_queues_fit_into_one_answer(place: Place) -> None:
    parent = "p" * 64
    for number in range(9999):
        name = f"{number:05}".ljust(64, "x") if number else parent
        most = core.Limits(1 << 50, 1 << 62)
        place.daemon.state.world.tree.queues[name] = core.Queue(name, parent * (number > 0), most, most, 9)
        place.daemon.state.world.tree.used[name] = core.Amount(1 << 50, 1 << 62)
    assert len(wire.pack(wire.Reply(1, "", True, place.ask("queues")))) < wire.MAX_REPLY_BYTES // 2
    with pytest.raises(Refused, match="there are 10000 queues; remove one") as refused:
        place.ask("set_queue", ROOT, name="more")
    assert refused.value.code == "limit"
    place.ask("set_queue", ROOT, name=parent, weight=2)


# ---- time -------------------------------------------------------------------------------------


def test_who_asks_for_what_takes_long_is_in_nobodys_way(
    place: Place, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: object) -> dict[str, Any]:
        clock.at += 0.03
        return {}

    monkeypatch.setitem(OPERATIONS, "watch", slow)
    place.arrives(*[Sent(7, "watch") for _ in range(120)])
    place.router.arrived[2:2] = [b"from 8", Sent(8, "hello")]  # as ZeroMQ takes from each in turn
    place.arrives(Sent(9, "hello"))
    said: list[wire.Reply] = place.turn()
    assert [(one.id, one.ok) for one in said] == [("7-watch", True)]
    begun = clock.at
    said += place.turn()
    assert said[1].id == "8-hello"
    while place.router.arrived:
        said += place.turn()
    assert clock.at - begun < 0.1  # most are not even begun
    refused = [one.error for one in said if one.error is not None]
    assert {one.code for one in refused} == {"busy"}
    assert "uid:7 has asked for much at once, or for what takes long; try again in " in refused[0].message
    assert said[-1].id == "9-hello" and said[-1].ok


def test_nobody_pays_for_what_keeps_the_scheduler_from_running(
    place: Place, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept_from_running(*_: object) -> dict[str, Any]:
        clock.at += 0.03
        return {}

    monkeypatch.setattr(time, "thread_time", lambda: 7.0)
    monkeypatch.setitem(OPERATIONS, "watch", kept_from_running)
    place.arrives(*[Sent(7, "watch") for _ in range(50)])
    assert [one.ok for one in place.turn()] == [True] * 50


def test_what_takes_long_is_served_in_pieces(place: Place) -> None:
    accounts = place.daemon.board.accounts
    for number in range(9000):
        key = (f"2026-01-{1 + number % 28:02}", number % 50, f"q{number}", "", "", "")
        accounts._add(key, Account(key[0], key[1], f"user{key[1]}", 1, queue=key[2]), str(number))
    wanted = together(accounts.between("", ""), ["day", "queue"])
    place.daemon._door.gate.roles = {7: Role.READER}
    place.arrives(Sent(7, "accounting", by=["day", "queue"]))
    said = place.turn()
    turns = 1
    while not said:
        place.arrives(Sent(8, "hello"))
        said = place.turn()
        assert said.pop(0).id == "8-hello"
        turns += 1
    assert turns > 5
    assert said[0].body == {"accounts": wanted}
    assert place.daemon._door.limits._clients["uid:7"].outstanding == 0


def test_many_who_watch_are_looked_at_a_few_at_a_time(
    place: Place, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.arrives(*[Sent(7, "watch", lease="nope", timeout_seconds=60) for _ in range(50)])
    place.arrives(Sent(8, "watch", timeout_seconds=60))
    while place.router.arrived:
        place.turn()
    since = place.daemon.watch_ring.since

    def slow(*asked: Any) -> Any:
        clock.at += 0.004
        return since(*asked)

    monkeypatch.setattr(place.daemon.watch_ring, "since", slow)
    place.daemon.happens(core.SetQueue(core.Queue("q")))
    said, turns = list[wire.Reply](), 0
    while not said:
        begun, turns = clock.at, turns + 1
        said = place.turn()
        assert clock.at - begun < 0.02
        assert said or place.daemon._patience() <= 0
    assert said[0].id == "8-watch" and 10 < turns < 20


# ---- what is kept -----------------------------------------------------------------------------


def test_what_waits_is_bounded_in_bytes_for_each_and_for_all(place: Place) -> None:
    place.ask("acquire", ROOT, key="all", request=WAITS)
    limits = place.daemon.limits
    limits.allowance = msgspec.structs.replace(limits.allowance, waiting_bytes=1 << 20, all_bytes=3 << 20)
    job = {"command": ["true", "x" * 30_000]}

    def fill(who: Peer) -> tuple[int, Refused]:
        for number in range(1000):
            try:
                place.ask("submit", who, key=f"k{number}", request=WAITS, job=job)
            except Refused as refused:
                return number, refused
        raise AssertionError

    count, refused = fill(ALICE)
    assert (count, refused.code) == (30, "limit")
    assert str(refused) == (
        "what waits for alice has 1001.6 KiB, and with this more than the 1.0 MiB that it may have "
        "(limits.waiting_bytes); try again when some have been served"
    )
    with pytest.raises(Refused, match=r"what waits for alice .* \(limits.waiting_bytes\)"):
        place.ask("acquire", key="one", request=WAITS)
    assert fill(BOB)[0] == 30
    count, refused = fill(ROOT)
    assert count > 30 and "what waits for all users has" in str(refused)
    assert "a quarter of limits.memory" in str(refused)
    for one in place.ask("jobs")["jobs"][:5]:
        place.ask("cancel_job", job=one["id"])
    for _ in range(3):
        place.turn()
    assert place.ask("submit", key="again", request=WAITS, job=job)["jobs"]


def test_jobs_that_are_over_are_bounded_in_bytes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "_KEPT_BYTES", 200_000)
    place.ask("acquire", ROOT, key="all", request=WAITS)
    made = [
        place.ask("submit", key=f"k{n}", request=WAITS, job={"command": ["x" * 30_000]})["jobs"][0]
        for n in range(20)
    ]
    for id in made:
        place.ask("cancel_job", job=id)
        place.turn()
    assert list(place.daemon.board.jobs) == made[-6:]


def test_an_array_is_known_by_its_key_for_as_long_as_one_of_its_jobs(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "_KEPT", 1)
    place.ask("acquire", ROOT, key="all", request=WAITS)
    asked = {"key": "k", "request": WAITS, "job": {"command": ["true"]}, "array": [1, 2, 3]}
    made = place.ask("submit", **asked)["jobs"]
    for id in made[:2]:
        place.ask("cancel_job", job=id)
        place.turn()
    assert place.ask("submit", **asked)["jobs"] == made[1:]
    assert len(place.daemon.board.jobs) == 2


def test_a_directory_has_the_length_of_a_path() -> None:
    JobSpec(["true"], directory="/" + "x" * 4095)
    with pytest.raises(ValueError, match="directory has more than 4096 bytes"):
        JobSpec(["true"], directory="/" + "é" * 2048)

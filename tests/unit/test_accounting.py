"""What leases have used adds up to what was granted, however often they are charged and whatever restarts."""

from __future__ import annotations

from unittest.mock import Mock

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.scheduler import wire
from hal.scheduler.core.facts import DeviceFacts, NodeFacts
from hal.scheduler.core.fleet import Fleet
from hal.scheduler.core.lease import Amount, Lease, Part
from hal.scheduler.core.records import Row
from hal.scheduler.core.request import Request
from hal.scheduler.core.shape import Shape, Spot
from hal.scheduler.daemon import _packed
from hal.scheduler.jobs import accounting as module
from hal.scheduler.jobs.accounting import DAY_MS, Account, Accounts, together
from hal.scheduler.jobs.board import Board
from hal.scheduler.jobs.records import Job, Usage, described
from hal.scheduler.jobs.spec import JobSpec

GIB = 1 << 30
NOON = 20_000 * DAY_MS + DAY_MS // 2
HOUR = 3600 * 1000


@pytest.fixture
def fleet() -> Fleet:
    one = Fleet()
    one.join(
        NodeFacts("green", 1, 1, (DeviceFacts("g0", "nvidia", "H100", 80 * GIB, micros_per_hour=4_000_000),))
    )
    one.join(
        NodeFacts("red", 1, 1, (DeviceFacts("r0", "amd", "MI300X", 192 * GIB, micros_per_hour=2_000_000),))
    )
    return one


def lease(*spots: Spot, granted: int = NOON, id: str = "l", uid: int = 7) -> Lease:
    parts = tuple(Part(number, 0, 0, (spot,)) for number, spot in enumerate(spots))
    amount = Amount(1500, 100 * GIB)
    request = Request((), queue="research")
    return Lease(id, request, uid, "k", 0, parts, amount, 1, granted, 1, granted, granted + 1)


WHOLE = Spot("green", ("g0",), Shape(whole=True))
HALF = Spot("red", ("r0",), Shape(memory_bytes=96 * GIB))


class Kept:
    """A store's rows, and accounts that begin anew from them."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], bytes] = {}
        self.accounts = Accounts()

    def commit(self) -> None:
        for kind, id, value in self.accounts.changes():
            if value is None:
                del self.rows[kind, id]
            else:
                self.rows[kind, id] = value

    def restart(self) -> None:
        self.accounts = Accounts()
        rows: list[Row] = [(kind, id, value) for (kind, id), value in self.rows.items()]
        self.accounts.load(rows)


def test_each_node_and_kind_has_its_part_and_the_lease_counts_once(fleet: Fleet) -> None:
    accounts = Accounts()
    usage = accounts.charge(lease(WHOLE, HALF), fleet.device, NOON + HOUR, job=True, ended=True)
    assert usage.device_seconds == 3600 * 1.5
    assert usage.micros == 4_000_000 + 1_000_000
    rows = together(accounts.between("", ""), ["queue", "model"])
    assert [(row["queue"], row["model"], row["leases"], row["jobs"]) for row in rows] == [
        ("research", "H100", 1, 1),
        ("research", "MI300X", 0, 0),
    ]
    assert [(row["device_seconds"], row["price"]) for row in rows] == [(3600, 4), (1800, 1)]
    assert [row["memory_byte_seconds"] for row in rows] == [3600 * 80 * GIB, 3600 * 96 * GIB]
    (all_,) = together(accounts.between("", ""), ["user"])
    assert (all_["leases"], all_["jobs"], all_["device_seconds"], all_["price"]) == (1, 1, 5400, 5)


def test_what_has_gone_costs_nothing_and_counts_as_the_queue_was_charged(fleet: Fleet) -> None:
    fleet.leave("red")
    accounts = Accounts()
    accounts.charge(lease(HALF), fleet.device, NOON + HOUR, job=False, ended=True)
    (row,) = together(accounts.between("", ""), ["node", "vendor"])
    assert (row["node"], row["vendor"], row["device_seconds"], row["price"]) == ("red", "", 5400, 0)


@given(
    st.lists(st.tuples(st.integers(1, 3 * 24), st.sampled_from(["daily", "crash", "restart"])), max_size=12),
)
def test_it_adds_up_over_days_and_restarts(steps: list[tuple[int, str]]) -> None:
    """``crash``: what was charged in memory only is not lost and not charged twice."""
    fleet, kept, held, now = Fleet(), Kept(), lease(WHOLE), NOON
    fleet.join(NodeFacts("green", 1, 1, (DeviceFacts("g0", "nvidia", "H100", 80 * GIB),)))
    for hours, what in steps:
        now += hours * HOUR
        kept.accounts.charge(held, fleet.device, now, job=False, ended=False)
        if what != "crash":
            kept.commit()
        if what != "daily":
            kept.restart()
    now += HOUR
    kept.accounts.charge(held, fleet.device, now, job=False, ended=True)
    kept.commit()
    kept.restart()
    (row,) = together(kept.accounts.between("", ""), ["user"])
    assert (row["leases"], row["device_seconds"]) == (1, (now - NOON) / 1000)
    assert {kind for kind, _ in kept.rows} == {"account"}


def test_what_goes_on_is_charged_at_midnight(fleet: Fleet) -> None:
    engine = Mock(private=False)
    engine.state.leases = {"l": lease(WHOLE)}
    engine.device = fleet.device
    board = Board(engine)

    def days_at(now: int) -> list[tuple[str, float]]:
        engine.now.return_value = now
        board._charge_each_day()
        return [(row.day, row.usage.device_seconds) for row in board.accounts.between("", "")]

    assert days_at(NOON + 2 * HOUR) == []
    assert days_at(NOON + 11 * HOUR) == []
    two = [("2024-10-04", 12 * 3600.0), ("2024-10-05", 3600.0)]
    assert days_at(NOON + 13 * HOUR) == days_at(NOON + 20 * HOUR) == two
    assert days_at(NOON + 37 * HOUR)[1:] == [("2024-10-05", 24 * 3600.0), ("2024-10-06", 3600.0)]


def test_each_day_has_what_was_used_on_it(fleet: Fleet) -> None:
    accounts, midnight = Accounts(), NOON + 12 * HOUR
    usage = accounts.charge(lease(WHOLE), fleet.device, midnight + 26 * HOUR, job=False, ended=True)
    assert [(row.day, row.usage.device_seconds / 3600, row.leases) for row in accounts.between("", "")] == [
        ("2024-10-04", 12, 0),
        ("2024-10-05", 24, 0),
        ("2024-10-06", 2, 1),
    ]
    assert usage.device_seconds == 38 * 3600
    long = Accounts()  # what was before the days that are kept is not lost
    long.charge(lease(WHOLE), fleet.device, NOON + 1000 * DAY_MS, job=False, ended=True)
    rows = list(long.between("", ""))
    assert len(rows) == len(long) == 800
    assert sum(row.usage.device_seconds for row in rows) == 1000 * 24 * 3600
    back = Accounts()  # the clock was set back: nothing is taken away
    back.charge(lease(WHOLE), fleet.device, NOON - HOUR, job=False, ended=False)
    back.charge(lease(WHOLE), fleet.device, NOON + HOUR, job=False, ended=True)
    assert [(row.usage.device_seconds, row.leases) for row in back.between("", "")] == [(3600, 1)]


def test_of_many_leases_some_are_charged_in_each_turn(fleet: Fleet) -> None:
    """Who asks something at midnight does not wait for all of them."""
    engine = Mock(private=False)
    engine.state.leases = {f"l{number}": lease(WHOLE, id=f"l{number}") for number in range(1000)}
    engine.device = fleet.device
    board, turns = Board(engine), []
    engine.now.return_value = NOON
    board._charge_each_day()
    engine.now.return_value = NOON + 12 * HOUR
    for _ in range(6):
        board._charge_each_day()
        turns.append(sum(kind == "charged" for kind, _, _ in board.changes()))
    assert max(turns) < 300
    assert (sum(turns), turns[-1]) == (1000, 0)
    (row,) = board.accounts.between("", "")
    assert row.usage.device_seconds == 1000 * 12 * 3600


def test_the_system_is_asked_once_who_somebody_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have to ask a directory on the network."""
    asked = Mock(side_effect=lambda name, uid: name)
    monkeypatch.setattr(module, "owner_name", asked)
    accounts = Accounts()
    for _ in range(3):
        assert accounts.name_of(1 << 32) == "uid:4294967296"
        accounts.know("uid:4294967296", 1 << 32)
    assert asked.call_count == 1
    accounts.know("alice", 1 << 32)
    accounts.know("uid:4294967296", 1 << 32)
    assert accounts.name_of(1 << 32) == "alice"


def test_leases_that_ended_without_a_charge_are_forgotten(fleet: Fleet) -> None:
    kept = Kept()
    for id in ("stays", "gone"):
        kept.accounts.charge(lease(WHOLE, id=id), fleet.device, NOON + HOUR, job=False, ended=False)
    kept.commit()
    kept.restart()
    kept.accounts.forget_all_but({"stays": None})
    kept.commit()
    assert [id for kind, id in kept.rows if kind == "charged"] == ["stays"]


def test_rows_of_before_queues_and_devices_were_told_apart_are_read() -> None:
    old = {
        "day": "2026-01-31",
        "uid": 7,
        "owner": "alice",
        "leases": 3,
        "jobs": 2,
        "usage": {"device_seconds": 60.0, "memory_byte_seconds": 1.0, "micros": 5e6},
    }
    accounts = Accounts()
    accounts.load([("account", "2026-01-31.7", msgspec.msgpack.encode(old))])
    (row,) = together(accounts.between("2026-01-31", "2026-01-31"), ["user", "queue", "model"])
    assert (row["owner"], row["queue"], row["model"]) == ("alice", "", "")
    assert (row["leases"], row["jobs"], row["price"]) == (3, 2, 5)


@pytest.mark.parametrize(("days", "most"), [(3, 1000), (1000, 3)])
def test_the_oldest_days_go(days: int, most: int, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DAYS", days)
    monkeypatch.setattr(module, "_MOST", most)
    kept = Kept()
    for day in range(10):
        at = NOON + day * DAY_MS
        kept.accounts.charge(lease(WHOLE, granted=at), fleet.device, at + HOUR, job=False, ended=True)
        kept.commit()
    assert len(kept.rows) == len(kept.accounts) == 3
    kept.restart()
    assert [row.day for row in kept.accounts.between("", "")] == ["2024-10-11", "2024-10-12", "2024-10-13"]


def test_an_answer_is_one_that_a_client_takes(fleet: Fleet) -> None:
    """A frame that is larger ends the connection, and the client is told that nobody answers."""
    longest = "\U0001f600" * 64
    rows = [
        Account("2026-01-31", number, f"{longest}{number}"[-64:], usage=Usage(1.1, 1e20, 1e9))
        for number in range(module.MOST_TOLD)
    ]
    answer = {"accounts": together(rows, ["user"])}
    assert len(answer["accounts"]) == module.MOST_TOLD
    reply = wire.pack(wire.Reply(wire.VERSION, "0" * 16, True, answer))
    assert len(reply) < wire.MAX_REPLY_BYTES
    with pytest.raises(module.TooMany, match="more than 50000 rows: name fewer days"):
        together([*rows, Account("2026-01-31", 0, "one more")], ["user"])


def test_a_large_cluster_comes_past_64_bits() -> None:
    """And what is 2^64 or more is no whole number of a message."""
    month = Usage(100 * 30 * 86400.0, 100 * 30 * 86400.0 * 80 * GIB)
    (row,) = together([Account("2026-01-31", 7, "alice", usage=month)], ["user"])
    assert row["memory_byte_seconds"] == month.memory_byte_seconds > 1 << 64
    job = Job("j", 7, "alice", "k", Request(), JobSpec(["true"], {}, "/"), 0, 1, usage=month)
    for said in (row, described(job, 1)):
        assert wire.pack(wire.Reply(wire.VERSION, "1", True, said))
    (small,) = together([Account("2026-01-31", 7, "alice", usage=Usage(1.0, 3.4))], ["user"])
    assert small["memory_byte_seconds"] == 3 and isinstance(small["memory_byte_seconds"], int)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"n": 1 << 64}, "the answer cannot be written: "),
        ({"n": "\ud800"}, "the answer cannot be written: "),
        ({"n": "x" * wire.MAX_REPLY_BYTES}, "bytes: ask for less at a time"),
    ],
)
def test_an_answer_that_cannot_be_said_is_an_error_and_not_the_end(body: wire.Body, said: str) -> None:
    reply = wire.unpack_reply(_packed(wire.Reply(wire.VERSION, "1", True, body)))
    assert (reply.id, reply.ok) == ("1", False)
    assert reply.error is not None and reply.error.code == "failed" and said in reply.error.message

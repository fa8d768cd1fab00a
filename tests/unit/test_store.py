"""The leases on disk: what was committed is there after a restart, and nothing else."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from hal.backend import StateError
from hal.scheduler.core import (
    DeviceFacts,
    LeaseState,
    NodeFacts,
    NodeJoined,
    Queue,
    Resumed,
    SetQueue,
    State,
    Submit,
    Tick,
)
from hal.scheduler.core.records import DamagedError, Row, changes, everything, read, restore
from hal.scheduler.core.request import Request
from hal.scheduler.store import Store, care, journal

NODE = NodeFacts(
    "local",
    1000,
    1 << 30,
    (DeviceFacts("nvidia:GPU-1", "nvidia", "x", 80 << 30), DeviceFacts("amd:1", "amd", "x", 100)),
)
# As format 1 had them: one device a lease, times in seconds.
_OLD = {
    "id": "a",
    "device": "nvidia:GPU-1",
    "memory_bytes": 20 << 30,
    "whole": False,
    "name": "ünï",
    "uid": 1000,
    "key": "key-a",
    "ttl_seconds": 15.0,
    "holder_pid": 4711,
    "epoch": 7,
    "expires": 123.5,
    "state": "active",
}


def row(id: str, value: bytes = b"x") -> Row:
    return ("lease", id, value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "leases.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened = Store(path)
    yield opened
    opened.close()


def reopened(path: Path) -> list[Row]:
    again = Store(path)
    try:
        return again.rows()
    finally:
        again.close()


def test_what_was_put_is_there_after_reopening(path: Path, store: Store) -> None:
    rows = [row("a", b"\0\xff"), ("meta", "counters", b""), ("waiting", "ünï", b"y")]
    store.put(rows)
    store.close()
    assert reopened(path) == rows


def test_put_again_replaces_and_none_removes(path: Path, store: Store) -> None:
    store.put([row("a"), row("b")])
    store.commit()
    store.put([row("a", b"y"), ("lease", "b", None), ("lease", "never there", None)])
    store.close()
    assert reopened(path) == [row("a", b"y")]


def test_only_what_was_committed_survives_a_kill(path: Path) -> None:
    child = os.fork()
    if child == 0:
        own = Store(path)
        own.put([row("said")])
        own.commit()
        own.put([row("unsaid"), ("lease", "said", None)])
        os._exit(0)  # without close(): as if killed
    os.waitpid(child, 0)
    assert reopened(path) == [row("said")]


def test_a_commit_without_changes_and_a_second_close_are_no_errors(path: Path, store: Store) -> None:
    store.commit()
    store.commit()
    store.close()
    store.close()
    assert reopened(path) == []


def test_unlink_leaves_nothing(path: Path, store: Store) -> None:
    store.put([row("a")])
    store.commit()
    assert {"leases.db", "leases.db-wal"} <= {file.name for file in path.parent.iterdir()}
    store.close()
    store.unlink()
    assert not list(path.parent.iterdir())


def test_what_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StateError, match=f"the lease store {path} is damaged: .*hal admin restore"):
        Store(path)
    assert path.read_bytes().startswith(b"not a database")  # it may be somebody's


def test_a_damaged_database_is_refused(path: Path, store: Store) -> None:
    store.put([row(f"{number:03}", bytes(200)) for number in range(200)])
    store.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with pytest.raises(StateError, match=str(path)):
        reopened(path)


@pytest.mark.parametrize("value", [b"", b"\xc1", msgspec.msgpack.encode({"id": "a"}), b"\x80"])
@pytest.mark.parametrize("kind", ["lease", "waiting", "queue", "mix"])
def test_a_row_that_is_none_of_ours_is_damage(kind: str, value: bytes) -> None:
    with pytest.raises(DamagedError, match=f"the {kind} 'a' cannot be read"):
        read([(kind, "a", value)])
    with pytest.raises(DamagedError, match="unknown kind 'lesae'"):
        read([("lesae", "a", value)])


def test_a_later_version_is_refused_and_left_as_it_is(path: Path, store: Store) -> None:
    store.close()
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA user_version=4")
    raw.close()
    for _ in range(2):
        with pytest.raises(StateError, match=r"another version of hal \(format 4\)"):
            Store(path)


def test_a_store_in_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot use the lease store"):
        Store(tmp_path / "missing" / "leases.db")


def test_a_state_is_the_same_after_it_was_stored(path: Path, store: Store) -> None:
    state = State()
    state.apply(NodeJoined(NODE), 0)
    for number in range(3):
        state.apply(Submit(Request(wait=True), str(number), str(number), 1), 0)
    store.put(changes(state))
    store.close()
    again = restore(read(reopened(path)), [NODE])
    assert again.leases == state.leases
    assert again.waiting == state.waiting
    assert len(again.leases) == 2
    assert again.world.counters.epoch == 2


# ---- format 2 ---------------------------------------------------------------------------------


def test_rows_of_format_2_are_taken_over(path: Path) -> None:
    state = State()
    state.apply(NodeJoined(NODE), 0)
    for number in range(3):
        state.apply(Submit(Request(wait=True), str(number), str(number), 1), 0)
    rows = sorted(changes(state))
    with sqlite3.connect(path) as raw:
        raw.executescript(
            "CREATE TABLE record (kind TEXT NOT NULL, id TEXT NOT NULL, value BLOB NOT NULL, "
            "PRIMARY KEY (kind, id)) WITHOUT ROWID; PRAGMA user_version=2;"
        )
        raw.executemany("INSERT INTO record VALUES (?, ?, ?)", rows)
    raw.close()
    for _ in range(2):  # the second time it is the present format
        assert reopened(path) == rows
    found = care.check(path)
    assert (found.leases, found.waiting, found.events) == (2, 1, 0)


def test_an_empty_file_with_another_format_s_number_is_refused(path: Path) -> None:
    for version in (1, 2):
        with sqlite3.connect(path) as raw:
            raw.execute(f"PRAGMA user_version={version}")
        raw.close()
        with pytest.raises(StateError, match="is damaged: no such table"):
            Store(path)


# ---- the journal's length ---------------------------------------------------------------------


def test_the_journal_keeps_as_many_events_as_it_is_told(path: Path) -> None:
    store = Store(path, kept=50)
    state = State()
    state.apply(NodeJoined(NODE), 0)
    store.note(0, journal.Began(0, state.grace_ms, (), (NODE,)))
    for now in range(500):
        if store.wants_base():
            nodes = tuple(state.world.fleet.facts)
            store.rebase(now, everything(state), nodes, state.grace_ms)
        event = SetQueue(Queue(str(now % 7), weight=1 + now % 5))
        state.apply(event, now)
        store.note(now, event)
        store.put(changes(state))
        store.commit()
    store.close()
    found = care.check(path)
    assert 50 <= found.events <= 110
    with sqlite3.connect(path) as raw:
        (events,) = raw.execute("SELECT sum(events) FROM journal").fetchone()
    raw.close()
    assert events <= 110


def test_large_events_make_the_journal_begin_anew_however_few_they_are(path: Path) -> None:
    store = Store(path, largest=1 << 20)
    state = State()
    state.apply(NodeJoined(NODE), 0)
    store.note(0, journal.Began(0, state.grace_ms, (), (NODE,)))
    for now in range(200):
        if store.wants_base():
            nodes = tuple(state.world.fleet.facts)
            store.rebase(now, everything(state), nodes, state.grace_ms)
        event = Submit(Request(name="n" * 60_000), str(now), str(now), 1)  # which is refused
        state.apply(event, now)
        store.note(now, event)
        store.put(changes(state))
        store.commit(all=True)
        if now == 190:  # what was there before counts, too
            store.close()
            store = Store(path, largest=1 << 20)
    store.close()
    care.check(path)
    with sqlite3.connect(path) as raw:
        (size,) = raw.execute("SELECT sum(length(value)) FROM journal").fetchone()
    raw.close()
    assert 1 << 20 <= size <= 2.2 * (1 << 20)


# ---- format 1 ---------------------------------------------------------------------------------


def old_store(path: Path, *leases: dict[str, object]) -> None:
    with sqlite3.connect(path) as raw:
        raw.executescript(
            "CREATE TABLE lease (id TEXT PRIMARY KEY, value BLOB NOT NULL);"
            "CREATE TABLE fence (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL);"
            "INSERT INTO fence VALUES (1, 9); PRAGMA user_version=1;"
        )
        for lease in leases:
            raw.execute("INSERT INTO lease VALUES (?, ?)", (lease["id"], msgspec.msgpack.encode(lease)))
    raw.close()


def test_leases_of_format_1_are_taken_over(path: Path) -> None:
    whole = _OLD | {
        "id": "b",
        "device": "amd:1",
        "memory_bytes": 100,
        "whole": True,
        "state": "ending",
        "epoch": 8,
    }
    old_store(path, _OLD, whole)
    for _ in range(2):  # the second time it is the present format already
        state = restore(read(reopened(path)), [NODE])
        a, b = state.leases["a"], state.leases["b"]
        assert (a.name, a.uid, a.key, a.holder_pid, a.epoch) == ("ünï", 1000, "key-a", 4711, 7)
        assert (a.request.ttl_ms, a.expires, a.state) == (15_000, 123_500, LeaseState.ACTIVE)
        assert [(spot.devices, spot.shape.memory_bytes) for spot in a.spots()] == [
            (("nvidia:GPU-1",), 20 << 30)
        ]
        assert b.state is LeaseState.ENDING
        assert b.spots()[0].shape.whole
        assert state.world.counters.epoch == 9, "also of leases that are no more"
        assert state.world.fleet.bytes_free.max() == 60 << 30


def test_a_damaged_store_of_format_1_stays_as_it_is(path: Path) -> None:
    old_store(path, {"id": "a"})
    before = path.read_bytes()
    with pytest.raises(StateError, match="is damaged"):
        Store(path)
    assert path.read_bytes()[100:] == before[100:]


def test_when_something_has_happened_last_is_known_and_a_backup_put_back_is_none(path: Path) -> None:
    one = Store(path)
    assert one.seen() == 0
    for at, entry in ((5, Tick()), (7, Resumed()), (900, journal.Restored(1001, 1001))):
        one.note(at, entry)
        one.commit(all=True)
    one.put([row("a")])
    one.commit()
    assert one.seen() == 7
    one.close()

"""The leases on disk: what was committed is there after a restart, and nothing else."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from hal.backend import StateError
from hal.scheduler.core import Lease, LeaseState
from hal.scheduler.store import Store


def lease(id: str, **fields: object) -> Lease:
    plain = Lease(id, "nvidia:GPU-1", 20 << 30, False, "job", 1000, f"key-{id}", 15.0, 4711, 7, 123.5)
    return msgspec.structs.replace(plain, **fields)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "leases.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened = Store(path)
    yield opened
    opened.close()


def reopened(path: Path) -> list[Lease]:
    again = Store(path)
    try:
        return again.leases()
    finally:
        again.close()


def test_what_was_put_is_there_after_reopening_in_every_field(path: Path, store: Store) -> None:
    leases = [lease("a"), lease("b", whole=True, name="ünï", memory_bytes=1 << 60, state=LeaseState.ENDING)]
    for one in leases:
        store.put(one)
    store.close()
    assert reopened(path) == leases


def test_put_again_replaces_and_delete_removes(path: Path, store: Store) -> None:
    store.put(lease("a"))
    store.put(lease("b"))
    store.commit()
    store.put(lease("a", epoch=8))
    store.delete("b")
    store.delete("never there")
    store.close()
    assert reopened(path) == [lease("a", epoch=8)]


def test_only_what_was_committed_survives_a_kill(path: Path) -> None:
    child = os.fork()
    if child == 0:
        own = Store(path)
        own.put(lease("said"))
        own.commit()
        own.put(lease("unsaid"))
        own.delete("said")
        os._exit(0)  # without close(): as if killed
    os.waitpid(child, 0)
    assert reopened(path) == [lease("said")]


def test_a_commit_without_changes_and_a_second_close_are_no_errors(path: Path, store: Store) -> None:
    store.commit()
    store.commit()
    store.close()
    store.close()
    assert reopened(path) == []


def test_unlink_leaves_nothing(path: Path, store: Store) -> None:
    store.put(lease("a"))
    store.commit()
    assert {"leases.db", "leases.db-wal"} <= {file.name for file in path.parent.iterdir()}
    store.close()
    store.unlink()
    assert not list(path.parent.iterdir())


def test_what_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StateError, match=f"cannot use the lease store {path}: "):
        Store(path)
    assert path.read_bytes().startswith(b"not a database")  # it may be somebody's


def test_a_damaged_database_is_refused(path: Path, store: Store) -> None:
    for number in range(200):
        store.put(lease(f"{number:03}"))
    store.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with pytest.raises(StateError, match=str(path)):
        reopened(path)


@pytest.mark.parametrize("value", [b"", b"\xc1", msgspec.msgpack.encode({"id": "a"}), b"\x80"])
def test_a_row_that_is_no_lease_is_refused(path: Path, store: Store, value: bytes) -> None:
    store.close()
    with sqlite3.connect(path) as raw:
        raw.execute("INSERT INTO lease VALUES ('a', ?)", (value,))
    raw.close()
    with pytest.raises(StateError, match=f"the lease store {path} is damaged: "):
        reopened(path)


def test_another_version_is_refused_and_left_as_it_is(path: Path, store: Store) -> None:
    store.put(lease("a"))
    store.close()
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA user_version=2")
    raw.close()
    for _ in range(2):
        with pytest.raises(StateError, match=r"another version of hal \(format 2\)"):
            Store(path)


def test_a_store_in_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot use the lease store"):
        Store(tmp_path / "missing" / "leases.db")


def test_the_highest_epoch_outlives_its_lease(tmp_path: Path) -> None:
    store = Store(tmp_path / "leases.db")
    store.put(lease("one", epoch=7))
    store.delete("one")
    store.close()
    assert Store(tmp_path / "leases.db").epoch() == 7

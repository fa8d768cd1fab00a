"""The scheduler's state on disk: what has been promised is written before it is said.

Changes are collected by ``put`` and made durable by one ``commit`` for all the requests that were
answered together (SQLite in WAL mode with full synchronisation). Rows are the core's own (core/records).
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from hal.backend import StateError
from hal.scheduler.core.fleet import Shape, Spot
from hal.scheduler.core.lease import Amount, Lease, LeaseState, Part
from hal.scheduler.core.records import Row
from hal.scheduler.core.request import Alternative, Member, Request
from hal.scheduler.core.world import Counters

__all__ = ["Store"]

_VERSION = 2
_SCHEMA = """CREATE TABLE IF NOT EXISTS record (
    kind TEXT NOT NULL, id TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (kind, id)
) WITHOUT ROWID"""


class Store:
    """The file of one daemon, who is its only writer."""

    def __init__(self, path: Path) -> None:
        """Open, make or migrate it. Raises StateError when it is damaged or of a later version."""
        self.path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version not in (0, 1, _VERSION):
                raise StateError(f"{path} was written by another version of hal (format {version})")
            with self._together():
                self._db.execute(_SCHEMA)
                if version == 1:
                    self._migrate_1()
                self._db.execute(f"PRAGMA user_version={_VERSION}")
        except sqlite3.Error as error:
            raise StateError(f"cannot use the lease store {path}: {error}") from error

    def rows(self) -> list[Row]:
        """All that were not deleted. Raises StateError when they cannot be read."""
        try:
            return list(self._db.execute("SELECT kind, id, value FROM record ORDER BY kind, id"))
        except sqlite3.Error as error:
            raise StateError(f"the lease store {self.path} is damaged: {error}") from error

    def put(self, rows: Iterable[Row]) -> None:
        """Write rows, or delete those whose value is None."""
        for kind, id, value in rows:
            if not self._db.in_transaction:
                self._db.execute("BEGIN IMMEDIATE")
            if value is None:
                self._db.execute("DELETE FROM record WHERE kind = ? AND id = ?", (kind, id))
            else:
                self._db.execute("INSERT OR REPLACE INTO record VALUES (?, ?, ?)", (kind, id, value))

    def commit(self) -> None:
        """Make everything since the last commit durable; costs nothing when there is nothing."""
        if self._db.in_transaction:
            self._db.execute("COMMIT")

    def close(self) -> None:
        """Commit and close; again is no error."""
        with contextlib.suppress(sqlite3.ProgrammingError):
            self.commit()
        self._db.close()

    def unlink(self) -> None:
        """Remove the file and SQLite's own beside it."""
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # ---- format 1: one device a lease, times in seconds --------------------------------------

    def _migrate_1(self) -> None:
        (epoch,) = self._db.execute("SELECT epoch FROM fence").fetchone()
        for number, (value,) in enumerate(self._db.execute("SELECT value FROM lease ORDER BY id").fetchall()):
            try:
                lease = _lease_of(msgspec.msgpack.decode(value, type=_Lease1), number + 1)
            except msgspec.DecodeError as error:
                raise StateError(f"the lease store {self.path} is damaged: {error}") from error
            self.put([("lease", lease.id, msgspec.msgpack.encode(lease))])
            epoch = max(epoch, lease.epoch)
        counters = Counters(epoch=epoch, order=1 << 20)
        self.put([("meta", "counters", msgspec.msgpack.encode(counters))])
        self._db.execute("DROP TABLE lease")
        self._db.execute("DROP TABLE fence")


class _Lease1(msgspec.Struct):
    id: str
    device: str
    memory_bytes: int
    whole: bool
    name: str
    uid: int
    key: str
    ttl_seconds: float
    holder_pid: int
    epoch: int
    expires: float
    state: LeaseState


def _lease_of(old: _Lease1, order: int) -> Lease:
    memory = None if old.whole else old.memory_bytes
    alternative = Alternative(selector=f'id == "{old.device}"', memory_bytes=memory)
    request = Request(
        members=(Member((alternative,)),), name=old.name, ttl_ms=max(round(old.ttl_seconds * 1000), 1000)
    )
    shape = Shape(memory_bytes=0 if old.whole else old.memory_bytes, whole=old.whole)
    expires = round(old.expires * 1000)
    return Lease(
        id=old.id,
        request=request,
        uid=old.uid,
        key=old.key,
        holder_pid=old.holder_pid,
        parts=(Part(0, 0, 0, (Spot("local", (old.device,), shape),)),),
        charge=Amount(1000 if old.whole else 1, old.memory_bytes),
        epoch=old.epoch,
        arrived=expires - request.ttl_ms,
        order=order,
        granted=expires - request.ttl_ms,
        expires=expires,
        state=old.state,
    )

"""The leases on disk: what has been promised is written before it is said.

Changes are collected by ``put`` and ``delete`` and made durable by one ``commit`` for all the requests
that were answered together (SQLite in WAL mode with full synchronisation).
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import msgspec

from hal.backend import StateError
from hal.scheduler.core import Lease

__all__ = ["Store"]

_VERSION = 1
_SCHEMA = """
BEGIN;
CREATE TABLE IF NOT EXISTS lease (id TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS fence (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL);
INSERT OR IGNORE INTO fence VALUES (1, 0);
PRAGMA user_version=1;
COMMIT;
"""


class Store:
    """The file of one daemon, who is its only writer."""

    def __init__(self, path: Path) -> None:
        """Open or make it. Raises StateError when it is damaged or of another version."""
        self.path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version not in (0, _VERSION):
                raise StateError(f"{path} was written by another version of hal (format {version})")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise StateError(f"cannot use the lease store {path}: {error}") from error

    def leases(self) -> list[Lease]:
        """All that were not deleted. Raises StateError when one cannot be read."""
        try:
            rows = self._db.execute("SELECT value FROM lease ORDER BY id")
            return [msgspec.msgpack.decode(value, type=Lease) for (value,) in rows]
        except (msgspec.DecodeError, sqlite3.Error) as error:
            raise StateError(f"the lease store {self.path} is damaged: {error}") from error

    def put(self, lease: Lease) -> None:
        self._begin()
        self._db.execute(
            "INSERT OR REPLACE INTO lease VALUES (?, ?)", (lease.id, msgspec.msgpack.encode(lease))
        )
        self._db.execute("UPDATE fence SET epoch = max(epoch, ?)", (lease.epoch,))

    def epoch(self) -> int:
        """The highest of all leases that were ever put here: also of those deleted since."""
        try:
            (epoch,) = self._db.execute("SELECT epoch FROM fence").fetchone()
        except sqlite3.Error as error:
            raise StateError(f"the lease store {self.path} is damaged: {error}") from error
        return int(epoch)

    def delete(self, lease_id: str) -> None:
        self._begin()
        self._db.execute("DELETE FROM lease WHERE id = ?", (lease_id,))

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

    def _begin(self) -> None:
        if not self._db.in_transaction:
            self._db.execute("BEGIN IMMEDIATE")

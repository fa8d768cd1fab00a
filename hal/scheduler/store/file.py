"""The scheduler's state on disk: what has been promised is written before it is said.

Rows are the core's own (core/records); beside them is the journal of what led to them (journal.py). What
``put`` and ``note`` collect is made durable by one ``commit`` for all the requests that were answered
together (SQLite in WAL mode with full synchronisation).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from hal.backend import StateError
from hal.scheduler.core.facts import NodeFacts
from hal.scheduler.core.records import APART, Row
from hal.scheduler.store import journal
from hal.scheduler.store.migrations import taken_out
from hal.scheduler.store.wal import damage_at

__all__ = [
    "VERSION",
    "NotDurable",
    "Store",
    "base_value",
    "batch",
    "damage",
    "damaged",
    "refuse_damaged_log",
    "verified",
]

VERSION = 3
KEPT = 100_000  # events that the journal holds at least, once there were so many
LARGEST = 64 << 20  # bytes of them after which it begins anew, however few they are: requests may be large
_SCHEMA = (
    "CREATE TABLE record (kind TEXT NOT NULL, id TEXT NOT NULL, value BLOB NOT NULL, mark INTEGER NOT NULL, "
    "PRIMARY KEY (kind, id)) WITHOUT ROWID",
    "CREATE TABLE journal (number INTEGER PRIMARY KEY, events INTEGER NOT NULL, sum INTEGER NOT NULL, "
    "rest INTEGER NOT NULL, "
    "value BLOB NOT NULL, mark INTEGER NOT NULL)",
    "CREATE TABLE base (number INTEGER PRIMARY KEY, value BLOB NOT NULL, mark INTEGER NOT NULL)",
)
_LAZY = 1.0  # seconds that events which change no row may wait for a commit: nothing depends on them
_RETRY = 0.2  # seconds before a commit that failed is tried again: it may take long to fail
_MANY = 1024  # of them, and they wait no longer
_PRUNED = 8  # batches that a commit takes away at the journal's old end, while there are too many
_AGAIN = 0.05  # seconds until a log that looks damaged is read once more
_MOST_BEHIND = 4 * KEPT  # events held in memory while nothing can be written; beyond, the journal starts anew


class NotDurable(StateError):
    """It cannot be written now. What was put is kept, and written with a later commit."""


class _Pending(Struct):
    rows: dict[tuple[str, str], bytes | None]
    entries: list[tuple[int, journal.Entry]]
    rebase: journal.Base | None = None


class Store:
    """The file of one daemon, who is its only writer."""

    def __init__(self, path: Path, *, kept: int = KEPT, largest: int = LARGEST) -> None:
        """Open, make or migrate it. Raises StateError when it is damaged or of a later version."""
        self.path = path
        self._kept, self._largest = kept, largest
        self._now = _Pending({}, [])
        self._since = 0.0  # when the first of its events came
        self._behind: list[_Pending] = []  # what was committed, and could not be written yet
        self._lost_entries = False
        self._failed, self._why = float("-inf"), ""
        refuse_damaged_log(path)
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))  # SQLite asks the umask
            self._db = sqlite3.connect(path, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise StateError(f"cannot use the lease store {path}: {error}") from error
        try:
            self._open()
        except BaseException:
            self._db.close()
            raise

    def _open(self) -> None:
        with damage(self.path):
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version not in range(VERSION + 1):
                raise StateError(
                    f"the lease store {self.path} was written by another version of hal (format {version})"
                )
            if version != VERSION:
                with self._together():
                    self._make(version)
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # without its WAL it is not a new one
            found = verified(self._db)
        self._marks = found.marks
        self._sum, self._rest = found.sum, found.rest
        self._number, self._first, self._base = found.last, found.first, found.bases[0]
        self._events, self._bytes = found.events_since_last_base, found.bytes_since_last_base

    def _make(self, version: int) -> None:
        rows = taken_out(self._db, version) if version else []
        for statement in _SCHEMA:
            self._db.execute(statement)
        for kind, id, value in rows:
            assert value is not None
            self._db.execute(
                "INSERT INTO record VALUES (?, ?, ?, ?)", (kind, id, value, journal.mark_of(kind, id, value))
            )
        base = journal.Base(tuple((kind, id, value) for kind, id, value in rows if value is not None))
        self._write_base(0, base)
        self._db.execute(f"PRAGMA user_version={VERSION}")

    def rows(self) -> list[Row]:
        """All that were not deleted. Raises StateError when they cannot be read."""
        with damage(self.path):
            return list(self._db.execute("SELECT kind, id, value FROM record ORDER BY kind, id"))

    def seen(self) -> int:
        """When something has happened last, in ms; 0: it is not known. Raises StateError."""
        with damage(self.path):
            values = self._db.execute("SELECT value FROM journal WHERE events > 0 ORDER BY number DESC")
            for (value,) in values:
                for at, entry in reversed(journal.decode_entries(value)):
                    if not isinstance(entry, journal.Restored):
                        return at
        return 0

    def put(self, rows: Iterable[Row]) -> None:
        """Write rows, or delete those whose value is None."""
        for kind, id, value in rows:
            self._now.rows[kind, id] = value

    def note(self, now: int, entry: journal.Entry) -> None:
        """Put what has happened, at ``now`` ms, into the journal."""
        if not self._now.entries:
            self._since = time.monotonic()
        self._now.entries.append((now, entry))

    def wants_base(self, *, quiet: bool = True) -> bool:
        """The journal has grown so long that it should go on from a new base (``rebase``).

        ``quiet``: nobody waits for this commit; else it is put off a while.
        """
        if self._behind:
            return False
        most = 1.0 if quiet else 1.5
        long = self._events >= most * self._kept or self._bytes >= most * self._largest
        return self._lost_entries or long

    def rebase(
        self, now: int, rows: Iterable[Row], nodes: tuple[NodeFacts | None, ...], grace_ms: int
    ) -> None:
        """From here on the journal can be replayed from these rows, which are all, and nodes."""
        self._close_batch()
        self.put(rows)
        self.note(now, journal.Rebased())
        self._close_batch()
        self._behind[-1].rebase = journal.Base((), nodes, grace_ms)

    def commit(self, *, all: bool = False) -> None:
        """Make everything since the last commit durable; costs nothing when there is nothing.

        Events that changed no row may be left for the next one, unless ``all`` is wanted. Raises NotDurable.
        """
        entries = self._now.entries
        ripe = len(entries) >= _MANY or (entries and time.monotonic() - self._since >= _LAZY)
        if self._now.rows or ripe or (all and entries):
            self._close_batch()
        if not self._behind:
            return
        if time.monotonic() - self._failed < _RETRY:
            raise NotDurable(self._why)
        try:
            self._write()
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
            self._failed = time.monotonic()
            self._why = f"the lease store {self.path} cannot be written: {error}"
            raise NotDurable(self._why) from error

    @property
    def behind(self) -> bool:
        """Something that was committed is not durable yet."""
        return bool(self._behind)

    def close(self) -> None:
        """Commit and close; again is no error."""
        with contextlib.suppress(sqlite3.ProgrammingError, NotDurable):
            self.commit(all=True)
        self._db.close()

    def abandon(self) -> None:
        """Close, and leave out what was not committed: it may be half of something."""
        self._db.close()

    def unlink(self) -> None:
        """Remove the file and SQLite's own beside it."""
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    # ---- inside -----------------------------------------------------------------------------

    def _close_batch(self) -> None:
        if self._now.rows or self._now.entries:
            self._behind.append(self._now)
            self._now = _Pending({}, [])
        if sum(len(one.entries) for one in self._behind) > _MOST_BEHIND:
            merged: dict[tuple[str, str], bytes | None] = {}
            for one in self._behind:
                merged |= one.rows
            self._behind = [_Pending(merged, [])]
            self._lost_entries = True

    def _write(self) -> None:
        changed: dict[tuple[str, str], int | None] = {}
        total, rest, number, base = self._sum, self._rest, self._number, None
        events, size = self._events, self._bytes
        self._db.execute("BEGIN IMMEDIATE")
        for one in self._behind:
            by, by_others = self._write_rows(one.rows, changed)
            total, rest = total ^ by, rest ^ by_others
            number += 1
            events += len(one.entries)
            size += self._write_entries(number, total, rest, one.entries)
            if one.rebase is not None:
                rows = tuple(row for row in self.rows() if row[0] not in APART)
                self._write_base(number, msgspec.structs.replace(one.rebase, rows=rows))
                base, events, size = number, 0, 0
        if base is not None:
            kept = base if self._lost_entries else self._last_base(base)
            self._db.execute("DELETE FROM base WHERE number < ?", (kept,))
            self._base = kept
        first = min(self._first + _PRUNED * len(self._behind), self._base + 1)
        if first > self._first:
            self._db.execute("DELETE FROM journal WHERE number < ?", (first,))
        self._db.execute("COMMIT")
        for key, value in changed.items():
            if value is None:
                self._marks.pop(key, None)  # one that came and went while nothing could be written
            else:
                self._marks[key] = value
        self._sum, self._rest, self._number, self._first = total, rest, number, first
        self._events, self._bytes = events, size
        if base is not None:
            self._lost_entries = False
        self._behind.clear()

    def _last_base(self, but: int) -> int:
        (number,) = self._db.execute("SELECT max(number) FROM base WHERE number < ?", (but,)).fetchone()
        return int(number)

    def _write_rows(
        self, rows: dict[tuple[str, str], bytes | None], changed: dict[tuple[str, str], int | None]
    ) -> tuple[int, int]:
        """What the sums change by: of the rows that follow from events, and of all others."""
        by, by_others = 0, 0
        written: list[tuple[str, str, bytes, int]] = []
        deleted: list[tuple[str, str]] = []
        for key, value in rows.items():
            before = changed[key] if key in changed else self._marks.get(key)
            after = None if value is None else journal.mark_of(*key, value)
            if key[0] not in APART:
                by ^= (before or 0) ^ (after or 0)
            else:
                by_others ^= (before or 0) ^ (after or 0)
            if value is not None and after is not None:
                changed[key] = after
                written.append((*key, value, after))
            elif before is not None:
                changed[key] = None
                deleted.append(key)
        self._db.executemany("INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?)", written)
        self._db.executemany("DELETE FROM record WHERE kind = ? AND id = ?", deleted)
        return by, by_others

    def _write_entries(
        self, number: int, total: int, rest: int, entries: list[tuple[int, journal.Entry]]
    ) -> int:
        """How many bytes they have."""
        value = journal.encode(entries)
        mark = journal.mark_of_batch(number, len(entries), total, rest, value)
        self._db.execute(
            "INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?)", (number, len(entries), total, rest, value, mark)
        )
        return len(value)

    def _write_base(self, number: int, base: journal.Base) -> None:
        value = journal.encode(base)
        mark = journal.mark((b"base", number.to_bytes(8, "big"), value))
        self._db.execute("INSERT INTO base VALUES (?, ?, ?)", (number, value, mark))

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


# What SQLite says of the disk, of rights or of others who use the file.
_NOT_THE_FILE = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
)

# ---- damage ---------------------------------------------------------------------------------


class Found(Struct):
    """What a store holds, apart from its contents."""

    marks: dict[tuple[str, str], int]
    sum: int  # of the rows that follow from events
    rest: int  # and of all others
    first: int  # the number of the oldest batch
    last: int  # and of the latest
    bases: list[int]
    events_since_last_base: int
    bytes_since_last_base: int


def refuse_damaged_log(path: Path) -> None:
    """Raises StateError where SQLite would begin from an older state than was acknowledged."""
    log = path.with_name(f"{path.name}-wal")
    try:
        at = damage_at(log)
        if at is not None:  # unless a scheduler has begun the log anew while it was read
            time.sleep(_AGAIN)
            at = damage_at(log)
    except OSError as error:
        raise StateError(f"cannot read {log}: {error.strerror}") from error
    if at is not None:
        raise StateError(damaged(path, f"{log.name} is not as it was written at byte {at}"))


@contextlib.contextmanager
def damage(path: Path) -> Iterator[None]:
    """What SQLite or msgspec find wrong is said as a StateError."""
    try:
        yield
    except (sqlite3.Error, msgspec.DecodeError, UnicodeError, OverflowError) as error:
        code = getattr(error, "sqlite_errorcode", 0)
        if code & 0xFF in _NOT_THE_FILE and code != sqlite3.SQLITE_IOERR_SHORT_READ:
            raise StateError(f"cannot use the lease store {path}: {error}") from error
        raise StateError(damaged(path, str(error))) from error
    except Damage as error:
        raise StateError(damaged(path, str(error))) from None


def damaged(path: Path, what: str) -> str:
    return f"the lease store {path} is damaged: {what}; 'hal admin restore' puts a backup in its place"


class Damage(Exception):
    """What is written cannot be what was written."""


def verified(db: sqlite3.Connection) -> Found:
    """Read every row and compare it with its mark, and all with the journal's last word.

    Raises Damage, sqlite3.Error, UnicodeError (see ``damage``).
    """
    marks: dict[tuple[str, str], int] = {}
    total = rest = 0
    for kind, id, value, said in db.execute("SELECT kind, id, value, mark FROM record"):
        if not (isinstance(kind, str) and isinstance(id, str) and isinstance(value, bytes)):
            raise Damage("a row is none of ours")
        if journal.mark_of(kind, id, value) != said:
            raise Damage(f"the {kind:.20} '{id:.64}' is not as it was written")
        marks[kind, id] = said
        if kind not in APART:
            total ^= said
        else:
            rest ^= said
    bases = [number for (number,) in db.execute("SELECT number FROM base ORDER BY number")]
    first, last, count = db.execute("SELECT min(number), max(number), count(*) FROM journal").fetchone()
    if not bases:
        raise Damage("the journal has no base")
    if not count:
        if bases != [0]:
            raise Damage("the journal is not there")
        rows = journal.decode_base(base_value(db, 0)).rows
        told, others, first, last = 0, 0, 1, 0
        for row in rows:
            told ^= journal.mark_of(*row)
    else:
        if last - first + 1 != count or bases[-1] > last or first > bases[0] + 1:
            raise Damage("batches of the journal are not there")
        latest = batch(db, last)
        told, others = latest.sum, latest.rest
    if (told, others) != (total, rest):
        raise Damage("some rows are older than others, or are not there")
    since, size = db.execute(
        "SELECT total(events), total(length(value)) FROM journal WHERE number > ?", (bases[-1],)
    ).fetchone()
    return Found(marks, total, rest, first, last, bases, int(since), int(size))


def batch(db: sqlite3.Connection, number: int) -> journal.Batch:
    """Raises Damage, sqlite3.Error, msgspec.DecodeError (see ``damage``)."""
    row = db.execute(
        "SELECT events, sum, rest, value, mark FROM journal WHERE number = ?", (number,)
    ).fetchone()
    if row is None:
        raise Damage(f"batch {number} of the journal is not there")
    events, total, rest, value, said = row
    whole = isinstance(value, bytes) and all(isinstance(one, int) for one in (events, total, rest))
    if not whole or journal.mark_of_batch(number, events, total, rest, value) != said:
        raise Damage(f"batch {number} of the journal is not as it was written")
    return journal.Batch(number, journal.decode_entries(value), total, rest)


def base_value(db: sqlite3.Connection, number: int) -> bytes:
    """Raises Damage and sqlite3.Error (see ``damage``)."""
    row = db.execute("SELECT value, mark FROM base WHERE number = ?", (number,)).fetchone()
    if row is None:
        raise Damage(f"the journal's base {number} is not there")
    value, said = row
    if not isinstance(value, bytes) or journal.mark((b"base", number.to_bytes(8, "big"), value)) != said:
        raise Damage(f"the journal's base {number} is not as it was written")
    return value

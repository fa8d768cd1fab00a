"""What an operator does with a store: look it through, keep a copy of it, and put one back."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from hal.backend import GoneError, StateError
from hal.scheduler.core import records
from hal.scheduler.jobs.accounting import Accounts
from hal.scheduler.jobs.board import KIND
from hal.scheduler.jobs.records import Job
from hal.scheduler.places import Places
from hal.scheduler.process import locked
from hal.scheduler.store import journal
from hal.scheduler.store.file import (
    VERSION,
    Store,
    base_value,
    batch,
    damage,
    damaged,
    refuse_damaged_log,
    verified,
)
from hal.scheduler.store.journal import Base, Batch
from hal.scheduler.store.replay import Differs, Player

__all__ = ["Checked", "backup", "check", "journal_of", "restore"]

_RAISED = 1_000_000  # terms and epochs that a scheduler may have given since the backup was made
_SUFFIXES = ("", "-wal", "-shm")


class Checked(Struct, frozen=True):
    """A store that is sound."""

    path: str
    format: int
    leases: int
    waiting: int
    queues: int
    nodes: int
    jobs: int
    term: int
    batches: int
    events: int
    starts: int  # of the scheduler, among them


def check(path: Path, *, of: Path | None = None) -> Checked:
    """Every row and batch is as it was written, a state can be made of them, and the journal leads to them.

    ``of``: whose copy it is. Raises StateError, which says what is wrong; GoneError: there is none.
    """
    with _reading(path) as db:
        path = of or path
        with damage(path):
            for (said,) in db.execute("PRAGMA integrity_check(1)"):
                if said != "ok":
                    raise StateError(damaged(path, " ".join(str(said).split())))
            found = verified(db)
            bases = [journal.decode_base(base_value(db, number)) for number in found.bases]
            rows = db.execute("SELECT kind, id, value FROM record ORDER BY kind, id").fetchall()
        try:
            jobs = _jobs(rows)
            saved = records.read(rows)
            records.restore(saved, saved.nodes)
            player = Player(bases[0])
            events = starts = 0
            for number in range(found.bases[0] + 1, found.last + 1):
                with damage(path):
                    one = batch(db, number)
                player.play(one)
                events += len(one.entries)
                starts += sum(isinstance(entry, journal.Began) for _, entry in one.entries)
        except (records.DamagedError, Differs) as wrong:
            raise StateError(damaged(path, str(wrong))) from None
    return Checked(
        path=str(path),
        format=VERSION,
        leases=len(saved.leases),
        waiting=len(saved.waiting),
        queues=len(saved.queues),
        nodes=len(saved.nodes),
        jobs=jobs,
        term=0 if saved.counters is None else saved.counters.term,
        batches=found.last - found.bases[0],
        events=events,
        starts=starts,
    )


def _jobs(rows: list[records.Row]) -> int:
    """How many there are. Raises DamagedError."""
    count = 0
    for kind, id, value in rows:
        try:
            if kind == KIND:
                msgspec.msgpack.decode(value or b"", type=Job)
                count += 1
        except msgspec.DecodeError as error:
            raise records.DamagedError(f"the {kind} '{id:.64}' cannot be read: {error}") from None
    try:
        Accounts().load(rows)
    except msgspec.DecodeError as error:
        raise records.DamagedError(f"what was used cannot be read: {error}") from None
    return count


def journal_of(path: Path) -> Iterator[Base | Batch]:
    """The oldest base that is kept, and all batches since. Raises StateError, and GoneError."""
    with _reading(path) as db:
        with damage(path):
            found = verified(db)
            yield journal.decode_base(base_value(db, found.bases[0]))
        for number in range(found.bases[0] + 1, found.last + 1):
            with damage(path):
                one = batch(db, number)
            yield one


def backup(path: Path, to: Path) -> Checked:
    """Copy a store as it is at this moment, whether or not a scheduler writes it; then look it through: what
    the copy has.

    Raises StateError, and GoneError.
    """
    if to.is_dir():
        raise StateError(f"{to} is a directory: name the file in it to write to")
    if to.exists() and not to.is_file():
        raise StateError(f"{to} is no file, and would be replaced by one: name another")
    made = to.with_name(f"{to.name}.{os.getpid()}.new")
    try:
        with _reading(path) as db, damage(path):
            _copy(db, made)
        found = check(made, of=path)
        made.replace(to)
        _sync(to.parent)
    except OSError as error:
        raise StateError(f"cannot write {to}: {error.strerror}") from error
    finally:
        made.unlink(missing_ok=True)
    return msgspec.structs.replace(found, path=str(to))


def restore(source: Path, places: Places) -> Path | None:
    """Put a backup in the place of the store. The old one is kept beside it: its path.

    Raises StateError (AlreadyRunning while a scheduler serves the directory), and GoneError.
    """
    check(source)
    places.make()
    store = places.store
    with locked(places, None):
        made = store.with_name("restored.db")
        try:
            for suffix in _SUFFIXES:
                made.with_name(made.name + suffix).unlink(missing_ok=True)
            with _reading(source) as db, damage(source):
                _copy(db, made)
            _raise(made)
            old = _set_aside(store)
            made.replace(store)
            _sync(store.parent)
        except OSError as error:
            raise StateError(f"cannot write {store}: {error.strerror}") from error
        finally:
            for suffix in _SUFFIXES:
                made.with_name(made.name + suffix).unlink(missing_ok=True)
    return old


def _raise(path: Path) -> None:
    """Nodes obey the latest term, and refuse the leases of older ones."""
    store = Store(path)
    try:
        counters = records.read(store.rows()).counters
        if counters is None:  # no scheduler has begun on it
            return
        counters.term += _RAISED
        counters.epoch += _RAISED
        store.put([("meta", "counters", journal.encode(counters))])
        store.note(time.time_ns() // 1_000_000, journal.Restored(counters.term, counters.epoch))
        store.commit()
    finally:
        store.close()


def _set_aside(store: Path) -> Path | None:
    if not store.exists():
        return None
    stem = f"{store.name}.{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    names = (stem, *(f"{stem}-{number}" for number in range(2, 1000)))
    old = next(store.with_name(name) for name in names if not store.with_name(name).exists())
    for suffix in _SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            store.with_name(store.name + suffix).rename(old.with_name(old.name + suffix))
    return old


def _copy(db: sqlite3.Connection, to: Path) -> None:
    """Into one file, for its owner alone."""
    to.unlink(missing_ok=True)
    os.close(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with contextlib.closing(sqlite3.connect(to)) as copy:
        db.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE")
    with to.open("rb") as file:
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """One look at a store of the present format, while others may write it."""
    if not path.is_file():
        raise GoneError(f"there is no lease store {path}")
    refuse_damaged_log(path)
    with damage(path):
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    try:
        with damage(path):
            db.execute("PRAGMA busy_timeout=5000")
            db.execute("BEGIN")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version != VERSION:
                raise StateError(
                    f"{path} is of format {version}, and {VERSION} is read; 'hal serve' takes over older ones"
                )
        yield db
    finally:
        db.close()

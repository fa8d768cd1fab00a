"""Older formats of the store, made into the present one as it is opened.

1: one device a lease, times in seconds. 2: rows without marks, and no journal.
"""

from __future__ import annotations

import sqlite3

import msgspec

from hal.scheduler.core.fleet import Shape, Spot
from hal.scheduler.core.lease import Amount, Lease, LeaseState, Part
from hal.scheduler.core.records import Row
from hal.scheduler.core.request import Alternative, Member, Request
from hal.scheduler.core.world import Counters

__all__ = ["taken_out"]


def taken_out(db: sqlite3.Connection, version: int) -> list[Row]:
    """All rows of an older format, whose tables are dropped. Raises sqlite3.Error and msgspec.DecodeError."""
    if version == 1:
        return _of_1(db)
    rows = db.execute("SELECT kind, id, value FROM record").fetchall()
    db.execute("DROP TABLE record")
    return rows


def _of_1(db: sqlite3.Connection) -> list[Row]:
    rows: list[Row] = []
    (epoch,) = db.execute("SELECT epoch FROM fence").fetchone()
    for number, (value,) in enumerate(db.execute("SELECT value FROM lease ORDER BY id").fetchall()):
        lease = _lease_of(msgspec.msgpack.decode(value, type=_Lease1), number + 1)
        rows.append(("lease", lease.id, msgspec.msgpack.encode(lease)))
        epoch = max(epoch, lease.epoch)
    counters = Counters(epoch=epoch, order=1 << 20)
    rows.append(("meta", "counters", msgspec.msgpack.encode(counters)))
    db.execute("DROP TABLE lease")
    db.execute("DROP TABLE fence")
    return rows


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

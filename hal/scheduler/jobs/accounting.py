"""Who has used what, for how long and at what price: one row for each user and day (UTC)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from hal.scheduler.core.fleet import Fleet
from hal.scheduler.core.lease import Lease, charge
from hal.scheduler.core.records import Row
from hal.scheduler.jobs.launch import owner_name
from hal.scheduler.jobs.records import Usage

__all__ = ["KIND", "Account", "Accounts", "usage_of"]

KIND = "account"
_DAYS = 800  # that are kept


class Account(Struct):
    """Of one user, on the day on which the leases ended."""

    day: str  # 2026-01-31
    uid: int
    owner: str
    leases: int = 0
    jobs: int = 0
    usage: Usage = Usage()


class Accounts:
    def __init__(self) -> None:
        self._rows: dict[str, Account] = {}
        self._names: dict[int, str] = {}
        self._changed: set[str] = set()

    def load(self, rows: list[Row]) -> None:
        """Raises msgspec.DecodeError."""
        for _, id, value in rows:
            self._rows[id] = msgspec.msgpack.decode(value or b"", type=Account)
            self._names[self._rows[id].uid] = self._rows[id].owner

    def know(self, name: str, uid: int) -> None:
        """Who asks for a lease: when that ends, they need not be there any more."""
        if uid not in self._names or self._names[uid].startswith("uid:"):
            self._names[uid] = owner_name(name, uid)

    def name_of(self, uid: int) -> str:
        return self._names.get(uid) or owner_name(f"uid:{uid}", uid)

    def charge(self, lease: Lease, usage: Usage, now: int, *, job: bool) -> None:
        day = time.strftime("%Y-%m-%d", time.gmtime(now / 1000))
        id = f"{day}.{lease.uid}"
        if id not in self._rows:
            self._rows[id] = Account(day, lease.uid, self.name_of(lease.uid))
            self._drop_old()
        account = self._rows[id]
        account.leases += 1
        account.jobs += job
        account.usage += usage
        self._changed.add(id)

    def changes(self) -> list[Row]:
        found: list[Row] = []
        for id in self._changed:
            row = self._rows.get(id)
            found.append((KIND, id, None if row is None else msgspec.msgpack.encode(row)))
        self._changed.clear()
        return found

    def between(self, since: str, until: str) -> Iterator[Account]:
        """Of these days and those between them; "": no bound."""
        for id in sorted(self._rows):
            row = self._rows[id]
            if (not since or row.day >= since) and (not until or row.day <= until):
                yield row

    def __len__(self) -> int:
        return len(self._rows)

    def _drop_old(self) -> None:
        days = sorted({row.day for row in self._rows.values()})
        for id in [id for id, row in self._rows.items() if row.day in set(days[:-_DAYS])]:
            del self._rows[id]
            self._changed.add(id)


def usage_of(lease: Lease, fleet: Fleet, now: int) -> Usage:
    """From its grant until now, at today's prices; a device that is not there any more costs nothing."""
    seconds = max(now - lease.granted, 0) / 1000
    found = Usage(0.0, seconds * lease.charge.memory_bytes, 0.0)
    if not lease.spots():
        return found
    found += Usage(seconds * lease.charge.devices_milli / 1000)
    for spot in lease.spots():
        for id in spot.devices:
            device = fleet.device(id)
            if device is not None:
                share = charge(device, spot).devices_milli / 1000
                found += Usage(micros=device.micros_per_hour * share * seconds / 3600)
    return found


def told(account: Account) -> dict[str, Any]:
    return {
        "day": account.day,
        "owner": account.owner,
        "leases": account.leases,
        "jobs": account.jobs,
        "device_seconds": round(account.usage.device_seconds, 3),
        "memory_byte_seconds": round(account.usage.memory_byte_seconds),
        "price": round(account.usage.micros / 1e6, 6),
    }

"""Who has used what, for how long and at what price.

A row for each user, queue, node and kind of device on each day (UTC), with what was used on it. A lease is
charged when it ends, and once a day while it goes on: until when is written down with the same commit, so
that nothing is charged twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any

import msgspec
from msgspec import Struct

from hal.scheduler.core.facts import DeviceFacts
from hal.scheduler.core.lease import Lease, charge
from hal.scheduler.core.records import Row
from hal.scheduler.jobs.launch import owner_name
from hal.scheduler.jobs.records import Usage

__all__ = [
    "CHARGED",
    "DAY_MS",
    "KIND",
    "KINDS",
    "MOST_TOLD",
    "Account",
    "Accounts",
    "TooMany",
    "in_pieces",
    "together",
]

KIND = "account"
CHARGED = "charged"  # of rows: by lease, until when it was charged while it went on
DAY_MS = 24 * 3600 * 1000
_DAYS = 800  # that are kept
_MOST = 200_000  # rows; beyond, the oldest day goes, however few days that leaves

_PIECE = 2000  # rows that are looked at, or told, without a pause
MOST_TOLD = 50_000  # rows of an answer, which is to fit its frame and to be made while nobody waits for long

KINDS = ("day", "user", "queue", "node", "vendor", "model")  # of what it is told by
_Key = tuple[str, int, str, str, str, str]  # as KINDS, with the user's number
_Device = Callable[[str], DeviceFacts | None]  # None: it has gone for good


class TooMany(ValueError):
    """More rows than one answer has; ``str()`` says what to do."""


class Account(Struct):
    """``queue`` and what is after it is empty in rows of before it was told apart, and of devices that have
    gone before the lease has ended."""

    day: str  # 2026-01-31: on which it was used
    uid: int
    owner: str
    leases: int = 0  # that have ended
    jobs: int = 0
    usage: Usage = Usage()
    queue: str = ""
    node: str = ""
    vendor: str = ""
    model: str = ""


class Accounts:
    def __init__(self) -> None:
        self._rows: dict[_Key, Account] = {}
        self._ids: dict[_Key, str] = {}  # of their rows
        self._days: dict[str, list[_Key]] = {}
        self._names: dict[int, str] = {}
        self._charged: dict[str, int] = {}  # leases that go on: until when, in ms
        self._changed: set[_Key] = set()
        self._gone: list[str] = []  # ids of rows that are no more
        self._recharged: set[str] = set()

    def load(self, rows: Iterable[Row]) -> None:
        """Take what is ours. Raises msgspec.DecodeError."""
        for kind, id, value in rows:
            if kind == KIND:
                one = msgspec.msgpack.decode(value or b"", type=Account)
                self._add((one.day, one.uid, one.queue, one.node, one.vendor, one.model), one, id)
                self._names[one.uid] = one.owner
            elif kind == CHARGED:
                self._charged[id] = msgspec.msgpack.decode(value or b"", type=int)

    def know(self, name: str, uid: int) -> None:
        """Who asks for a lease: when that ends, they need not be there any more."""
        known = self._names.get(uid)
        if known is None or (known.startswith("uid:") and not name.startswith("uid:")):
            self._names[uid] = owner_name(name, uid)

    def name_of(self, uid: int) -> str:
        self.know(f"uid:{uid}", uid)  # the system is asked once: it may have to ask others
        return self._names[uid]

    def charged_until(self, lease: Lease) -> int:
        """In ms; when it was granted, if it was not charged yet."""
        return max(lease.granted, self._charged.get(lease.id, 0))

    def charge(self, lease: Lease, device: _Device, now: int, *, job: bool, ended: bool) -> Usage:
        """What it has used since it was charged last, by days; with ``ended`` for the last time."""
        total, shares, uid, queue = Usage(), _shares(lease, device), lease.uid, lease.request.queue
        for day, seconds, is_last in _days(self.charged_until(lease), now):
            count = int(ended and is_last)
            for (node, vendor, model), each in shares.items():
                key = (day, uid, queue, node, vendor, model)
                account = self._rows.get(key)
                if account is None:
                    account = self._begin(key)
                usage = each.during(seconds)
                account.usage += usage
                account.leases += count
                account.jobs += count if job else 0
                self._changed.add(key)
                total += usage
                count = 0  # on its first node and kind
        if not ended:
            self._charged[lease.id] = max(now, self.charged_until(lease))
            self._recharged.add(lease.id)
        elif self._charged.pop(lease.id, None) is not None:
            self._recharged.add(lease.id)
        return total

    def forget_all_but(self, leases: Iterable[str]) -> None:
        """Of other leases nothing is to be charged any more."""
        for id in set(self._charged).difference(leases):
            del self._charged[id]
            self._recharged.add(id)

    def changes(self) -> list[Row]:
        if not (self._changed or self._gone or self._recharged):
            return []
        found: list[Row] = [(KIND, id, None) for id in self._gone]
        for key in self._changed:
            row = self._rows.get(key)
            if row is not None:
                found.append((KIND, self._ids[key], msgspec.msgpack.encode(row)))
        for lease in self._recharged:
            until = self._charged.get(lease)
            found.append((CHARGED, lease, None if until is None else msgspec.msgpack.encode(until)))
        self._changed.clear()
        self._gone.clear()
        self._recharged.clear()
        return found

    def between(self, since: str, until: str) -> Iterator[Account]:
        """Of these days and those between them; "": no bound. Days may go meanwhile."""
        for day in sorted(self._days):
            if (not since or day >= since) and (not until or day <= until):
                yield from (self._rows[key] for key in self._days.get(day, ()) if key in self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    # ---- inside -----------------------------------------------------------------------------

    def _begin(self, key: _Key) -> Account:
        day, uid, queue, node, vendor, model = key
        account = Account(day, uid, self.name_of(uid), queue=queue, node=node, vendor=vendor, model=model)
        self._add(key, account, "\x1f".join(map(str, key)))
        while len(self._days) > _DAYS or (len(self._rows) > _MOST and len(self._days) > 1):
            for old in self._days.pop(min(self._days)):
                del self._rows[old]
                self._gone.append(self._ids.pop(old))
        return account

    def _add(self, key: _Key, account: Account, id: str) -> None:
        self._rows[key] = account
        self._ids[key] = id
        self._days.setdefault(account.day, []).append(key)


@lru_cache(maxsize=4)
def _name(day: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(day * DAY_MS // 1000))


def _days(since: int, now: int) -> list[tuple[str, float, bool]]:
    """The days from then to now, the seconds of each, and whether it is the last. What was before the days
    that are kept counts on the first of these."""
    now = max(since, now)
    today = now // DAY_MS
    if since // DAY_MS == today:
        return [(_name(today), (now - since) / 1000, True)]
    found: list[tuple[str, float, bool]] = []
    first = today - _DAYS + 1
    while since < now or not found:
        day = max(since // DAY_MS, first)
        until = min((day + 1) * DAY_MS, now)
        found.append((_name(day), (until - since) / 1000, until == now))
        since = until
    return found


def _shares(lease: Lease, device: _Device) -> dict[tuple[str, str, str], Usage]:
    """By node and kind of device what is used in a second, at today's prices; of a device that has gone for
    good, its part of what the queue is charged, at no price."""
    found: dict[tuple[str, str, str], Usage] = {}
    number = len(lease.devices())
    for spot in lease.spots():
        if not spot.devices:
            found.setdefault((spot.node, "", ""), Usage())
        for id in spot.devices:
            one = device(id)
            if one is None:
                milli, size = lease.charge.devices_milli / number, lease.charge.memory_bytes / number
                key, micros = (spot.node, "", ""), 0
            else:
                amount = charge(one, spot)
                milli, size = amount.devices_milli, amount.memory_bytes
                key, micros = (spot.node, one.vendor, one.model), one.micros_per_hour
            used = Usage(milli / 1000, size, micros * milli / 1000 / 3600)
            found[key] = found[key] + used if key in found else used
    return found


def together(accounts: Iterable[Account], by: Sequence[str]) -> list[dict[str, Any]]:
    """Sums by these of KINDS, in their order: as ``accounting`` answers. Raises TooMany."""
    pieces = in_pieces(accounts, by, lambda _: True)
    while True:
        try:
            next(pieces)
        except StopIteration as done:
            found: list[dict[str, Any]] = done.value
            return found


def in_pieces(
    accounts: Iterable[Account], by: Sequence[str], is_meant: Callable[[Account], bool]
) -> Generator[None, None, list[dict[str, Any]]]:
    """As ``together``, and of those alone that are meant: others can be served after each piece."""
    names = ["owner" if kind == "user" else kind for kind in by]
    key_of = attrgetter(*names)
    sums: dict[Any, list[float]] = {}  # leases, jobs and what Usage has
    for number, one in enumerate(accounts, 1):
        if number % _PIECE == 0:
            yield
        if not is_meant(one):
            continue
        key, usage = key_of(one), one.usage
        if (there := sums.get(key)) is None:
            there = sums[key] = [0, 0, 0.0, 0.0, 0.0]
            if len(sums) > MOST_TOLD:
                raise TooMany(f"there are more than {MOST_TOLD} rows: name fewer days, or less to tell it by")
        there[0] += one.leases
        there[1] += one.jobs
        there[2] += usage.device_seconds
        there[3] += usage.memory_byte_seconds
        there[4] += usage.micros
    told: list[dict[str, Any]] = []
    for key in sorted(sums):
        if len(told) % _PIECE == _PIECE - 1:
            yield
        leases, jobs, seconds, memory, micros = sums[key]
        told.append(
            {
                **dict(zip(names, key if len(names) > 1 else [key], strict=True)),
                "leases": leases,
                "jobs": jobs,
                "device_seconds": round(seconds, 3),
                "memory_byte_seconds": Usage(seconds, memory).whole_byte_seconds,
                "price": round(micros / 1e6, 6),
            }
        )
    return told

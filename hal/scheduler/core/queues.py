"""Queues in a tree: what each may have, what it has, and whose turn it is.

Dominant-resource fairness: a queue's share is the larger of its shares of the fleet's devices and of its
memory. What it has had counts, too, and fades by half in ``half_life_ms``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from msgspec import Struct

from hal.scheduler.core.lease import Amount
from hal.scheduler.core.request import Request

__all__ = ["ROOT", "Limits", "Queue", "QueueError", "Tree"]

ROOT = ""
_DEFAULT = Request().queue  # where requests go that name none
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,63}")
_STEPS = 64  # of which each fades by the 64th root of a half
_FADE = tuple(round(2 ** (-step / _STEPS) * (1 << 16)) for step in range(_STEPS))
_ONE = 1 << 24  # a share of everything
_MAX_DEPTH = 8
_MOST_NAMED = 4
_MAX_WEIGHT = 1_000_000


class Limits(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Amounts; None: none is set."""

    devices_milli: int | None = None
    memory_bytes: int | None = None

    def hold(self, amount: Amount) -> bool:
        return not (
            (self.devices_milli is not None and amount.devices_milli > self.devices_milli)
            or (self.memory_bytes is not None and amount.memory_bytes > self.memory_bytes)
        )

    @property
    def are_set(self) -> bool:
        return self.devices_milli is not None or self.memory_bytes is not None


class Queue(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """``quota`` is what it can always have back, ``limit`` what it never goes beyond.

    A queue without a quota is never reclaimed from; ``weight`` divides what is left over.
    """

    name: str
    parent: str = ROOT
    quota: Limits = Limits()
    limit: Limits = Limits()
    weight: int = 1


class QueueError(ValueError):
    """A queue that cannot be so; ``field`` says where."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field, self.message = field, message


class Tree:
    """All queues, with what their leases hold now and have held."""

    def __init__(self, half_life_ms: int = 24 * 3600 * 1000) -> None:
        self.queues: dict[str, Queue] = {_DEFAULT: Queue(_DEFAULT)}
        self.used: dict[str, Amount] = {ROOT: Amount(), _DEFAULT: Amount()}
        self.firm: dict[str, Amount] = {}  # of `used`, what is not to be preempted
        self.had: dict[str, Amount] = {ROOT: Amount(), _DEFAULT: Amount()}  # the faded average
        self.total = Amount()  # of the fleet
        self.faded_until = 0
        self._step_ms = max(half_life_ms // _STEPS, 1)
        self._limited: frozenset[str] = frozenset()  # queues on whose path is a limit

    def set(self, queue: Queue) -> None:
        """Raises QueueError. What the queue uses stays as it is."""
        if not _NAME.fullmatch(queue.name):
            raise QueueError(
                "name",
                "it has 1 to 64 letters, digits, '.', '_', '-' and '/', and begins with a letter or digit",
            )
        if not 1 <= queue.weight <= _MAX_WEIGHT:
            raise QueueError("weight", f"it is between 1 and {_MAX_WEIGHT}")
        for field in ("quota", "limit"):
            for name in ("devices_milli", "memory_bytes"):
                amount = getattr(getattr(queue, field), name)
                if amount is not None and not 0 <= amount < 1 << 63:
                    raise QueueError(f"{field}_{name}", f"it is between 0 and {(1 << 63) - 1}")
        for name in ("devices_milli", "memory_bytes"):
            quota, limit = getattr(queue.quota, name), getattr(queue.limit, name)
            if quota is not None and limit is not None and quota > limit:
                raise QueueError(f"quota_{name}", "it is more than the queue's own limit")
        if queue.parent != ROOT and queue.parent not in self.queues:
            raise QueueError("parent", f"there is no queue '{queue.parent:.64}'")
        above = list(self.path(queue.parent)) if queue.parent != ROOT else []
        if queue.name in above:
            raise QueueError("parent", f"'{queue.parent:.64}' is below '{queue.name}' itself")
        if len(above) >= _MAX_DEPTH:
            raise QueueError("parent", f"queues are at most {_MAX_DEPTH} deep")
        known = self.queues.get(queue.name)
        if known is not None and known.parent != queue.parent:
            raise QueueError("parent", f"'{queue.name}' stays below '{known.parent or 'the root'}'")
        self.queues[queue.name] = queue
        self.used.setdefault(queue.name, Amount())
        self.had.setdefault(queue.name, Amount())
        self._find_limited()

    def remove(self, name: str) -> None:
        """One in which nothing is. Raises QueueError. Those above keep what it has had."""
        if name not in self.queues:
            raise QueueError("queue", f"there is no queue '{name:.64}'")
        if name == _DEFAULT:
            raise QueueError("name", f"queue '{name}' stays: requests that name none go there")
        below = sorted(one.name for one in self.queues.values() if one.parent == name)
        if below:
            raise QueueError("name", f"queue '{name}' has others below it: {', '.join(below[:_MOST_NAMED])}")
        for each in (self.queues, self.used, self.firm, self.had):
            each.pop(name, None)
        self._find_limited()

    def path(self, name: str) -> Iterator[str]:
        """The queue and those above it, without the root."""
        while name != ROOT:
            yield name
            name = self.queues[name].parent

    def add(self, name: str, amount: Amount, *, firm: bool, now: int) -> None:
        """A lease of the queue begins; ``firm``: it is not to be preempted."""
        self._fade(now)
        self.shift(name, amount, 1, firm=firm)

    def take(self, name: str, amount: Amount, *, firm: bool, now: int) -> None:
        self._fade(now)
        self.shift(name, amount, -1, firm=firm)

    def shift(self, name: str, amount: Amount, sign: int, *, firm: bool) -> None:
        """What is used, and nothing of what was had: also for what is only thought."""
        milli, size = sign * amount.devices_milli, sign * amount.memory_bytes
        for each in (*self.path(name), ROOT):
            before = self.used[each]
            self.used[each] = Amount(before.devices_milli + milli, before.memory_bytes + size)
            if firm:
                before = self.firm.get(each, Amount())
                self.firm[each] = Amount(before.devices_milli + milli, before.memory_bytes + size)

    # ---- what is allowed --------------------------------------------------------------------

    def beyond_limit(self, name: str, amount: Amount) -> str | None:
        """The queue on the path whose limit ``amount`` more would pass, if one would."""
        if name not in self._limited:
            return None
        return next(
            (one for one in self.path(name) if not self.queues[one].limit.hold(self.used[one] + amount)), None
        )

    def never_within_limit(self, name: str, amount: Amount) -> str | None:
        """The queue whose limit is smaller than this alone."""
        if name not in self._limited:
            return None
        return next((one for one in self.path(name) if not self.queues[one].limit.hold(amount)), None)

    def within_quota(self, name: str, amount: Amount) -> bool:
        """With ``amount`` more, no queue on the path has more than its quota."""
        return all(self.queues[one].quota.hold(self.used[one] + amount) for one in self.path(name))

    def beyond_quota(self, name: str, amount: Amount) -> str | None:
        """The queue on the path whose quota is too small for ``amount`` more that is not to be preempted."""
        for one in self.path(name):
            if not self.queues[one].quota.hold(self.firm.get(one, Amount()) + amount):
                return one
        return None

    def has_quota(self, name: str) -> bool:
        return any(self.queues[one].quota.are_set for one in self.path(name))

    def owes(self, name: str, to: str, used: dict[str, Amount], given_back: dict[str, Amount]) -> bool:
        """Whether the queue has more than its quota, below where its path meets that of ``to``.

        ``used`` is what each has, ``given_back`` what is to be taken from it already.
        """
        shared = set(self.path(to))
        return any(
            self.queues[one].quota.are_set
            and not self.queues[one].quota.hold(used[one] - given_back.get(one, Amount()))
            for one in self.path(name)
            if one not in shared
        )

    def _find_limited(self) -> None:
        self._limited = frozenset(
            name for name in self.queues if any(self.queues[one].limit.are_set for one in self.path(name))
        )

    # ---- whose turn it is -------------------------------------------------------------------

    def _fade(self, now: int) -> None:
        """Before what is used changes: from now on another amount is had."""
        steps = (now - self.faded_until) // self._step_ms
        if steps > 0:
            self.had = {name: self._faded(name, steps) for name in self.used}
            self.faded_until += steps * self._step_ms

    def _faded(self, name: str, steps: int) -> Amount:
        had, used = self.had[name], self.used[name]
        return Amount(
            _towards(had.devices_milli, used.devices_milli, steps),
            _towards(had.memory_bytes, used.memory_bytes, steps),
        )

    def share(self, name: str, now: int) -> int:
        """Its part of the fleet by weight, now and before: who has the least goes first."""
        steps = max((now - self.faded_until) // self._step_ms, 0)
        both, total = self.used[name] + self._faded(name, steps), self.total
        dominant = max(
            both.devices_milli * _ONE // max(total.devices_milli, 1),
            both.memory_bytes * _ONE // max(total.memory_bytes, 1),
        )
        return dominant // self.queues[name].weight

    def next_of(self, waiting: Iterable[str], now: int) -> str | None:
        """Which of the queues with somebody waiting has its turn."""
        names = list(waiting)
        if len(names) < 2:
            return names[0] if names else None
        return min(names, key=lambda name: self._standing(name, now))

    def _standing(self, name: str, now: int) -> tuple[tuple[int, int, str], ...]:
        """From the root down: first who has less than its quota, then who has the smallest share."""
        path = [*self.path(name)][::-1]
        return tuple((self._class(one), self.share(one, now), one) for one in path)

    def _class(self, name: str) -> int:
        quota, used = self.queues[name].quota, self.used[name]
        below = (
            quota.are_set
            and (quota.devices_milli is None or used.devices_milli < quota.devices_milli)
            and (quota.memory_bytes is None or used.memory_bytes < quota.memory_bytes)
        )
        return 0 if below else 1


def _towards(had: int, used: int, steps: int) -> int:
    halves, rest = divmod(steps, _STEPS)
    gap = had - used
    sign = -1 if gap < 0 else 1
    return used + sign * ((abs(gap) >> min(halves, 200)) * _FADE[rest] >> 16)

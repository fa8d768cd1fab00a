"""A recorded journal again, as it was or under another strategy, and what came of it."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

from msgspec import Struct

from hal.scheduler import core
from hal.scheduler.core.decisions import Decision, Grant, Preempt, Refuse, Revoke
from hal.scheduler.core.placement import Policy
from hal.scheduler.core.queues import ROOT
from hal.scheduler.core.records import DamagedError
from hal.scheduler.core.state import State
from hal.scheduler.store.export import ExportError, read
from hal.scheduler.store.journal import Base, Entry
from hal.scheduler.store.replay import Player

__all__ = ["Replayed", "replay"]

_POINTS = 20  # of the allocation over time
_WRONG = (ArithmeticError, AssertionError, LookupError, TypeError, ValueError)


class Replayed(Struct, frozen=True):
    """Times are milliseconds; allocation is the lent part of all devices, None while there were none."""

    exact: bool | None  # each commit came to the rows that were written; None: under another strategy
    differs_at_line: int | None
    events: int
    requests: int
    grants: int
    refusals: int
    preemptions: int
    revocations: dict[str, int]  # by cause
    passed_over: int  # what holders said of leases that were not there
    waiting: int  # in the end
    leases: int
    duration_ms: int
    wait_mean_ms: float | None
    wait_p50_ms: int | None
    wait_p99_ms: int | None
    allocation_mean: float | None
    allocation: tuple[float | None, ...]  # in equal parts of the time


def replay(path: Path, policy: Policy | None = None) -> Replayed:
    """The same file gives the same figures. Raises ExportError."""
    player: Player | None = None
    tally = _Tally()
    differs: int | None = None
    for number, line in enumerate(read(path), 1):
        try:
            if player is None:
                assert isinstance(line, Base)
                player = Player(line, policy)
                continue
            assert not isinstance(line, Base)
            if line.event is not None and line.at is not None:
                tally.add(line.at, line.event, player.apply(line.event, line.at), player.state)
            if line.commit is not None and not player.commit(line.commit.sum) and differs is None:
                differs = number
        except DamagedError as wrong:
            raise ExportError(f"{path}, line {number}: {wrong}") from None
        except _WRONG as wrong:
            raise ExportError(f"{path}, line {number}: `event` makes no sense: {wrong}") from None
    assert player is not None
    return tally.told(player, None if policy is not None else differs is None, differs)


class _Tally:
    def __init__(self) -> None:
        self.events = 0
        self.requests = 0
        self.refusals = 0
        self.preemptions = 0
        self.revocations: Counter[str] = Counter()
        self.waits: dict[str, int] = {}  # by lease, of its first grant
        self.grants = 0
        self.levels: list[tuple[int, float | None]] = []  # from when on which part was lent
        self.now = 0

    def add(self, at: int, entry: Entry, decisions: list[Decision], state: State) -> None:
        self.events += 1
        self.requests += isinstance(entry, core.Submit)
        for decision in decisions:
            match decision:
                case Grant(lease=lease, again=False):
                    self.grants += 1
                    self.waits.setdefault(lease.id, lease.granted - lease.arrived)
                case Refuse():
                    self.refusals += isinstance(entry, core.Submit)
                case Preempt():
                    self.preemptions += 1
                case Revoke(cause=cause):
                    self.revocations[cause.value] += 1
        self.now = max(self.now, at)
        tree = state.world.tree
        total = tree.total.devices_milli
        level = tree.used[ROOT].devices_milli / total if total > 0 else None
        if not self.levels or self.levels[-1][1] != level:
            self.levels.append((self.now, level))

    def told(self, player: Player, exact: bool | None, differs: int | None) -> Replayed:
        waits = sorted(self.waits.values())
        begin = self.levels[0][0] if self.levels else 0
        span = self.now - begin
        edges = [begin + span * part // _POINTS for part in range(_POINTS + 1)]
        return Replayed(
            exact=exact,
            differs_at_line=differs,
            events=self.events,
            requests=self.requests,
            grants=self.grants,
            refusals=self.refusals,
            preemptions=self.preemptions,
            revocations=dict(sorted(self.revocations.items())),
            passed_over=player.passed_over,
            waiting=len(player.state.waiting),
            leases=len(player.state.leases),
            duration_ms=span,
            wait_mean_ms=sum(waits) / len(waits) if waits else None,
            wait_p50_ms=waits[len(waits) // 2] if waits else None,
            wait_p99_ms=waits[min(len(waits) * 99 // 100, len(waits) - 1)] if waits else None,
            allocation_mean=self._mean(begin, self.now),
            allocation=tuple(self._mean(*part) for part in pairwise(edges)),
        )

    def _mean(self, begin: int, end: int) -> float | None:
        """Over the time for which there were devices."""
        lent, known = 0.0, 0
        for (since, level), (until, _) in zip(self.levels, [*self.levels[1:], (self.now, None)], strict=True):
            part = min(until, end) - max(since, begin)
            if part > 0 and level is not None:
                lent, known = lent + part * level, known + part
        return lent / known if known else None

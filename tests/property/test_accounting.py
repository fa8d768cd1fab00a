"""What is charged is what was held, whatever restarts, kills, midnights and lost slices come between.

The real engine with its core, store and board; only the clock and the node's slices are played.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import msgspec
import zmq
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hal.scheduler import core
from hal.scheduler.agent.binding import Binding, Bound, Order, UnbindOrder, Unbound
from hal.scheduler.bench.ground import NoAgent
from hal.scheduler.config import Config
from hal.scheduler.engine import Engine
from hal.scheduler.holders import Holders
from hal.scheduler.jobs.accounting import CHARGED, DAY_MS
from hal.scheduler.monitor import Monitor
from hal.scheduler.places import Places
from hal.scheduler.security.door import Door
from hal.scheduler.store import Store

HISTORIES = int(os.environ.get("HAL_HISTORIES", "100"))
HOUR = 3600 * 1000
WHOLE = core.Request((core.Member((core.Alternative(),)),), ttl_ms=86_400_000)


class Slices(NoAgent):
    """Those of some leases were lost while no scheduler ran. ``slow``: what runs in them does not end."""

    def __init__(self, lost: set[str]) -> None:
        super().__init__(3)
        self.lost = lost
        self.slow = False

    def perform(self, order: Order, now: float) -> Bound | Unbound:
        return Unbound(False) if self.slow and isinstance(order, UnbindOrder) else super().perform(order, now)

    def take_over(self, binding: Binding) -> bool:
        return binding.lease not in self.lost

    def keep(self, _term: int, _wanted: Mapping[str, int], _now: float) -> list[str]:
        return []


class Clocked(Engine):
    at = 0

    def now(self) -> int:
        return self.at


class Held:
    """What the engine should have charged: device milliseconds of leases, by the model's own count."""

    def __init__(self) -> None:
        self.since: dict[str, int] = {}
        self.ending: set[str] = set()  # until the next scheduler begins
        self.total = 0
        self.ended = 0

    def copy(self) -> Held:
        other = Held()
        other.since, other.ending = dict(self.since), set(self.ending)
        other.total, other.ended = self.total, self.ended
        return other


class Site(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.directory = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="hal-test-")))
        self.at = 20_000 * DAY_MS
        self.happened = self.seen = 0  # when something has happened last, and of what was written down
        self.asked = 0
        self.held, self.kept = Held(), Held()
        self.begin(set())

    def begin(self, lost: set[str]) -> None:
        places, config = Places(self.directory), Config()
        places.make()
        door = Door(config, places, None)
        self.slices = Slices(lost)
        self.engine = Clocked(
            self.slices,
            places,
            config,
            door.limits,
            private=False,
            monitor=Monitor(),
            version="",
            say=lambda _: None,
        )
        self.engine.at = self.at
        self.engine.store = Store(places.store)
        self.engine.holders = Holders(zmq.Poller())
        self.engine.recover()
        for id in list(self.held.ending):
            self.end(id, self.at)
        self.happened = self.at
        self.written()

    def written(self) -> None:
        self.kept, self.seen = self.held.copy(), self.happened

    def teardown(self) -> None:
        self.turn()
        self.engine.store.close()
        self.engine.holders.close()
        self.slices.close()
        self.stack.close()

    def end(self, id: str, at: int) -> None:
        self.held.total += max(at - self.held.since.pop(id), 0)
        self.held.ending.discard(id)
        self.held.ended += 1

    def charged(self) -> dict[str, int]:
        """Until when leases that went on were charged, as it was written down."""
        store = Store(self.engine.places.store)
        rows = [
            (id, msgspec.msgpack.decode(value or b"")) for kind, id, value in store.rows() if kind == CHARGED
        ]
        store.close()
        return dict(rows)

    # ---- what happens -----------------------------------------------------------------------

    @rule(milliseconds=st.sampled_from([1, 1000, HOUR, 11 * HOUR, 24 * HOUR, 40 * HOUR]))
    def time_passes(self, milliseconds: int) -> None:
        self.at += milliseconds
        self.engine.at = self.at

    @precondition(lambda self: len(self.held.since) < 3)
    @rule()
    def submit(self) -> None:
        self.asked += 1
        id = f"l{self.asked}"
        self.engine.happens(core.Submit(WHOLE, id, id, 7 + self.asked % 2, 0))
        self.held.since[id] = self.happened = self.at

    @precondition(lambda self: self.held.since.keys() - self.held.ending)
    @rule(which=st.integers(0, 9), slow=st.booleans())
    def release(self, which: int, slow: bool) -> None:
        there = sorted(self.held.since.keys() - self.held.ending)
        id = there[which % len(there)]
        self.slices.slow = slow
        self.engine.happens(core.Release(id, 0))
        if slow:
            self.held.ending.add(id)
        else:
            self.end(id, self.at)
        self.happened = self.at

    @rule()
    def turn(self) -> None:
        self.engine.board.turn()
        assert self.engine.commit()
        self.written()

    @rule(lose=st.booleans(), away=st.sampled_from([0, HOUR, 30 * HOUR]), in_order=st.booleans())
    def restart(self, lose: bool, away: int, in_order: bool) -> None:
        """In order, or killed: what was not written down did not happen."""
        if in_order:
            self.turn()
            self.engine.store.close()
        else:
            self.engine.store._db.close()
            self.held, self.happened = self.kept.copy(), self.seen
        self.engine.holders.close()
        self.slices.close()
        seen = self.seen
        self.at += away
        lost = set(sorted(self.held.since)[:1]) if lose else set()
        charged = self.charged() if lost else {}
        for id in lost:
            self.end(id, max(seen, charged.get(id, 0)))
        self.begin(lost)

    # ---- what holds -------------------------------------------------------------------------

    @invariant()
    def all_is_charged_once(self) -> None:
        accounts = self.engine.board.accounts
        rows = list(accounts.between("", ""))
        charged = sum(row.usage.device_seconds for row in rows)
        leases = self.engine.state.leases
        assert leases.keys() == self.held.since.keys()
        to_come = sum(self.at - accounts.charged_until(lease) for lease in leases.values())
        held = self.held.total + sum(self.at - since for since in self.held.since.values())
        assert abs(charged * 1000 + to_come - held) < 1
        assert sum(row.leases for row in rows) == self.held.ended
        by_day: dict[str, float] = {}
        for row in rows:
            by_day[row.day] = by_day.get(row.day, 0.0) + row.usage.device_seconds
        assert all(one <= 3 * 86400 + 1 for one in by_day.values()), "more than there are devices"


TestSite = Site.TestCase
TestSite.settings = settings(
    max_examples=HISTORIES,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

"""Any history with its restarts, in commits of any size, replays to the same rows from every base.

`HAL_ROUNDS` histories (10).
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import msgspec
import pytest

from hal.scheduler import core
from hal.scheduler.core import (
    Alternative,
    DeviceFacts,
    LeaseState,
    Member,
    NodeFacts,
    Request,
    State,
    records,
)
from hal.scheduler.core.placement import Policy, Strategy
from hal.scheduler.store import Store, journal
from hal.scheduler.store.file import base_value, batch
from hal.scheduler.store.replay import Differs, Player

ROUNDS = int(os.environ.get("HAL_ROUNDS", "10"))
GIB = 1 << 30


def node(number: int, outside: int = 0) -> NodeFacts:
    devices = tuple(
        DeviceFacts(f"x:n{number}-{at}", "x", "x", 80 * GIB, outside_bytes=0 if at else outside)
        for at in range(4)
    )
    return NodeFacts(f"n{number}", 64_000, 1 << 38, devices)


class History:
    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.chance = path, random.Random(seed)
        self.store = Store(path, kept=self.chance.choice([30, 100, 1000]))
        self.state = State(grace_ms=3000)
        self.now = 1_000_000
        self.ids: list[str] = []
        self.begin([])

    def happens(self, event: core.Event) -> None:
        idle = journal.changes_nothing(self.state, event, self.now)
        decisions = self.state.apply(event, self.now)
        if idle:
            assert decisions == []
        else:
            self.store.note(self.now, event)

    def begin(self, gone: list[core.Lease]) -> None:
        lost = self.state.world.counters.lost
        nodes = tuple(node(number) for number in range(4) if f"n{number}" not in lost) if self.ids else ()
        saved = records.read(self.store.rows())
        saved.leases = [one for one in saved.leases if one.id not in {lease.id for lease in gone}]
        self.state = records.restore(saved, nodes, grace_ms=3000)
        self.store.put([("lease", one.id, None) for one in gone])
        self.state.world.counters.term += 1
        self.state.world.note("meta", "counters")
        ids = tuple(one.id for one in gone)
        self.store.note(self.now, journal.Began(self.state.world.counters.term, 3000, ids, nodes))
        self.happens(core.Resumed())

    def restart(self) -> None:
        if self.chance.random() < 0.5:
            self.commit()
            self.store.close()
        else:
            self.store._db.close()  # what was not committed is lost
        self.store = Store(self.path, kept=50)
        saved = records.read(self.store.rows())
        self.begin([one for one in saved.leases if self.chance.random() < 0.2])

    def commit(self) -> None:
        self.store.put(records.changes(self.state))
        if self.store.wants_base():
            nodes = tuple(self.state.world.fleet.facts)
            self.store.rebase(self.now, records.everything(self.state), nodes, self.state.grace_ms)
        self.store.commit()

    def request(self) -> core.Submit:
        chance, id = self.chance, f"l{len(self.ids)}"
        self.ids.append(id)
        alternatives = tuple(
            Alternative(
                memory_bytes=chance.choice([None, 20 * GIB, 45 * GIB]), count=chance.choice([1, 1, 2])
            )
            for _ in range(chance.choice([1, 2]))
        )
        request = Request(
            members=(Member(alternatives),),
            queue=chance.choice(["default", "default", "q"]),
            wait=chance.random() < 0.7,
            priority=chance.choice([0, 0, 5]),
            requeue=chance.random() < 0.3,
            ttl_ms=chance.choice([1000, 20_000]),
            duration_ms=chance.choice([None, 2000]),
            deadline_ms=chance.choice([None, 5000]),
        )
        return core.Submit(request, id, id, 1)

    def step(self) -> None:
        chance = self.chance
        self.now += chance.choice([0, 1, 50, 1000])
        some = chance.choice(self.ids) if self.ids else "l"
        (what,) = chance.choices(range(12), [45, 10, 15, 5, 5, 3, 2, 3, 12, 2, 4, 4])
        events = (
            lambda: self.request(),
            lambda: core.Renew(some, 1),
            lambda: core.Release(some, 1),
            lambda: core.NodeJoined(node(chance.randrange(4))),
            lambda: core.InventoryChanged(node(chance.randrange(4), chance.choice([0, 70 * GIB]))),
            lambda: core.NodeLost(f"n{chance.randrange(4)}"),
            lambda: core.Drain(f"n{chance.randrange(4)}"),
            lambda: core.Uncordon(f"n{chance.randrange(4)}"),
            core.Tick,
            lambda: core.NodeForgotten(f"n{chance.randrange(4)}"),
            lambda: core.SetQueue(core.Queue("q", weight=chance.randint(1, 3))),
            lambda: core.RemoveQueue("q"),
        )
        event = events[what]()
        self.happens(event)
        if isinstance(event, core.NodeJoined):
            self.store.put([("node", event.node.id, journal.encode(event.node))])
            self.store.note(self.now, journal.Known(event.node))
        for lease in list(self.state.leases.values()):
            if lease.state is LeaseState.ENDING and chance.random() < 0.5:
                self.happens(core.Ended(lease.id))
        if chance.random() < 0.5:
            self.commit()
        if chance.random() < 0.01:
            self.restart()


def told(path: Path, seed: int) -> History:
    history = History(path, seed)
    for _ in range(300):
        history.step()
    history.commit()
    history.store.commit(all=True)
    return history


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_every_base_leads_to_the_rows(seed: int, tmp_path: Path) -> None:
    store = told(tmp_path / "leases.db", seed).store
    bases = [number for (number,) in store._db.execute("SELECT number FROM base ORDER BY number")]
    for number in bases:
        player = Player(journal.decode_base(base_value(store._db, number)))
        for at in range(number + 1, store._number + 1):
            player.play(batch(store._db, at))
        assert [(*key, value) for key, value in sorted(player.rows.items())] == store.rows()
    other = Player(journal.decode_base(base_value(store._db, bases[0])), Policy(Strategy.SPREAD))
    for at in range(bases[0] + 1, store._number + 1):
        other.play(batch(store._db, at))
    assert all(lease.state is not LeaseState.ENDING for lease in other.state.leases.values()) or bases[0]
    store.close()


def test_an_event_that_did_not_happen_is_noticed(tmp_path: Path) -> None:
    store = told(tmp_path / "leases.db", 1).store
    (base,) = store._db.execute("SELECT min(number) FROM base").fetchone()
    player = Player(journal.decode_base(base_value(store._db, base)))
    with pytest.raises(Differs, match=r"batch \d+ of the journal does not lead"):
        for at in range(base + 1, store._number + 1):
            one = batch(store._db, at)
            entries = tuple((when, _altered(entry)) for when, entry in one.entries)
            player.play(msgspec.structs.replace(one, entries=entries))
    store.close()


def _altered(entry: journal.Entry) -> journal.Entry:
    return msgspec.structs.replace(entry, key=entry.key + "!") if isinstance(entry, core.Submit) else entry

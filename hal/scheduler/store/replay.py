"""The same events again: a state made of a base and what the journal holds since.

What decides is the core itself. Under the strategy of the time each batch has to come to the sum of rows that
was written with it: that is how ``check`` knows that journal and rows belong together.
"""

from __future__ import annotations

from typing import Any

from hal.scheduler import core
from hal.scheduler.core import records
from hal.scheduler.core.decisions import Decision, Preempt, Revoke
from hal.scheduler.core.placement import Policy
from hal.scheduler.store import journal
from hal.scheduler.store.journal import Base, Batch, Entry

__all__ = ["Differs", "Player"]


class Differs(Exception):
    """The entries do not lead to what was written down with them."""


class Player:
    """Applies what was written down. ``policy``: another strategy than that of the time.

    Then leases may end at other times, or never come to be: what holders said of leases that are not there is
    passed over (``passed_over``), a lease that is taken away has ended at once, and no sum is compared.
    """

    def __init__(self, base: Base, policy: Policy | None = None) -> None:
        """Raises records.DamagedError."""
        self._policy = policy
        self._options: dict[str, Any] = {} if policy is None else {"policy": policy}
        self.rows = {(kind, id): value for kind, id, value in base.rows}
        self._marks = {key: journal.mark_of(*key, value) for key, value in self.rows.items()}
        self.sum = 0
        for one in self._marks.values():
            self.sum ^= one
        self.state = base.state(**self._options)
        self.passed_over = 0

    def play(self, batch: Batch) -> None:
        """Raises Differs, and records.DamagedError."""
        for at, entry in batch.entries:
            self.apply(entry, at)
        if not self.commit(batch.sum):
            raise Differs(f"batch {batch.number} of the journal does not lead to the rows written with it")

    def commit(self, told: int) -> bool:
        """Write rows as was done here; False when that does not come to this sum."""
        self._write(records.changes(self.state))
        return self._policy is not None or self.sum == told

    def apply(self, entry: Entry, at: int) -> list[Decision]:
        """What was decided. Raises records.DamagedError."""
        match entry:
            case journal.Began():
                self._begin(entry)
            case journal.Known(node=node):
                self._write([("node", node.id, journal.encode(node))])
            case journal.Labelled(node=node, labels=labels):
                counters = self.state.world.counters
                counters.labels.pop(node, None)
                if labels:
                    counters.labels[node] = labels
                self.state.world.note("meta", "counters")
            case journal.Grace(grace_ms=grace):
                self.state.grace_ms = grace
            case journal.Rebased():
                self._write(records.everything(self.state))
            case journal.Restored(term=term, epoch=epoch):
                counters = self.state.world.counters
                counters.term, counters.epoch = term, epoch
                self.state.world.note("meta", "counters")
            case _:
                return self._happens(entry, at)
        return []

    def _happens(self, event: core.Event, at: int) -> list[Decision]:
        if self._policy is None:
            return self.state.apply(event, at)
        match event:
            case core.Renew(id=id) | core.Release(id=id) | core.HolderGone(id=id):
                if id not in self.state.leases and id not in self.state.waiting:
                    self.passed_over += 1
                    return []
            case core.Ended():
                return []  # it has, already
        decisions = self.state.apply(event, at)
        for decision in decisions:  # which grows
            if isinstance(decision, Revoke | Preempt):
                decisions += self.state.apply(core.Ended(decision.lease.id), at)
        return decisions

    def _begin(self, began: journal.Began) -> None:
        self._write([("lease", id, None) for id in began.gone])
        rows = [(*key, value) for key, value in sorted(self.rows.items())]
        saved = records.read(rows)
        self.state = records.restore(saved, began.nodes, grace_ms=began.grace_ms, **self._options)
        self.state.world.counters.term = began.term
        self.state.world.note("meta", "counters")

    def _write(self, rows: list[records.Row]) -> None:
        for kind, id, value in rows:
            key = (kind, id)
            self.sum ^= self._marks.pop(key, 0)
            if value is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = value
                self._marks[key] = journal.mark_of(kind, id, value)
                self.sum ^= self._marks[key]

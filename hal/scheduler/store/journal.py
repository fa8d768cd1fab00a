"""What the journal holds: every event at its time, and the few changes that are made without one.

Entries come in batches, one for each commit. From a base, which is all rows and the nodes at some time, the
same entries lead to the same rows: ``sum`` of a batch is that of all rows once it is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from hal.scheduler import core
from hal.scheduler.core import records
from hal.scheduler.core.facts import NodeFacts
from hal.scheduler.core.state import State

__all__ = [
    "Base",
    "Batch",
    "Began",
    "Entry",
    "Grace",
    "Known",
    "Labelled",
    "Rebased",
    "Restored",
    "changes_nothing",
    "decode_base",
    "decode_entries",
    "encode",
    "mark",
    "mark_of",
    "mark_of_batch",
]


class _Entry(Struct, frozen=True, tag=True):
    pass


class Began(_Entry, frozen=True):
    """A scheduler has started: its state is made of the rows, less these leases, on these nodes."""

    term: int
    grace_ms: int
    gone: tuple[str, ...]
    nodes: tuple[NodeFacts, ...]


class Known(_Entry, frozen=True):
    """A node was written down, as its agent tells of it."""

    node: NodeFacts


class Labelled(_Entry, frozen=True):
    """What operators have set of a node."""

    node: str
    labels: dict[str, str]


class Grace(_Entry, frozen=True):
    """The configuration has another time of grace for lost nodes."""

    grace_ms: int


class Rebased(_Entry, frozen=True):
    """All rows were written again, for a new base."""


class Restored(_Entry, frozen=True):
    """The store came from a backup: from here on terms and epochs are above all that were given since."""

    term: int
    epoch: int


Entry = core.Event | Began | Known | Labelled | Grace | Rebased | Restored


class Base(Struct, frozen=True):
    """From where the entries that are kept begin."""

    rows: tuple[tuple[str, str, bytes], ...] = ()
    nodes: tuple[NodeFacts | None, ...] = ()  # by their places in the fleet; None: one that is vacant
    grace_ms: int = 60_000

    def state(self, **options: Any) -> State:
        """Raises records.DamagedError."""
        vacant = [f"\0{place}" for place, node in enumerate(self.nodes) if node is None]
        nodes = [NodeFacts(f"\0{p}", 0, 0) if node is None else node for p, node in enumerate(self.nodes)]
        state = records.restore(records.read(self.rows), nodes, grace_ms=self.grace_ms, **options)
        for name in vacant:
            state.world.leave(name)
        return state


class Batch(Struct, frozen=True):
    """What was committed together."""

    number: int
    entries: tuple[tuple[int, Entry], ...]
    sum: int  # of all rows that follow from events
    rest: int = 0  # and of the others, such as jobs


def changes_nothing(state: State, event: core.Event, now: int) -> bool:
    """Before it is applied: it leaves the state as it is, and so is not worth writing down."""
    match event:
        case core.Tick():
            due = state.next_deadline()
            return due is None or now < due
        case core.InventoryChanged(node=node):
            fleet = state.world.fleet
            row = fleet.row_of.get(node.id)
            return row is not None and fleet.facts[row] == node and node.id not in state.world.counters.lost
    return False


def mark(parts: Iterable[bytes]) -> int:
    """By which damage is noticed: 63 bits of what is written."""
    digest = hashlib.blake2b(b"".join(parts), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def mark_of(kind: str, id: str, value: bytes) -> int:
    digest = hashlib.blake2b(f"{kind}\0{id}\0".encode() + value, digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def mark_of_batch(number: int, events: int, total: int, rest: int, value: bytes) -> int:
    """Raises OverflowError for numbers that were never written."""
    return mark((*(one.to_bytes(8, "big") for one in (number, events, total, rest)), value))


def encode(one: object) -> bytes:
    return msgspec.msgpack.encode(one)


_entries = msgspec.msgpack.Decoder(tuple[tuple[int, Entry], ...])


def decode_entries(value: bytes) -> tuple[tuple[int, Entry], ...]:
    """Raises msgspec.DecodeError."""
    return _entries.decode(value)


def decode_base(value: bytes) -> Base:
    """Raises msgspec.DecodeError."""
    return msgspec.msgpack.decode(value, type=Base)

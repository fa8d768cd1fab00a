"""Who of many that wait could have room at all: asked of all at once, and only where room was gained.

A kind of one part that was found not to fit fits only on a node that has gained room since; a gang, whose
parts can be in one another's way, only where each of them would fit alone. That is looked up in columns, one
line for each alternative. It may say yes too often (limits and fabrics are not looked at), and never no when
a placement would be found.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hal.scheduler.core.fleet import Fleet
from hal.scheduler.core.line import Kind, Line
from hal.scheduler.core.masks import Eligible
from hal.scheduler.core.match import key_of
from hal.scheduler.core.request import MAX_MEMBERS, Topology
from hal.scheduler.core.shape import Shape
from hal.scheduler.core.terms import shape_of

__all__ = ["Bools", "Screen"]

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_CELLS = 1 << 20  # comparisons at a time
_NEVER = np.iinfo(np.int64).max
_COLUMNS = ("owner", "member", "key", "need", "whole", "cpu", "ram", "size", "milli")


class Screen:
    """The kinds that wait, by slot. ``stale``: nothing is known of where it does not fit."""

    def __init__(self) -> None:
        self.kinds: list[Kind | None] = []
        self.slot_of: dict[int, int] = {}
        self.alive: Bools = np.zeros(0, bool)
        self.stale: Bools = np.zeros(0, bool)
        self.gang: Bools = np.zeros(0, bool)
        self.duration: Ints = np.zeros(0, np.int64)
        self.members: Ints = np.zeros(0, np.int64)
        self._free: list[int] = []
        self._lines: Ints = np.zeros((len(_COLUMNS), 0), np.int64)
        self._used = 0
        self._dead = 0
        self._keys: dict[str, int] = {}

    # ---- who waits --------------------------------------------------------------------------

    def _add(self, kind: Kind) -> None:
        slot = self._free.pop() if self._free else self._new_slot()
        self.kinds[slot] = kind
        self.slot_of[id(kind)] = slot
        self.alive[slot], self.stale[slot], self.gang[slot] = True, kind.stale, not kind.single
        duration = kind.request.duration_ms
        self.duration[slot] = _NEVER if duration is None else duration
        self.members[slot] = len(kind.request.members)
        for number, member in enumerate(kind.request.members):
            for one in member.alternatives:
                together = one.topology in (Topology.NODE, Topology.FABRIC)
                shape = shape_of(one, one.count if together else 1)
                self._add_line(slot, number, self._keys.setdefault(key_of(one), len(self._keys)), shape)

    def _remove(self, kind: Kind) -> None:
        slot = self.slot_of.pop(id(kind))
        self.kinds[slot] = None
        self.alive[slot] = self.stale[slot] = False
        self._free.append(slot)
        mine = self._lines[0, : self._used] == slot
        self._lines[0, : self._used][mine] = -1
        self._dead += int(mine.sum())
        if self._dead > 64 and 2 * self._dead > self._used:
            kept = self._lines[:, : self._used][:, self._lines[0, : self._used] >= 0]
            self._used, self._dead = kept.shape[1], 0
            self._lines[:, : self._used] = kept

    def follow(self, line: Line) -> None:
        """Take in who has come and gone since the last time."""
        for kind in line.went:
            self._remove(kind)
        for kind in line.came.values():
            self._add(kind)
        line.went.clear()
        line.came.clear()

    def learn(self, kind: Kind, stale: bool) -> None:
        """What trying it has shown."""
        kind.stale = stale
        if (slot := self.slot_of.get(id(kind))) is not None:
            self.stale[slot] = stale

    def of(self, slots: Bools) -> Iterable[Kind]:
        """The kinds of these slots."""
        return (kind for slot in np.flatnonzero(slots).tolist() if (kind := self.kinds[slot]) is not None)

    # ---- who could have room ----------------------------------------------------------------

    def could(self, fleet: Fleet, slots: Bools, gained: Iterable[int]) -> Bools:
        """Of these slots, those that could have room now, ``gained`` being the rows that have gained some."""
        rows = np.array(sorted(gained), np.int64)
        everywhere = np.arange(len(fleet.cpu_free))
        anew = self.stale | self.gang
        return self._fitting(fleet, slots & ~anew, rows) | self._fitting(fleet, slots & anew, everywhere)

    # ---- inside -----------------------------------------------------------------------------

    def _fitting(self, fleet: Fleet, slots: Bools, rows: Ints) -> Bools:
        owner, member = self._lines[:2, : self._used]
        lines = np.flatnonzero((owner >= 0) & slots[owner])
        if not len(lines) or not len(rows):
            return np.zeros(len(slots), bool)
        hits = []
        keys = self._lines[2, lines]
        names = list(self._keys)
        for key in np.unique(keys).tolist():
            mine = lines[keys == key]
            mask = fleet.mask(names[key])
            hits.append(mine[self._rooms(fleet, self._lines[3:, mine], rows, mask)])
        hit = np.concatenate(hits)
        units = np.unique(owner[hit] * MAX_MEMBERS + member[hit])
        possible: Bools = np.bincount(units // MAX_MEMBERS, minlength=len(slots)) == self.members
        return slots & possible

    def _rooms(self, fleet: Fleet, lines: Ints, rows: Ints, mask: Eligible | None) -> Bools:
        """For each line whether one of the rows has room for it."""
        need, whole, cpu, ram, size, milli = lines
        rows = rows[(fleet.cpu_free[rows] >= cpu.min()) & (fleet.ram_free[rows] >= ram.min())]
        cells = fleet.usable[rows] & fleet.there[rows]
        if mask is not None:
            cells &= mask.devices[rows]
        parts = cells & fleet.sliceable[rows]
        parts &= (fleet.bytes_free[rows] >= size.min()) & (fleet.milli_free[rows] >= milli.min())
        idle = cells & fleet.idle[rows]
        least = int(need.min())
        worth = ((parts | idle).sum(1) >= least) if least else np.ones(len(rows), bool)
        rows, parts, idle = rows[worth], parts[worth], idle[worth]
        fits = np.zeros(len(need), bool)
        if not len(rows):
            return fits
        # Most are ruled out by what the best of all have.
        most, share = (
            fleet.bytes_free[rows][parts].max(initial=-1),
            fleet.milli_free[rows][parts].max(initial=-1),
        )
        hopeful = np.where(whole > 0, idle.any(), (size <= most) & (milli <= share)) | (need == 0)
        hopeful &= (cpu <= fleet.cpu_free[rows].max()) & (ram <= fleet.ram_free[rows].max())
        left = np.flatnonzero(hopeful)
        step = max(_CELLS // max(len(left), 1), 1)
        for start in range(0, len(rows), step):
            left = left[~fits[left]]
            these = slice(start, start + step)
            fits[left] = self._room(fleet, lines[:, left], rows[these], parts[these], idle[these]).any(1)
        return fits

    def _room(self, fleet: Fleet, lines: Ints, rows: Ints, parts: Bools, idle: Bools) -> Bools:
        """For each line and row whether there is room."""
        need, whole, cpu, ram, size, milli = lines[:, :, None]
        count = np.zeros((len(need), len(rows)), np.int16)
        for column in range(parts.shape[1]):  # a few; the arrays are of all lines
            if parts[:, column].any():
                there = (fleet.bytes_free[rows, column] >= size) & (fleet.milli_free[rows, column] >= milli)
                there &= parts[:, column] & (whole == 0)
                count += there
            if idle[:, column].any():
                count += idle[:, column] & (whole > 0)
        room: Bools = (count >= need) & (fleet.cpu_free[rows] >= cpu) & (fleet.ram_free[rows] >= ram)
        return room

    def _add_line(self, slot: int, member: int, key: int, shape: Shape) -> None:
        if self._used == self._lines.shape[1]:
            self._lines = _grown(self._lines, max(64, 2 * self._used))
        self._lines[:, self._used] = (
            slot, member, key, shape.count, shape.whole, shape.cpu_milli, shape.ram_bytes, shape.memory_bytes,
            shape.compute_milli,
        )  # fmt: skip
        self._used += 1

    def _new_slot(self) -> int:
        slot = len(self.kinds)
        self.kinds.append(None)
        if slot == len(self.alive):
            more = max(64, 2 * slot)
            self.alive, self.stale = _grown(self.alive, more), _grown(self.stale, more)
            self.gang = _grown(self.gang, more)
            self.duration, self.members = _grown(self.duration, more), _grown(self.members, more)
        return slot


def _grown(old: NDArray[Any], length: int) -> NDArray[Any]:
    new = np.zeros((*old.shape[:-1], length), old.dtype)
    new[..., : old.shape[-1]] = old
    return new

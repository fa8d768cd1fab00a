"""How much a placement fragments the fleet: the expected loss of what is still to come.

A node is worth to a class of tasks what it could still hold of it: as many as its CPU, its RAM and each
of its devices have room for, so that CPU and RAM fragment a fleet as devices do. What is lost to the
class is the free share of its devices, less that share raised by how much of it the class could use;
the power of an eighth makes the last member that fits count for more than one of many. A placement's
fragmentation is the loss after it, less the loss before, over the classes by how often they come; after
Weng et al., "Beware of Fragmentation", USENIX ATC 2023. Onto this comes what the cut of a device wastes
(``packing``), which counts so much that the former decides among cuts that are as good as each other.

Amounts are whole numbers in float64, which adds and divides them the same way on every machine.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hal.scheduler.core.facts import WHOLE_MILLI
from hal.scheduler.core.fleet import Fleet
from hal.scheduler.core.mix import Expected, extent
from hal.scheduler.core.packing import WORTH, worth_of_rests
from hal.scheduler.core.shape import Shape

__all__ = ["Scores"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_STEPS = 1024  # how finely the used part of a node is told apart
_GAIN = 4096
_GAINS: Floats = np.array(
    [round(_GAIN * math.sqrt(math.sqrt(math.sqrt(i / _STEPS)))) for i in range(_STEPS + 1)], float
)
_NOTHING = 1e-6  # divides instead of 0: what needs none of something is not limited by it
_MOST = 4096.0  # no more than so many of a class are counted on one device
_TOO_MUCH = 1e6
_WASTE = 10.0  # how much more a wasteful cut counts than the expected loss


class Scores:
    """The loss of each node under one expectation, kept until the node changes."""

    def __init__(self, fleet: Fleet, expected: tuple[Expected, ...]) -> None:
        shapes = [one.shape for one in expected]
        self.fleet = fleet
        self.count = np.array([shape.count for shape in shapes], float)
        self.scarcity = _scarcity(fleet, expected)
        # By how often it comes, and by the roots of its size and of how few devices suit it, lest those
        # that are hard to place are the first to be turned away.
        self.weight = np.array(
            [
                round(one.weight * math.sqrt(extent(one.shape) * math.sqrt(math.sqrt(1 << max(scarcity, 0)))))
                for one, scarcity in zip(expected, self.scarcity, strict=True)
            ],
            float,
        )
        self.whole = np.array([shape.whole for shape in shapes], bool)
        self.cpu = np.array([shape.cpu_milli or _NOTHING for shape in shapes])
        self.ram = np.array([shape.ram_bytes or _NOTHING for shape in shapes])
        self.milli = np.array([shape.compute_milli or _NOTHING for shape in shapes])
        self.bytes = np.array([shape.memory_bytes or _NOTHING for shape in shapes])
        self.by_bytes = fleet.has_memory
        self.full = float(self.weight.sum()) * _GAIN
        self.expected = expected
        self.masks = [fleet.mask(one.eligible) for one in expected]
        self.partial = _partial(fleet, expected)
        rows = len(fleet.cpu_free)
        self.size = fleet.there.shape
        self.known: Ints = np.full(rows, -1, np.int64)  # the tick at which a row was worked out
        self.room: NDArray[np.float32] = np.zeros((rows, len(shapes)), np.float32)  # members its devices hold
        self.share: Floats = np.zeros(rows)  # the free share of its devices
        self.loss: Floats = np.zeros(rows)
        self._worth: dict[int, Floats] = {}
        self._sizes: dict[int, Floats] = {}

    def hold(self, fleet: Fleet, expected: tuple[Expected, ...]) -> bool:
        """Whether these are scores of this expectation, and of a fleet that is much the same."""
        return (
            self.expected is expected
            and self.size == fleet.there.shape
            and self.by_bytes == fleet.has_memory
            and self.scarcity == _scarcity(fleet, expected)
            and self.partial == _partial(fleet, expected)
        )

    # ---- nodes as they are ------------------------------------------------------------------

    def refresh(self, rows: Ints) -> None:
        """Work out those of the rows that have changed."""
        rows = rows[self.known[rows] < self.fleet.changed[rows]]
        if not len(rows):
            return
        fleet, width = self.fleet, self.size[1]
        each, columns = np.repeat(rows, width), np.tile(np.arange(width), len(rows))
        milli, size = (
            fleet.milli_free[each, columns].astype(float),
            fleet.bytes_free[each, columns].astype(float),
        )
        idle, part = fleet.idle[each, columns], fleet.sliceable[each, columns]
        room = self._room(each, columns, milli, size, idle, part)
        self.room[rows] = room.reshape(len(rows), width, -1).sum(1)
        self.share[rows] = fleet.share_free[rows].sum(1)
        self.loss[rows] = self._loss(
            rows, self.room[rows], self.share[rows], fleet.cpu_free[rows], fleet.ram_free[rows]
        )
        self.known[rows] = fleet.tick

    # ---- nodes as they would be -------------------------------------------------------------

    def fragmentation(self, shape: Shape, rows: Ints, columns: Ints) -> Floats:
        """What placing ``shape`` on these devices costs, in thousandths of a device.

        ``rows`` are nodes, one for each alternative, and ``columns`` the devices taken on each.
        """
        fleet = self.fleet
        self.refresh(_once(rows))
        cpu, ram = fleet.cpu_free[rows] - shape.cpu_milli, fleet.ram_free[rows] - shape.ram_bytes
        if not shape.count:
            after = self._loss(rows, self.room[rows], self.share[rows], cpu, ram)
            cost: Floats = (after - self.loss[rows]) / self.full
            return cost
        each, cells = np.repeat(rows, shape.count), columns.ravel()
        milli, size = fleet.milli_free[each, cells].astype(float), fleet.bytes_free[each, cells].astype(float)
        idle, part = fleet.idle[each, cells], fleet.sliceable[each, cells]
        room = self._room(each, cells, milli, size, idle, part)
        share = fleet.share_free[each, cells].astype(float)
        if shape.whole:
            room_left, share_left = np.zeros_like(room), np.zeros_like(share)
        else:
            left, size_left, none = (
                milli - shape.compute_milli,
                size - shape.memory_bytes,
                np.zeros_like(idle),
            )
            room_left = self._room(each, cells, left, size_left, none, part)
            share_left = self._share(each, cells, left, size_left)
        members = (len(rows), shape.count)
        change = (room_left - room).reshape(*members, -1).sum(1)
        less = (share_left - share).reshape(members).sum(1)
        after = self._loss(rows, self.room[rows] + change, self.share[rows] + less, cpu, ram)
        cost = (after - self.loss[rows]) / self.full
        if not shape.whole:
            waste = self._waste(shape, each, cells, share, share_left)
            cost += waste.reshape(members).sum(1)
        return cost

    def looks(self, shape: Shape, rows: Ints | slice, cells: NDArray[np.bool_]) -> Ints:
        """About what the cut of the best of these cells wastes on some nodes, in 1e-5 devices."""
        fleet = self.fleet
        waste = np.full((max(len(fleet.kinds), 1), WHOLE_MILLI + 1), np.inf)
        for kind in fleet.kinds_there():
            worth, size = self._worth_on(kind), _size(shape, fleet.kinds[kind])
            waste[kind, size:] = worth[size:] - worth[: WHOLE_MILLI + 1 - size] - worth[size]
        counts = (100 * np.minimum(waste * (_WASTE * WHOLE_MILLI / WORTH), _TOO_MUCH)).astype(np.int32)
        # Column by column, and without a branch for each cell: this is asked of every device of the fleet.
        lost = counts.take(fleet.rest[rows].T, mode="clip")
        lost |= (~cells.T).astype(np.int32) << 27
        least: Ints = np.minimum(lost.min(0), int(100 * _TOO_MUCH)).astype(np.int64)
        return least

    # ---- inside -----------------------------------------------------------------------------

    def _waste(self, shape: Shape, rows: Ints, columns: Ints, share: Floats, left: Floats) -> Floats:
        """What the cut of each device wastes, in thousandths of a device, as much as it is to count."""
        kinds = self.fleet.kind[rows, columns]
        lost = np.zeros(len(rows))
        for kind in np.flatnonzero(np.bincount(kinds)):
            these = kinds == kind
            worth = self._worth_on(int(kind))
            size = _size(shape, self.fleet.kinds[kind])
            lost[these] = (
                worth[share[these].astype(np.int64)] - worth[left[these].astype(np.int64)] - worth[size]
            )
        return lost * (_WASTE * WHOLE_MILLI / WORTH)

    def _share(self, rows: Ints, columns: Ints, milli: Floats, size: Floats) -> Floats:
        """The free share of devices with so much free: of compute or of memory, whichever is less."""
        if not self.by_bytes:
            return milli
        total = self.fleet.bytes_total[rows, columns]
        of_bytes = np.floor(size * WHOLE_MILLI / np.maximum(total, 1))
        share: Floats = np.where(total > 0, np.minimum(milli, of_bytes), milli)
        return share

    def _room(
        self,
        rows: Ints,
        columns: Ints,
        milli: Floats,
        size: Floats,
        idle: NDArray[np.bool_],
        part: NDArray[np.bool_],
    ) -> Floats:
        """How many members of each class devices with so much free have room for."""
        room: Floats = milli[:, None] / self.milli
        if self.by_bytes:
            np.minimum(room, size[:, None] / self.bytes, out=room)
        np.minimum(room, _MOST, out=room)
        np.floor(room, out=room)
        usable = self.fleet.usable[rows, columns]
        room *= (part & usable)[:, None]
        room[:, self.whole] = (idle & usable)[:, None]
        for column in self.partial:
            mask = self.masks[column]
            room[:, column] *= 0.0 if mask is None else mask.devices[rows, columns]
        return room

    def _loss(self, rows: Ints, room: NDArray[np.floating], share: Floats, cpu: Ints, ram: Ints) -> Floats:
        host = np.minimum(cpu[:, None] / self.cpu, ram[:, None] / self.ram)
        fits = np.minimum(np.floor(room / self.count), host)
        fits *= host >= 1.0
        fits *= self._needs(rows)
        np.minimum(fits, share[:, None], out=fits)
        fits *= (_STEPS / np.maximum(share, 1.0))[:, None]
        gains = _GAINS[fits.astype(np.int16)]
        loss: Floats = share * (
            self.full - gains @ self.weight
        )  # whole numbers, exact in any order of adding
        return loss

    def _needs(self, rows: Ints) -> Floats:
        """The share that one member of each class takes; a node's devices count as like the first."""
        if not self.by_bytes:
            return self._needs_on(0)
        kinds = self.fleet.kind[rows, 0]
        needs: Floats = np.stack([self._needs_on(kind) for kind in range(len(self.fleet.kinds))])[kinds]
        return needs

    def _needs_on(self, kind: int) -> Floats:
        if kind not in self._sizes:
            total = self.fleet.kinds[kind] if self.by_bytes else 0
            sizes = [WHOLE_MILLI if s.whole else _size(s, total) for s in (e.shape for e in self.expected)]
            needs: Floats = self.count * np.array(sizes, float)
            self._sizes[kind] = needs
        return self._sizes[kind]

    def _worth_on(self, kind: int) -> Floats:
        if kind not in self._worth:
            total, demand = self.fleet.kinds[kind], dict[int, float]()
            for one in self.expected:
                if not one.shape.whole and one.shape.memory_bytes <= total:
                    size = _size(one.shape, total)
                    demand[size] = demand.get(size, 0.0) + one.weight * one.shape.count
            self._worth[kind] = worth_of_rests(demand)
        return self._worth[kind]


def _once(rows: Ints) -> Ints:
    """Rows that are in order, each once."""
    first = np.ones(len(rows), bool)
    np.not_equal(rows[1:], rows[:-1], out=first[1:])
    return rows[first]


def _scarcity(fleet: Fleet, expected: tuple[Expected, ...]) -> tuple[int, ...]:
    """For each class, of how many devices one suits it, in quarter powers of two; -1 if that is not known."""
    masks = (fleet.mask(one.eligible) for one in expected)
    devices = max(len(fleet.cell_of), 1)
    return tuple(
        -1 if mask is None else (devices**4 // max(mask.members, 1) ** 4).bit_length() - 1 for mask in masks
    )


def _partial(fleet: Fleet, expected: tuple[Expected, ...]) -> tuple[int, ...]:
    """Which classes do not want all devices, or are not known to."""
    masks = (fleet.mask(one.eligible) for one in expected)
    devices = len(fleet.cell_of)
    return tuple(n for n, mask in enumerate(masks) if mask is None or mask.members < devices)


def _size(shape: Shape, total: int) -> int:
    """The share of a device with ``total`` bytes that a part takes, in milli-shares."""
    of_bytes = -(-shape.memory_bytes * WHOLE_MILLI // total) if total else 0
    return min(max(shape.compute_milli, of_bytes), WHOLE_MILLI)

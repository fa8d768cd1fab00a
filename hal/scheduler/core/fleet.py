"""Nodes and devices as columns of integers, and what is taken of them.

A node is a row, a device a cell in it: its own free bytes and its own free compute, never a sum over
devices. What is taken is booked by id, so that a node which leaves and joins again, or whose facts
change, still has booked what its leases hold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from hal.scheduler.core.facts import WHOLE_MILLI, DeviceFacts, NodeFacts
from hal.scheduler.core.masks import EVERYTHING, Eligible, Masks, always, grown
from hal.scheduler.core.shape import NoRoomError, Shape, Spot

__all__ = ["Fleet", "NoRoomError", "Shape", "Spot"]

# A driver's own share shows as used on some cards; more than this is somebody's program.
_DRIVERS_OWN = 1 << 30


class _Use(Struct):
    """What leases hold of a device (``bytes``, ``milli``) or of a node (RAM, CPU)."""

    bytes: int = 0
    milli: int = 0
    holders: int = 0
    whole: int = 0  # of the holders, those that hold all of it


_NO_USE = _Use()
_TOUCHES = 256  # changes that are known in their order


class _Derived(Struct):
    """What the columns have of a device: a write to one costs more than to work out all of them."""

    usable: bool = False
    idle: bool = False
    sliceable: bool = False
    bytes_free: int = 0
    milli_free: int = 0
    share_free: int = -1  # with this one goes ``rest``, which is of another kind


def _differs_in_use_only(before: NodeFacts, node: NodeFacts) -> bool:
    """Whether the node is as it was, but for how much of its devices is in use from outside."""
    if len(before.devices) != len(node.devices):
        return False
    devices = tuple(
        new if old == new else replace(new, outside_bytes=old.outside_bytes)
        for old, new in zip(before.devices, node.devices, strict=True)
    )
    return replace(node, devices=devices) == before


# Of each row, or of each cell, beside CPU and RAM.
_COLUMNS = (
    "cpu_total",
    "ram_total",
    "changed",
    "milli_left",
    "there",
    "usable",
    "idle",
    "slices",
    "sliceable",
    "bytes_free",
    "milli_free",
    "share_free",
    "bytes_total",
    "micros",
    "kind",
    "rest",
    "group",
)


class Fleet:
    """All nodes. Rows are numbered in the order of joining; one that has left is used again."""

    def __init__(self) -> None:
        self.facts: list[NodeFacts | None] = []
        self.row_of: dict[str, int] = {}
        self.cell_of: dict[str, tuple[int, int]] = {}
        self.gained: set[int] = set()  # rows with more room than when this was last emptied
        self.tick = 0  # rises with every change
        self.layout = 0  # rises when nodes or their facts change
        self.cpu_free: NDArray[np.int64] = np.zeros(0, np.int64)
        self.ram_free: NDArray[np.int64] = np.zeros(0, np.int64)
        self.cpu_total: NDArray[np.int64] = np.zeros(0, np.int64)
        self.ram_total: NDArray[np.int64] = np.zeros(0, np.int64)
        self.milli_left: NDArray[np.int64] = np.zeros(0, np.int64)  # on all devices: to compare nodes by only
        self.changed: NDArray[np.int64] = np.zeros(0, np.int64)  # the tick of each row's last change
        self.there: NDArray[np.bool_] = np.zeros((0, 0), bool)  # a device is in this cell
        self.usable: NDArray[np.bool_] = np.zeros((0, 0), bool)
        self.idle: NDArray[np.bool_] = np.zeros((0, 0), bool)  # can be taken whole
        self.slices: NDArray[np.bool_] = np.zeros((0, 0), bool)  # a part of it can be held to its limit
        self.sliceable: NDArray[np.bool_] = np.zeros((0, 0), bool)  # and it is not taken whole
        self.bytes_free: NDArray[np.int64] = np.zeros((0, 0), np.int64)
        self.milli_free: NDArray[np.int64] = np.zeros((0, 0), np.int64)
        self.share_free: NDArray[np.int64] = np.zeros((0, 0), np.int64)  # the lesser of both, in thousandths
        self.bytes_total: NDArray[np.int64] = np.zeros((0, 0), np.int64)
        self.micros: NDArray[np.int64] = np.zeros((0, 0), np.int64)  # price per hour
        self.kind: NDArray[np.int64] = np.zeros((0, 0), np.int64)  # where its memory is in `kinds`
        # Both in one number, for tables by kind and free share.
        self.rest: NDArray[np.int32] = np.zeros((0, 0), np.int32)
        self.group: NDArray[np.int64] = np.zeros((0, 0), np.int64)  # on one node, those that are close
        self.kinds: list[int] = []  # how much memory devices have
        self.masks = Masks(self.facts)
        self.memo: dict[Hashable, Any] = {}  # what placement keeps between two calls
        self._touched: deque[int] = deque(maxlen=_TOUCHES)
        self._ranks: NDArray[np.int64] | None = None
        self._kinds_there: tuple[int, tuple[int, ...]] = (-1, ())  # at which layout, and they
        self._top_price = (-1, 0)  # at which layout, and the price
        self._vacant: list[int] = []
        self._unusable: set[str] = set()
        self._nodes_use: dict[str, _Use] = {}
        self._devices_use: dict[str, _Use] = {}
        self._derived: dict[str, _Derived] = {}  # what the columns have of each device that is there
        self._undo: list[tuple[Callable[[Spot], None], Spot]] | None = None
        self.everything = self.select(EVERYTHING)

    # ---- nodes ------------------------------------------------------------------------------

    def join(self, node: NodeFacts) -> None:
        """Add a node, or say what a known one is now. What leases hold of it stays booked.

        ValueError: a device of it is known as another node's, or is named twice.
        """
        named = {device.id for device in node.devices}
        if len(named) < len(node.devices):
            raise ValueError(f"node '{node.id}' names a device twice")
        row = self.row_of.get(node.id, -1)
        for name in sorted(named):
            if self.cell_of.get(name, (row, 0))[0] != row:
                raise ValueError(f"device '{name}' is on another node than '{node.id}'")
        if row < 0:
            row = self._vacant.pop(0) if self._vacant else self._add_row()
            self.row_of[node.id] = row
            self._ranks = None
        elif (before := self.facts[row]) is not None and _differs_in_use_only(before, node):
            self.facts[row] = node  # no selector and no total asks for it: what is kept stays true
            for column, device in enumerate(node.devices):
                self._derive_device(row, column, device)
            self._derive_node(row, node)
            self.gained.add(row)
            return
        self._clear(row)
        self._widen(len(node.devices))
        self.facts[row] = node
        groups: dict[str | int | None, int] = {}
        for column, device in enumerate(node.devices):
            self.cell_of[device.id] = (row, column)
            close = device.numa_node if device.fabric is None else device.fabric
            self.group[row, column] = groups.setdefault(close, len(groups))
            if device.memory_bytes not in self.kinds:
                self.kinds.append(device.memory_bytes)
            self.kind[row, column] = self.kinds.index(device.memory_bytes)
            self.there[row, column] = True
            self.bytes_total[row, column] = device.memory_bytes
            self.micros[row, column] = device.micros_per_hour
            self.slices[row, column] = device.holds_slices
            self._derive_device(row, column, device)
        self.cpu_total[row], self.ram_total[row] = node.cpu_milli, node.ram_bytes
        self._derive_node(row, node)
        self.gained.add(row)
        self.layout += 1
        self.masks.fill(row, node)

    update = join

    def leave(self, node_id: str) -> None:
        """Forget a node's facts; what leases hold of it stays booked until it is given back."""
        row = self.row_of.pop(node_id)
        self._ranks = None
        self._clear(row)
        self.facts[row] = None
        for host in (self.cpu_free, self.ram_free, self.cpu_total, self.ram_total):
            host[row] = -1  # not even an empty shape fits
        self.masks.fill(row, None)
        self._vacant.append(row)
        self._vacant.sort()
        self.layout += 1
        self._touch(row)

    def set_usable(self, device_id: str, usable: bool) -> None:
        """Whether new slices may be placed on a device (drain, cordon, fault). Known or not yet known."""
        if usable:
            self._unusable.discard(device_id)
        else:
            self._unusable.add(device_id)
        if device_id in self.cell_of:
            row, column = self.cell_of[device_id]
            facts = self.device(device_id)
            assert facts is not None
            self._derive_device(row, column, facts)
            self._touch(row)
            if usable and self._undo is None:
                self.gained.add(row)

    def device(self, device_id: str) -> DeviceFacts | None:
        if device_id not in self.cell_of:
            return None
        row, column = self.cell_of[device_id]
        node = self.facts[row]
        assert node is not None
        return node.devices[column]

    # ---- what is taken ----------------------------------------------------------------------

    def take(self, spot: Spot) -> None:
        """Book a spot. NoRoomError when not all of it is free, and then nothing is booked."""
        self._check(spot)
        self.adopt(spot)

    def adopt(self, spot: Spot) -> None:
        """Book a spot that is in use already, whatever else is: what a holder reports after a restart."""
        self._book(spot, 1)
        if self._undo is not None:
            self._undo.append((self._unbook, spot))

    def give(self, spot: Spot) -> None:
        """End a booking. ValueError when there is none, and then nothing changes."""
        for device in spot.devices:
            use = self._devices_use.get(device, _NO_USE)
            wrong = use.whole < 1 if spot.shape.whole else use.holders - use.whole < 1
            if wrong or use.bytes < spot.shape.memory_bytes * (not spot.shape.whole):
                raise ValueError(f"device '{device}' is not held by such a slice")
        host = self._nodes_use.get(spot.node, _NO_USE)
        if host.holders < 1 or host.milli < spot.shape.cpu_milli or host.bytes < spot.shape.ram_bytes:
            raise ValueError(f"node '{spot.node}' is not held by such a slice")
        self._unbook(spot)
        if self._undo is not None:
            self._undo.append((self.adopt, spot))
        else:
            if (row := self.row_of.get(spot.node)) is not None:
                self.gained.add(row)
            for device in spot.devices:  # of a node that has left, another may have them
                if device in self.cell_of:
                    self.gained.add(self.cell_of[device][0])

    @contextmanager
    def trial(self) -> Iterator[None]:
        """What is taken and given inside is undone at its end: for searches of what could be."""
        outer, self._undo = self._undo, []
        try:
            yield
        finally:
            steps, self._undo = self._undo, []
            for step, spot in reversed(steps):
                step(spot)
            self._undo = outer

    def copy(self) -> Fleet:
        """A fleet of its own with the same nodes and bookings."""
        other = Fleet()
        for node in self.facts:
            if node is not None:
                other.join(node)
        for spot_use, mine in ((other._nodes_use, self._nodes_use), (other._devices_use, self._devices_use)):
            for key, use in mine.items():
                spot_use[key] = _Use(use.bytes, use.milli, use.holders, use.whole)
        other._unusable = set(self._unusable)
        for node in other.facts:
            assert node is not None
            row = other.row_of[node.id]
            for column, device in enumerate(node.devices):
                other._derive_device(row, column, device)
            other._derive_node(row, node)
        for mask in self.masks:
            other.select(mask.key, mask.device, mask.node)
        return other

    # ---- selectors --------------------------------------------------------------------------

    def select(
        self,
        key: str,
        device: Callable[[DeviceFacts], bool] = always,
        node: Callable[[NodeFacts], bool] = always,
    ) -> Eligible:
        """The mask of the devices for which ``device`` holds, on nodes for which ``node`` holds.

        ``key`` stands for the pair: the same key gets the kept mask, and asks neither again.
        """
        return self.masks.select(key, device, node)

    def mask(self, key: str) -> Eligible | None:
        """The kept mask of a selector, if there is one."""
        return self.masks.get(key)

    def ranks(self) -> NDArray[np.int64]:
        """Each row's place among the node ids: what decides between equals, whatever joined first."""
        if self._ranks is None or len(self._ranks) != len(self.cpu_free):
            self._ranks = np.zeros(len(self.cpu_free), np.int64)
            self._ranks[[self.row_of[node] for node in sorted(self.row_of)]] = np.arange(len(self.row_of))
        return self._ranks

    def kinds_there(self) -> tuple[int, ...]:
        """Which sizes of memory there are, as numbers in ``kinds``."""
        if self._kinds_there[0] != self.layout:
            there = np.flatnonzero(np.bincount(self.kind[self.there], minlength=1)[: len(self.kinds)])
            self._kinds_there = (self.layout, tuple(there.tolist()))
        return self._kinds_there[1]

    @property
    def has_memory(self) -> bool:
        """Some device of those that are there has memory that is counted."""
        return any(self.kinds[kind] for kind in self.kinds_there())

    def top_price(self) -> int:
        """The highest price per hour of a device, in millionths."""
        if self._top_price[0] != self.layout:
            self._top_price = (self.layout, int(self.micros.max(initial=0)))
        return self._top_price[1]

    def changed_since(self, tick: int) -> Collection[int]:
        """The rows that have changed since then."""
        if (count := self.tick - tick) <= len(self._touched):
            return dict.fromkeys(islice(reversed(self._touched), count))
        rows: list[int] = (self.changed > tick).nonzero()[0].tolist()
        return rows

    def state(self, row: int) -> bytes:
        """All of a node that changes while its facts do not: the same bytes are the same state."""
        return b"".join(
            (
                self.bytes_free[row].tobytes(),
                self.milli_free[row].tobytes(),
                self.usable[row].tobytes(),
                self.idle[row].tobytes(),
                self.sliceable[row].tobytes(),
                self.cpu_free[row].tobytes(),
                self.ram_free[row].tobytes(),
            )
        )

    # ---- inside -----------------------------------------------------------------------------

    def _check(self, spot: Spot) -> None:
        shape = spot.shape
        row = self.row_of.get(spot.node)
        if row is None:
            raise NoRoomError(f"there is no node '{spot.node}'")
        if len(set(spot.devices)) != shape.count or len(spot.devices) != shape.count:
            raise NoRoomError(
                f"{shape.count} different devices are needed, and {len(spot.devices)} are named"
            )
        if shape.cpu_milli > self.cpu_free[row] or shape.ram_bytes > self.ram_free[row]:
            raise NoRoomError(f"node '{spot.node}' has not so much CPU or RAM free")
        for device in spot.devices:
            if self.cell_of.get(device, (-1, 0))[0] != row:
                raise NoRoomError(f"node '{spot.node}' has no device '{device}'")
            cell = self.cell_of[device]
            fits = (
                self.idle[cell]
                if shape.whole
                else self.sliceable[cell]
                and shape.memory_bytes <= self.bytes_free[cell]
                and shape.compute_milli <= self.milli_free[cell]
            )
            if not (fits and self.usable[cell]):
                raise NoRoomError(f"device '{device}' has not so much free")

    def _unbook(self, spot: Spot) -> None:
        self._book(spot, -1)

    def _book(self, spot: Spot, sign: int) -> None:
        shape = spot.shape
        host = self._nodes_use.get(spot.node) or self._nodes_use.setdefault(spot.node, _Use())
        host.bytes += sign * shape.ram_bytes
        host.milli += sign * shape.cpu_milli
        host.holders += sign
        if not host.holders:
            del self._nodes_use[spot.node]
        for device in spot.devices:
            use = self._devices_use.get(device) or self._devices_use.setdefault(device, _Use())
            use.holders += sign
            if shape.whole:
                use.whole += sign
            else:
                use.bytes += sign * shape.memory_bytes
                use.milli += sign * shape.compute_milli
            if not use.holders:
                del self._devices_use[device]
            if device in self.cell_of:
                row, column = self.cell_of[device]
                facts = self.facts[row]
                assert facts is not None
                self._derive_device(row, column, facts.devices[column])
        if spot.node in self.row_of:
            row = self.row_of[spot.node]
            node = self.facts[row]
            assert node is not None
            if shape.cpu_milli or shape.ram_bytes:
                self._derive_node(row, node)
            else:
                self._touch(row)

    def _derive_device(self, row: int, column: int, device: DeviceFacts) -> None:
        use = self._devices_use.get(device.id, _NO_USE)
        outside = device.memory_bytes if device.outside_bytes is None else device.outside_bytes
        unused = device.outside_bytes is not None and outside <= max(device.memory_bytes // 20, _DRIVERS_OWN)
        shared = not device.holds_slices  # a host, whose memory others always use
        usable = device.id not in self._unusable
        idle = not use.holders and (unused or shared)
        size = 0 if use.whole else max(device.memory_bytes - outside - use.bytes, 0)
        milli = 0 if use.whole else max(WHOLE_MILLI - use.milli, 0)
        share = milli
        if shared:
            share = WHOLE_MILLI if idle else 0
        elif device.memory_bytes:
            share = min(milli, size * WHOLE_MILLI // device.memory_bytes)
        sliceable, share = device.holds_slices and not use.whole, share if usable else 0
        there, cell = self._derived.get(device.id), (row, column)
        if there is None:
            there = self._derived[device.id] = _Derived()
        if there.usable != usable or there.idle != idle or there.sliceable != sliceable:
            there.usable, there.idle, there.sliceable = usable, idle, sliceable
            self.usable[cell], self.idle[cell], self.sliceable[cell] = usable, idle, sliceable
        if there.bytes_free != size:
            self.bytes_free[cell] = there.bytes_free = size
        if there.milli_free != milli:
            self.milli_left[row] += milli - there.milli_free
            self.milli_free[cell] = there.milli_free = milli
        if there.share_free != share:
            self.share_free[cell] = there.share_free = share
            self.rest[cell] = self.kind.item(cell) * (WHOLE_MILLI + 1) + share

    def _derive_node(self, row: int, node: NodeFacts) -> None:
        use = self._nodes_use.get(node.id, _NO_USE)
        self.cpu_free[row] = max(node.cpu_milli - use.milli, 0)
        self.ram_free[row] = max(node.ram_bytes - use.bytes, 0)
        self._touch(row)

    def _touch(self, row: int) -> None:
        self.tick += 1
        self.changed[row] = self.tick
        self._touched.append(row)

    def _clear(self, row: int) -> None:
        old = self.facts[row]
        for device in old.devices if old else ():
            del self.cell_of[device.id], self._derived[device.id]
        for cells in (self.there, self.usable, self.idle, self.slices, self.sliceable):
            cells[row] = False
        for amounts in (
            self.bytes_free,
            self.milli_free,
            self.share_free,
            self.bytes_total,
            self.micros,
            self.kind,
            self.group,
            self.rest,
            self.milli_left,
        ):
            amounts[row] = 0

    def _add_row(self) -> int:
        row = len(self.facts)
        self.facts.append(None)
        if row >= len(self.cpu_free):
            self._resize(max(64, 2 * row), max(self.there.shape[1], 1))
        return row

    def _widen(self, width: int) -> None:
        if width > self.there.shape[1]:
            self._resize(len(self.cpu_free), max(width, 1))

    def _resize(self, rows: int, width: int) -> None:
        shape = (rows, width)
        self.masks.resize(shape)
        for name in ("cpu_free", "ram_free"):
            setattr(self, name, grown(getattr(self, name), shape, -1))
        for name in _COLUMNS:
            setattr(self, name, grown(getattr(self, name), shape))

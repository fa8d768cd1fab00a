"""A sample on its way from worker to parent: what is the same on every tick is sent once.

Of a reading only value, time and, where it is not well, status and detail change from tick to tick. The
rest of all readings of a sample is its shape, which the worker numbers and the parent keeps.
"""

from __future__ import annotations

import time
from itertools import chain, repeat
from typing import Any

from msgspec import Struct

from hal.backend import Readings, Table
from hal.model import Reading, Scope, Status

__all__ = ["Packed", "Packer", "Unpacker"]

_MOST = 64  # shapes; a caller that asks in ever new ways has them forgotten


class Fixed(Struct, frozen=True, array_like=True, gc=False):
    """What never changes of one reading."""

    subject: str
    name: str
    unit: str
    scope: Scope
    labels: dict[str, str]
    source: str


class Packed(Struct, frozen=True, array_like=True):
    """One sample. ``plain`` are readings that were not read through a Table."""

    shape: int
    fixed: list[Fixed] | None  # None: the parent has the shape
    values: list[int | float | None]
    times: list[float]
    odd: list[tuple[int, Status, str]]  # by place: those whose status is not ok
    plain: list[Reading]


class Packer:
    """The worker's side."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[tuple[Table, str], ...], int] = {}
        self._next = time.monotonic_ns()  # no worker numbers as an earlier one on the same socket did

    def pack(self, readings: list[Reading], known: list[int]) -> Packed:
        """``known`` are the shapes that the parent has."""
        if not isinstance(readings, Readings) or sum(len(b.values) for b in readings.blocks) != len(readings):
            return Packed(-1, None, [], [], [], readings)
        key = tuple((block.table, block.subject) for block in readings.blocks)
        number = self._numbers.get(key)
        if number is None:
            if len(self._numbers) >= _MOST:
                self._numbers.clear()
            number = self._numbers[key] = self._next
            self._next += 1
        fixed = None if number in known else [
            Fixed(r.subject, r.name, r.unit, r.scope, r.labels, r.source) for r in readings
        ]  # fmt: skip
        values = list(chain.from_iterable(block.values for block in readings.blocks))
        times = list(chain.from_iterable(block.times for block in readings.blocks))
        odd, first = [], 0
        for block in readings.blocks:
            odd += [(first + place, status, detail) for place, status, detail in block.odd]
            first += len(block.values)
        return Packed(number, fixed, values, times, odd, [])


class Unpacker:
    """The parent's side."""

    def __init__(self) -> None:
        self._shapes: dict[int, tuple[Any, ...]] = {}

    @property
    def known(self) -> list[int]:
        return list(self._shapes)

    def unpack(self, packed: Packed) -> list[Reading]:
        """Raises ValueError for what no sound worker sends."""
        if packed.shape < 0:
            return packed.plain
        if packed.fixed is not None:
            if len(self._shapes) >= _MOST:
                self._shapes.clear()
            rows = [(f.subject, f.name, f.unit, f.scope, f.labels, f.source) for f in packed.fixed]
            self._shapes[packed.shape] = tuple(zip(*rows, strict=True)) or ((),) * 6
        shape = self._shapes.get(packed.shape)
        if shape is None or not len(shape[0]) == len(packed.values) == len(packed.times):
            raise ValueError("a sample of another shape than it says")
        subjects, names, units, scopes, labels, sources = shape
        statuses, details = [Status.OK] * len(names), [""] * len(names)
        for place, status, detail in packed.odd:
            statuses[place], details[place] = status, detail
        return list(
            map(Reading, subjects, names, packed.values, units, statuses, scopes, labels,
                repeat(None), packed.times, sources, details)
        )  # fmt: skip

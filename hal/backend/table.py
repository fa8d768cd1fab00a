"""Sampling as a table: one row per call of a vendor's library, one reading per figure that it gives.

A backend states its rows; this file calls them by the deadline and makes the readings. One failing call
is a status of its figures, not an exception: the others still have to be read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any, NamedTuple, Self

from hal.backend.contract import Cost, Group
from hal.model import Reading, Scope, Status

__all__ = ["LATE", "Answer", "Block", "Call", "Figure", "Readings", "Table", "Value", "read_table"]


class Value(NamedTuple):
    """One figure, or why there is none."""

    value: float | int | None
    status: Status = Status.OK
    detail: str = ""


# What a row gives for a figure: a plain number is one that is there.
Answer = Value | int | float

_OK = Status.OK  # looked up once: this file runs on every tick
LATE = Value(None, Status.STALE, "not reached before the deadline")


class Figure(NamedTuple):
    """What a value is, in the words of hal.telemetry.catalogue."""

    name: str
    unit: str
    labels: dict[str, str] = {}  # noqa: RUF012 - every reading has this very one: not to be changed


class Call(NamedTuple):
    """A row: ``read(library, handle)`` gives one answer for each figure, in their order."""

    group: Group
    source: str
    scope: Scope
    figures: tuple[Figure, ...]
    read: Callable[[Any, Any], Sequence[Answer]]
    cost: Cost = Cost.FAST


class Block(NamedTuple):
    """The columns that one device's readings were made from."""

    table: Table
    subject: str
    values: list[Any]
    times: list[float]
    odd: list[tuple[int, Status, str]]  # by place: those whose status is not ok


class Readings(list[Reading]):
    """Readings that know their columns, for whoever sends them on without looking at each.

    ``+=`` keeps them; after any other change the columns do not count as many as the list does.
    """

    def __init__(self, readings: Iterable[Reading] = (), blocks: Iterable[Block] = ()) -> None:
        super().__init__(readings)
        self.blocks = list(blocks)

    def __iadd__(self, others: Iterable[Reading]) -> Self:  # type: ignore[override, misc]
        if isinstance(others, Readings):
            self.blocks += others.blocks
        self.extend(others)
        return self


class Table:
    """Rows that are read again and again: what of their readings never changes is laid out once."""

    def __init__(self, calls: Iterable[Call]) -> None:
        self.calls = tuple(calls)
        self._reads = [(call.read, len(call.figures)) for call in self.calls]
        rows = [(call, figure) for call in self.calls for figure in call.figures]
        self._names = [figure.name for _, figure in rows]
        self._units = [figure.unit for _, figure in rows]
        self._scopes = [call.scope for call, _ in rows]
        self._labels = [figure.labels for _, figure in rows]
        self._sources = [call.source for call, _ in rows]

    def read(
        self,
        library: Any,
        handle: Any,
        subject: str,
        deadline: float,
        failed: Callable[[Exception], Value],
    ) -> Readings:
        """Readings of one device. ``failed`` puts into hal's words whatever a call raises.

        With an exception as ``handle`` nothing is called: that is why there is no handle.
        """
        values: list[Any] = []
        times: list[float] = []
        clock, late = time.monotonic, LATE  # this runs on every tick
        at = clock()
        since_1970 = time.time() - at
        if isinstance(handle, Exception):
            deadline, late = -math.inf, failed(handle)
        for read, count in self._reads:
            answers: Sequence[Answer]
            if at >= deadline:
                answers = (late,) * count
            else:
                try:
                    answers = read(library, handle)
                except Exception as failure:  # a stranger's code: anything may come out of it
                    answers = (failed(failure),) * count
                at = clock()
            if len(answers) != count:
                raise ValueError(f"a row of {count} figures gave {len(answers)} answers")
            values += answers
            times += [at + since_1970] * count
        statuses, details, odd = [_OK] * len(values), [""] * len(values), []
        for place, answer in enumerate(values):
            if answer.__class__ is Value:
                value, status, detail = answer
                values[place] = value
                if status is not _OK or detail:
                    statuses[place], details[place] = status, detail
                    odd.append((place, status, detail))
        readings = map(
            Reading, repeat(subject), self._names, values, self._units, statuses, self._scopes,
            self._labels, repeat(None), times, self._sources, details,
        )  # fmt: skip
        return Readings(readings, [Block(self, subject, values, times, odd)])


def read_table(
    calls: Iterable[Call],
    library: Any,
    handle: Any,
    subject: str,
    deadline: float,
    failed: Callable[[Exception], Value],
) -> Readings:
    """The same for rows that are read this once."""
    return Table(calls).read(library, handle, subject, deadline, failed)

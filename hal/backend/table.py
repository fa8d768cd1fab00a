"""Sampling as a table: one row per call of a vendor's library, one reading per figure that it gives.

A backend states its rows; this file calls them by the deadline and makes the readings. One failing call
is a status of its figures, not an exception: the others still have to be read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from hal.backend.contract import Cost, Group
from hal.model import Reading, Scope, Status

__all__ = ["LATE", "Call", "Figure", "Value", "read_table"]


class Value(NamedTuple):
    """One figure, or why there is none."""

    value: float | int | None
    status: Status = Status.OK
    detail: str = ""


LATE = Value(None, Status.STALE, "not reached before the deadline")


class Figure(NamedTuple):
    """What a value is, in the words of hal.telemetry.catalogue."""

    name: str
    unit: str
    labels: Mapping[str, str] = {}


class Call(NamedTuple):
    """A row: ``read(library, handle)`` gives one value for each figure, in their order."""

    group: Group
    source: str
    scope: Scope
    figures: tuple[Figure, ...]
    read: Callable[[Any, Any], tuple[Value, ...]]
    cost: Cost = Cost.FAST


def read_table(
    calls: Iterable[Call],
    library: Any,
    handle: Any,
    subject: str,
    deadline: float,
    failed: Callable[[Exception], Value],
) -> Iterator[Reading]:
    """Readings of one device. ``failed`` puts into hal's words whatever a call raises.

    With an exception as ``handle`` nothing is called: that is why there is no handle.
    """
    for call in calls:
        values: tuple[Value, ...]
        if isinstance(handle, Exception):
            values = (failed(handle),) * len(call.figures)
        elif time.monotonic() >= deadline:
            values = (LATE,) * len(call.figures)
        else:
            try:
                values = call.read(library, handle)
            except Exception as failure:  # a stranger's code: anything may come out of it
                values = (failed(failure),) * len(call.figures)
        now = time.time()
        for figure, (value, status, detail) in zip(call.figures, values, strict=True):
            yield Reading(
                subject=subject,
                name=figure.name,
                value=value,
                unit=figure.unit,
                status=status,
                scope=call.scope,
                labels=dict(figure.labels),
                time=now,
                source=call.source,
                detail=detail,
            )

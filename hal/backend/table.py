"""Sampling as a table: one row per call of a vendor's library, one reading per figure that it gives.

A backend states its rows; this file calls them by the deadline and makes the readings. One failing call
is a status of its figures, not an exception: the others still have to be read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from hal.backend.contract import Cost, Group
from hal.model import Reading, Scope, Status

__all__ = ["LATE", "Answer", "Call", "Figure", "Value", "read_table"]


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


def read_table(
    calls: Iterable[Call],
    library: Any,
    handle: Any,
    subject: str,
    deadline: float,
    failed: Callable[[Exception], Value],
) -> list[Reading]:
    """Readings of one device. ``failed`` puts into hal's words whatever a call raises.

    With an exception as ``handle`` nothing is called: that is why there is no handle.
    """
    readings: list[Reading] = []
    append, clock, now = readings.append, time.monotonic, time.time  # this runs on every tick
    if isinstance(handle, Exception):
        deadline, late = -math.inf, failed(handle)
    else:
        late = LATE
    for _, source, scope, figures, read, _ in calls:
        answers: Sequence[Answer]
        if clock() >= deadline:
            answers = (late,) * len(figures)
        else:
            try:
                answers = read(library, handle)
            except Exception as failure:  # a stranger's code: anything may come out of it
                answers = (failed(failure),) * len(figures)
        at = now()
        for (name, unit, labels), answer in zip(figures, answers, strict=True):
            if answer.__class__ is Value:
                value, status, detail = answer
                append(Reading(subject, name, value, unit, status, scope, labels, None, at, source, detail))
            else:
                append(Reading(subject, name, answer, unit, _OK, scope, labels, None, at, source))  # type: ignore[arg-type]
    return readings

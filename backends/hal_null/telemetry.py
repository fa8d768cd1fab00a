"""How it is doing: one row of the table per call of the library, one reading per figure.

Names, units and labels are those of hal.telemetry.catalogue. A figure that the library does not have
is a row all the same: an ``unsupported`` reading says more than none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from hal.backend import Group
from hal.model import Reading, Scope, Status
from hal_null import conv, errors
from hal_null.conv import Value
from hal_null.device import uuid_of
from hal_null.driver import Library, LibraryError

__all__ = ["sample"]


class _Figure(NamedTuple):
    name: str
    unit: str
    labels: dict[str, str]


class _Call(NamedTuple):
    group: Group
    source: str
    scope: Scope
    figures: tuple[_Figure, ...]
    read: Callable[[Library, str], tuple[Value, ...]]  # (library, uuid) -> one value per figure


def sample(library: Library, groups: Sequence[Group], ids: Sequence[str], deadline: float) -> list[Reading]:
    """Readings of each device in turn. Raises GoneError for an id that is not there."""
    calls = [call for call in _CALLS if call.group in groups]
    devices = [(subject, uuid_of(library, subject)) for subject in ids]
    return [
        reading
        for subject, uuid in devices
        for call in calls
        for reading in _readings(subject, call, _read(library, call, uuid, deadline))
    ]


def _read(library: Library, call: _Call, uuid: str, deadline: float) -> tuple[Value, ...]:
    """One failing call is a status of its figures, not an exception; the others still have to be read."""
    if time.monotonic() >= deadline:
        nothing = Value(None, Status.STALE, "not reached before the deadline")
    else:
        try:
            return call.read(library, uuid)
        except LibraryError as failure:
            nothing = Value(None, errors.status(failure), str(failure))
    return (nothing,) * len(call.figures)


def _readings(subject: str, call: _Call, values: Sequence[Value]) -> Iterator[Reading]:
    now = time.time()
    for figure, (value, status, detail) in zip(call.figures, values, strict=True):
        yield Reading(
            subject=subject,
            name=figure.name,
            value=value,
            unit=figure.unit,
            status=status,
            scope=call.scope,
            labels=figure.labels,
            time=now,
            source=call.source,
            detail=detail,
        )


def _memory(library: Library, uuid: str) -> tuple[Value, ...]:
    """Total, used, free, reserved in bytes. What is worked out here and not measured is `estimated`."""
    memory = library.memory(uuid)
    free = conv.kibibytes(memory["total"] - memory["used"])
    return (
        conv.kibibytes(memory["total"]),
        conv.kibibytes(memory["used"]),
        free._replace(status=Status.ESTIMATED, detail="total - used"),
        Value(None, Status.UNSUPPORTED, "the library has no such figure"),
    )


def _busy(library: Library, uuid: str) -> tuple[Value, ...]:
    bandwidth = Value(None, Status.UNSUPPORTED, "the library has no such figure")
    return conv.ratio(library.percent_busy(uuid)), bandwidth


def _power(library: Library, uuid: str) -> tuple[Value, ...]:
    return (conv.watts(library.milliwatts(uuid)),)


def _power_limit(library: Library, uuid: str) -> tuple[Value, ...]:
    return (conv.watts(library.milliwatts_limit(uuid)),)


def _temperature(library: Library, uuid: str) -> tuple[Value, ...]:
    return (conv.celsius(library.millidegrees(uuid)),)


def _vram(name: str) -> _Figure:
    return _Figure(f"memory_{name}_bytes", "bytes", {"heap": "vram"})


_CALLS = (
    _Call(Group.MEMORY, "memory", Scope.DEVICE,
          (_vram("total"), _vram("used"), _vram("free"), _vram("reserved")), _memory),
    _Call(Group.ACTIVITY, "percent_busy", Scope.DEVICE,
          (_Figure("compute_busy_ratio", "ratio", {}), _Figure("memory_bandwidth_busy_ratio", "ratio", {})),
          _busy),
    _Call(Group.POWER, "milliwatts", Scope.PACKAGE, (_Figure("power_watts", "watts", {}),), _power),
    _Call(Group.POWER, "milliwatts_limit", Scope.PACKAGE,
          (_Figure("power_limit_watts", "watts", {}),), _power_limit),
    _Call(Group.TEMPERATURE, "millidegrees", Scope.PACKAGE,
          (_Figure("temperature_celsius", "celsius", {"sensor": "core"}),), _temperature),
)  # fmt: skip

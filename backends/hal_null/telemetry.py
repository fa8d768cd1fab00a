"""How it is doing: one row of the table per call of the library, one reading per figure.

Names, units and labels are those of hal.telemetry.catalogue. A figure that the library does not have
is a row all the same: an ``unsupported`` reading says more than none.
"""

from __future__ import annotations

from collections.abc import Sequence

from hal.backend import Call, Cost, Figure, Group, Value, read_table
from hal.model import Reading, Scope, Status
from hal_null import conv, errors
from hal_null.device import uuid_of
from hal_null.driver import Library

__all__ = ["sample"]


def sample(
    library: Library, groups: Sequence[Group], ids: Sequence[str], deadline: float, costs: frozenset[Cost]
) -> list[Reading]:
    """Readings of each device in turn. Raises GoneError for an id that is not there."""
    calls = [call for call in _CALLS if call.group in groups and call.cost in costs]
    devices = [(subject, uuid_of(library, subject)) for subject in ids]
    return [
        reading
        for subject, uuid in devices
        for reading in read_table(calls, library, uuid, subject, deadline, _failed)
    ]


def _failed(failure: Exception) -> Value:
    return Value(None, errors.status(failure), str(failure))


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


def _none(library: Library, uuid: str) -> tuple[Value, ...]:
    """For a figure that the library does not have at all."""
    return (Value(None, Status.UNSUPPORTED, "the library has no such figure"),)


def _vram(name: str) -> Figure:
    return Figure(f"memory_{name}_bytes", "bytes", {"heap": "vram"})


_CALLS = (
    Call(Group.MEMORY, "memory", Scope.DEVICE,
          (_vram("total"), _vram("used"), _vram("free"), _vram("reserved")), _memory),
    Call(Group.ACTIVITY, "percent_busy", Scope.DEVICE,
          (Figure("compute_busy_ratio", "ratio"), Figure("memory_bandwidth_busy_ratio", "ratio")),
          _busy),
    Call(Group.POWER, "milliwatts", Scope.PACKAGE, (Figure("power_watts", "watts"),), _power),
    Call(Group.POWER, "milliwatts_limit", Scope.PACKAGE,
          (Figure("power_limit_watts", "watts"),), _power_limit),
    Call(Group.TEMPERATURE, "millidegrees", Scope.PACKAGE,
          (Figure("temperature_celsius", "celsius", {"sensor": "core"}),), _temperature),
    Call(Group.CLOCKS, "none", Scope.DEVICE, (Figure("clock_hertz", "hertz", {"domain": "compute"}),), _none),
    Call(Group.THROTTLE, "none", Scope.PACKAGE,
          (Figure("throttle_active", "bool", {"reason": "other"}),), _none),
    Call(Group.PCIE, "none", Scope.DEVICE, (Figure("pcie_generation", "count"),), _none),
    Call(Group.LINKS, "none", Scope.DEVICE, (Figure("link_up", "bool", {"link": "0"}),), _none),
    Call(Group.ERRORS, "none", Scope.DEVICE,
          (Figure("pages_retired", "count", {"cause": "all"}),), _none, Cost.SLOW),
    Call(Group.STATE, "none", Scope.DEVICE, (Figure("ecc_enabled", "bool"),), _none, Cost.STATIC),
)  # fmt: skip

"""The contract a vendor implements.

Three calls are required: ``probe``, ``enumerate`` and ``sample``. Everything else is an optional group,
found by whether the backend has the method (the protocols below). The rules:

* ``probe`` never raises, prints nothing, opens no device and starts no compute runtime.
* Ids are ``vendor:uuid`` or ``vendor:pci-<physical bdf>``, the same on every call, never an index.
* What the hardware did not say is ``None`` with a status. A sentinel (0xFFFF, 'N/A') never leaves a backend.
* ``sample`` collects the groups it is asked for and nothing else; one failing figure is one reading
  with a status, not an exception.
* Errors are those of ``hal.backend.errors``, which say what the caller should do.
* Arguments are checked above this layer; a backend may trust them.
* A backend imports ``hal.model``, ``hal.backend`` and its vendor's library, nothing else of hal.
* Every path is below ``root`` and every library can be named, so that tests can point it elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol, runtime_checkable

from hal.model import Enforcement, Event, Exposure, Hold, Inventory, Portrait, Probe, Process, Reading

__all__ = [
    "EVERY_COST",
    "Ages",
    "Backend",
    "Cost",
    "Describes",
    "Exposes",
    "Group",
    "HoldsMemory",
    "Limits",
    "ListsProcesses",
    "SharesUnits",
    "Watches",
]


class Group(StrEnum):
    """What ``sample`` can be asked for."""

    MEMORY = "memory"
    ACTIVITY = "activity"
    POWER = "power"
    TEMPERATURE = "temperature"
    CLOCKS = "clocks"
    THROTTLE = "throttle"
    PCIE = "pcie"
    LINKS = "links"
    ERRORS = "errors"
    STATE = "state"


class Cost(StrEnum):
    """What a figure costs to read, and so how often it is worth asking for."""

    STATIC = "static"  # does not change while the driver is loaded: once
    FAST = "fast"  # every tick
    SLOW = "slow"  # blocks, or takes a lock for milliseconds: one tick in some


EVERY_COST = frozenset(Cost)


class Backend(Protocol):
    """One vendor's devices. Constructed with ``root`` and, where it has one, ``library``."""

    name: str  # also the vendor word in ids: "vendor:..."

    def probe(self) -> Probe:
        """Say whether there is anything to open. Cheap: looks at files and loads the library at most."""
        ...

    def enumerate(self) -> Inventory:
        """List devices, slices and links. Raises HalError when the library fails as a whole."""
        ...

    def sample(
        self,
        groups: Sequence[Group],
        ids: Sequence[str],
        deadline: float,
        costs: frozenset[Cost] = EVERY_COST,
    ) -> list[Reading]:
        """Read the groups of the devices and slices named, by ``time.monotonic()`` deadline.

        Only figures of the cost classes asked for are read.

        Figures not reached by then come as ``stale`` readings without a value. Raises HalError when the
        library fails as a whole.
        """
        ...

    def close(self) -> None:
        """Give back what ``enumerate`` and ``sample`` opened. May be called twice."""
        ...


@runtime_checkable
class ListsProcesses(Protocol):
    """Optional: who uses the devices."""

    def processes(self, ids: Sequence[str], deadline: float) -> list[Process]: ...


@runtime_checkable
class Watches(Protocol):
    """Optional: what happens to the devices."""

    def events(self) -> list[Event]:
        """What has happened since the last call, the oldest first; never waits. The first call begins."""
        ...


@runtime_checkable
class Ages(Protocol):
    """Optional: the vendor's library can be replaced on disk while it is loaded here."""

    def outdated(self) -> str:
        """Why a new process has to take over; empty while none has to. Cheap: asked after each call."""
        ...


@runtime_checkable
class Exposes(Protocol):
    """Optional: make a program see some devices and no other of this vendor."""

    def expose(self, ids: Sequence[str]) -> Exposure:
        """What shows exactly these devices, in this order. With no ids: what hides them all."""
        ...


@runtime_checkable
class HoldsMemory(Protocol):
    """Optional: the vendor's driver itself can hold the programs of a control group to so much memory."""

    def hold_memory(self, device: str, group: str, limit_bytes: int) -> Hold:
        """Have it hold them: ``group`` is the path of a cgroup v2. Removing the group ends it.

        A driver that cannot, or will not for this user, is an answer and no error.
        """
        ...


@runtime_checkable
class SharesUnits(Protocol):
    """Optional: the vendor's runtime can give a program a part of a device's compute units."""

    def share_units(self, device: str, first_milli: int, milli: int) -> Exposure | None:
        """What gives a program that sees this device only ``milli`` thousandths of its units, from
        ``first_milli`` thousandths on; None when this device's runtime cannot."""
        ...


@runtime_checkable
class Limits(Protocol):
    """Optional: who can hold a soft slice of these devices to its limit."""

    def limits(self) -> Enforcement: ...


@runtime_checkable
class Describes(Protocol):
    """Optional, for devices that hal can emulate: what a stand-in has to be told to answer like them."""

    def describe(self) -> Portrait:
        """Every device, by its id; a figure that the library does not give is left out."""
        ...

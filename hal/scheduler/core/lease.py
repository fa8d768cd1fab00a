"""A lease: what a request was granted, and until when."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from hal.scheduler.core.facts import WHOLE_MILLI, DeviceFacts
from hal.scheduler.core.fleet import Spot
from hal.scheduler.core.request import Request

__all__ = ["Amount", "Lease", "LeaseState", "Part", "Waiting", "charge"]


class Amount(Struct, frozen=True):
    """What queues are charged: the greater of a slice's two shares, and its bytes."""

    devices_milli: int = 0
    memory_bytes: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.devices_milli + other.devices_milli, self.memory_bytes + other.memory_bytes)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.devices_milli - other.devices_milli, self.memory_bytes - other.memory_bytes)


def charge(device: DeviceFacts, spot: Spot) -> Amount:
    """What one device of a spot costs its queue."""
    if spot.shape.whole:
        return Amount(WHOLE_MILLI, device.memory_bytes)
    share = -(-WHOLE_MILLI * spot.shape.memory_bytes // max(device.memory_bytes, 1))
    return Amount(max(share, spot.shape.compute_milli), spot.shape.memory_bytes)


class Part(Struct, frozen=True):
    """Where one member of the gang runs."""

    member: int
    replica: int
    alternative: int
    spots: tuple[Spot, ...]


class LeaseState(StrEnum):
    ACTIVE = "active"
    SUSPENDED = "suspended"  # its node is lost: it comes back in time, or the lease is revoked
    ENDING = "ending"  # until none of its processes is left; what it holds still counts


class Lease(Struct):
    """Granted until ``expires`` unless renewed; times are milliseconds on the clock that ``now`` is of."""

    id: str
    request: Request
    uid: int
    key: str  # of the request that made it: the same key again gets the same lease
    holder_pid: int  # the process that asked; 0 when it is not known
    parts: tuple[Part, ...]
    charge: Amount
    epoch: int  # rises with every grant: what an older holder says can be told apart
    arrived: int
    order: int  # of arrival
    granted: int
    expires: int
    state: LeaseState = LeaseState.ACTIVE
    overdue: bool = False  # it has had the time that it said it needs: anybody waiting may have it
    again: bool = False  # to wait again once it has ended

    @property
    def name(self) -> str:
        return self.request.name or self.id

    @property
    def ends(self) -> int | None:
        """When it is over by its own word; None: it did not say."""
        duration = self.request.duration_ms
        return None if duration is None else self.granted + duration

    def spots(self) -> tuple[Spot, ...]:
        if len(self.parts) == 1:
            return self.parts[0].spots
        return tuple(spot for part in self.parts for spot in part.spots)

    def devices(self) -> tuple[str, ...]:
        """Of all spots, in their order."""
        spots = self.spots()
        return spots[0].devices if len(spots) == 1 else tuple(d for spot in spots for d in spot.devices)


class Waiting(Struct):
    """A request in its queue."""

    id: str
    request: Request
    uid: int
    key: str
    holder_pid: int
    arrived: int
    order: int
    proposed: str = ""  # the moves or changes that were proposed last, to say each once

"""What a scheduler tells of itself, typed. Fields of a later version are passed over."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from hal.backend import GoneError
from hal.model import Enforcement

__all__ = [
    "Event",
    "Explanation",
    "LeasePart",
    "LeaseTold",
    "QueueLimits",
    "QueueTold",
    "SchedulerTold",
    "WaitingTold",
    "check_renewed",
]


class SchedulerTold(Struct, frozen=True):
    pid: int
    private: bool
    leases: int
    waiting: int
    classes: list[str]
    now_ms: int = 0  # since 1970, as the scheduler counts
    event: int = 0  # the number of the latest event


class LeasePart(Struct, frozen=True):
    """What one member of a gang has on one node."""

    member: int
    replica: int
    alternative: int
    node: str
    devices: list[str]
    whole: bool
    memory_bytes: int | None
    compute_milli: int | None


class LeaseTold(Struct, frozen=True):
    """A lease. ``device``, ``whole`` and ``memory_bytes`` are of its first device; ``parts`` has all."""

    id: str
    name: str
    device: str
    devices: list[str]
    whole: bool
    memory_bytes: int
    used_bytes: int | None  # None: nobody measures it
    refused: int | None  # allocations past the limit
    state: str
    suspended: bool
    queue: str
    priority: int
    epoch: int
    holder_pid: int
    ttl_seconds: float
    expires_in_seconds: float
    enforcement: Enforcement
    parts: list[LeasePart]
    owner: str = ""  # told where leases are listed


class WaitingTold(Struct, frozen=True):
    """A request in its queue, or one whose slices are being made (``state`` "binding")."""

    id: str
    name: str
    queue: str
    priority: int
    holder_pid: int
    waited_seconds: float
    state: str
    reason: str = ""
    owner: str = ""


class QueueLimits(Struct, frozen=True):
    devices_milli: int | None  # None: none is set
    memory_bytes: int | None


class QueueUse(Struct, frozen=True):
    devices_milli: int
    memory_bytes: int


class QueueTold(Struct, frozen=True):
    name: str
    parent: str
    weight: int
    quota: QueueLimits
    limit: QueueLimits
    used: QueueUse
    waiting: int


class Explanation(Struct, frozen=True):
    """Why a request waits, and what would let it run."""

    id: str
    state: str
    ahead: int
    reasons: list[str]
    nearest: str


class Event(Struct, frozen=True):
    """One thing that has happened. ``kind`` "lost": others have, and are no longer known."""

    number: int
    kind: str
    at_ms: int = 0
    lease: str = ""
    name: str = ""
    queue: str = ""
    node: str = ""
    devices: list[str] = []
    epoch: int = 0
    cause: str = ""
    reason: str = ""


def check_renewed(id: str, epoch: int, answer: dict[str, Any]) -> None:
    """Raises GoneError unless what was renewed is the grant of this epoch: one that was queued again has
    the id of the lease before, and so has what it is granted then, maybe elsewhere."""
    if answer.get("lease", {}).get("epoch") != epoch:
        raise GoneError(f"the lease '{id}' was taken away meanwhile")

"""What the scheduler has decided; each with its reason, a sentence for people."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from hal.scheduler.core.lease import Lease, Waiting

__all__ = [
    "Cause",
    "Decision",
    "Grant",
    "Move",
    "Preempt",
    "Propose",
    "Queued",
    "Refusal",
    "Refuse",
    "Renewed",
    "Repartition",
    "Resume",
    "Revoke",
    "Suspend",
    "Withdrawn",
]


class Refusal(StrEnum):
    """Why not, and so what the caller can do about it."""

    NO_DEVICE = "no_device"  # nothing here fits the description, whatever is free
    TOO_LARGE = "too_large"  # no device that fits has so much
    NO_ROOM = "no_room"  # there is one, but it is in use: wait, or try again later
    LIMIT = "limit"  # the queue may not have so much
    NOT_FOUND = "not_found"  # no such lease, or not yours
    ENDED = "ended"  # it has expired or was released
    INVALID = "invalid"  # the request makes no sense; `field` says where
    TAKEN = "taken"  # there is a lease or request of this id
    IN_USE = "in_use"  # what is to be removed is not empty


class Cause(StrEnum):
    RELEASED = "released"
    EXPIRED = "expired"
    HOLDER_GONE = "holder_gone"
    FAILED = "failed"  # its device
    LOST = "lost"  # its node
    DRAINED = "drained"
    PREEMPTED = "preempted"  # for a higher priority of the same queue
    RECLAIMED = "reclaimed"  # for a queue that has less than its quota
    OVERDUE = "overdue"  # it has had the time that it said it needs


class _Decision(Struct, frozen=True, tag=True):
    pass


class Grant(_Decision, frozen=True):
    lease: Lease
    reason: str
    again: bool = False  # the same request had been granted before


class Queued(_Decision, frozen=True):
    id: str
    reason: str
    again: bool = False


class Renewed(_Decision, frozen=True):
    id: str
    expires: int | None  # None: it waits
    reason: str = "its holder lives"


class Refuse(_Decision, frozen=True):
    code: Refusal
    reason: str
    id: str = ""
    field: str = ""


class Revoke(_Decision, frozen=True):
    """Stop the lease's processes and take its slices away; then report ``Ended``."""

    lease: Lease
    cause: Cause
    reason: str


class Preempt(_Decision, frozen=True):
    """As Revoke: the lease has to make room for ``by``."""

    lease: Lease
    by: str
    cause: Cause
    reason: str


class Suspend(_Decision, frozen=True):
    id: str
    until: int
    reason: str


class Resume(_Decision, frozen=True):
    id: str
    reason: str


class Withdrawn(_Decision, frozen=True):
    """A request waits no longer."""

    id: str
    cause: Cause
    reason: str
    one: Waiting


class Move(Struct, frozen=True):
    lease: str
    source: tuple[str, ...]
    target: tuple[str, ...]


class Propose(_Decision, frozen=True):
    """With these moves ``id`` would run. Nothing happens unless somebody makes them."""

    id: str
    moves: tuple[Move, ...]
    reason: str


class Repartition(_Decision, frozen=True):
    """With the device cut in this way ``id`` would run."""

    id: str
    device: str
    layout: str
    reason: str


Decision = (
    Grant
    | Queued
    | Renewed
    | Refuse
    | Revoke
    | Preempt
    | Suspend
    | Resume
    | Withdrawn
    | Propose
    | Repartition
)

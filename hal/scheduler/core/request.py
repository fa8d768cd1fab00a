"""What somebody wants: a gang of members, each with alternatives.

All amounts are whole: bytes, thousandths of a device or core, milliseconds, millionths of the currency.
"""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache

from msgspec import Struct

from hal.scheduler.core.facts import WHOLE_MILLI
from hal.selector import SelectorError, selector

__all__ = ["Alternative", "InvalidError", "Isolation", "Member", "Request", "Topology", "check"]

MAX_BYTES = 1 << 60
MAX_ALTERNATIVES = 16
MAX_MEMBERS = 64  # all replicas together
MAX_COUNT = 64
MAX_MILLISECONDS = 10 * 366 * 24 * 3600 * 1000
MAX_PRIORITY = 1_000_000
_MAX_MICROS = 1 << 50
_MAX_NAME = 64


class InvalidError(ValueError):
    """A request that makes no sense: ``field`` says where, ``str()`` what is wrong there."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class Topology(StrEnum):
    """How the devices of one member lie to one another."""

    NODE = "node"  # on one node
    FABRIC = "fabric"  # on one node, and reaching one another directly
    SPREAD = "spread"  # each on a node of its own
    ANY = "any"


class Isolation(StrEnum):
    """What has to hold a slice to its memory: at least this. A whole device is always its own limit."""

    ANY = "any"  # whatever can
    KERNEL = "kernel"  # the driver or kernel, which a program cannot undo
    HARDWARE = "hardware"


class Alternative(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, cache_hash=True):
    """One way to serve a member; without ``memory_bytes`` whole devices."""

    selector: str = ""  # any accelerator
    memory_bytes: int | None = None  # of each device
    compute_milli: int = 0  # of each device; 0: no share is set aside
    count: int = 1  # 0: CPU and RAM of a node only, where the scheduler takes such
    weight: int = 1  # the heaviest that can be had is taken
    cpu_milli: int = 0
    ram_bytes: int = 0
    topology: Topology = Topology.NODE
    isolation: Isolation = Isolation.ANY
    max_micros_per_hour: int | None = None  # of each device
    slack_ms: int = 0  # only while the deadline is at least so far away


class Member(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, cache_hash=True):
    """A part of the gang that runs on its own slice, ``replicas`` times."""

    alternatives: tuple[Alternative, ...] = (Alternative(),)
    replicas: int = 1


class Request(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """All of its members are served at once, or none is."""

    members: tuple[Member, ...] = (Member(),)
    name: str = ""
    queue: str = "default"
    priority: int = 0  # within the queue; the greater goes first
    preemptible: bool = True  # one that is not has to stay within its queue's quota
    price_weight: int = 0  # how many weights an hour's unit of the currency counts
    duration_ms: int | None = None  # how long it is held at most; who says so may go ahead of larger ones
    deadline_ms: int | None = None  # from its arrival: after it, it is not waited for any more
    wait: bool = False  # in the queue, when there is no room now
    requeue: bool = False  # wait again when the lease was taken away
    movable: bool = False  # may be proposed to be moved to another device
    ttl_ms: int = 15_000


def check(request: Request, *, hosts: bool = False) -> None:
    """Raises InvalidError, which names the field. ``hosts``: a member may do without devices (count 0)."""
    if not request.members:
        raise InvalidError("members", "there is none")
    _between("ttl_ms", request.ttl_ms, 1000, 24 * 3600 * 1000)
    _between("priority", request.priority, -MAX_PRIORITY, MAX_PRIORITY)
    _between("price_weight", request.price_weight, 0, MAX_PRIORITY)
    for field in ("duration_ms", "deadline_ms"):
        value = getattr(request, field)
        if value is not None:
            _between(field, value, 1, MAX_MILLISECONDS)
    if len(request.name) > _MAX_NAME:
        raise InvalidError("name", f"it has at most {_MAX_NAME} characters")
    if not 1 <= len(request.queue) <= _MAX_NAME:
        raise InvalidError("queue", f"it has 1 to {_MAX_NAME} characters")
    _check_members(request.members, hosts)


@lru_cache(256)
def _check_members(members: tuple[Member, ...], hosts: bool) -> None:
    """Asked again for each request of a kind: what was right before is right."""
    total = 0
    for number, member in enumerate(members):
        where = f"members[{number}]"
        _between(f"{where}.replicas", member.replicas, 1, MAX_MEMBERS)
        total += member.replicas
        if not 1 <= len(member.alternatives) <= MAX_ALTERNATIVES:
            raise InvalidError(f"{where}.alternatives", f"there are 1 to {MAX_ALTERNATIVES}")
        for position, alternative in enumerate(member.alternatives):
            _check_alternative(f"{where}.alternatives[{position}]", alternative, 0 if hosts else 1)
    if total > MAX_MEMBERS:
        raise InvalidError("members", f"there are {total} with their replicas, and {MAX_MEMBERS} are allowed")


def _check_alternative(where: str, one: Alternative, least: int) -> None:
    if one.selector:
        try:
            selector(one.selector)
        except SelectorError as error:
            raise InvalidError(f"{where}.selector", str(error)) from None
    if one.memory_bytes is not None:
        _between(f"{where}.memory_bytes", one.memory_bytes, 1, MAX_BYTES)
    elif one.compute_milli not in (0, WHOLE_MILLI):
        raise InvalidError(f"{where}.compute_milli", "a share of a device needs memory_bytes")
    _between(f"{where}.compute_milli", one.compute_milli, 0, WHOLE_MILLI)
    _between(f"{where}.count", one.count, least, MAX_COUNT)
    if not one.count and one != Alternative(count=0, cpu_milli=one.cpu_milli, ram_bytes=one.ram_bytes):
        raise InvalidError(f"{where}.count", "without devices there are only cpu_milli and ram_bytes")
    _between(f"{where}.weight", one.weight, 1, MAX_PRIORITY)
    _between(f"{where}.cpu_milli", one.cpu_milli, 0, 1 << 40)
    _between(f"{where}.ram_bytes", one.ram_bytes, 0, MAX_BYTES)
    _between(f"{where}.slack_ms", one.slack_ms, 0, MAX_MILLISECONDS)
    if one.max_micros_per_hour is not None:
        _between(f"{where}.max_micros_per_hour", one.max_micros_per_hour, 0, _MAX_MICROS)


def _between(field: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InvalidError(field, f"it is between {least} and {most}, not {value}")

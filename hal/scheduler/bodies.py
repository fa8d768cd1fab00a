"""The bodies of requests, typed, and what replies say of leases (docs/protocol.md)."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import msgspec

from hal.enforce.ledger import DeviceUse
from hal.model import Enforcement, jsonable
from hal.scheduler.core.lease import Lease, LeaseState, Waiting
from hal.scheduler.core.queues import Limits, Queue, Tree
from hal.scheduler.core.request import Alternative, InvalidError, Member, Request
from hal.scheduler.presets import Preset, with_preset

__all__ = [
    "Acquire",
    "AcquireMany",
    "Named",
    "Page",
    "QueueName",
    "Release",
    "ReleaseMany",
    "SetQueueBody",
    "Wait",
    "being_made",
    "described",
    "queued",
    "queues",
]

_LONGEST_WAIT = 60.0
_MOST_AT_ONCE = 256
_MOST_ON_A_PAGE = 1000
_NOTHING = (None, None, None, "", 15.0)  # of one plain slice's fields


class Acquire(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Either ``request`` says it all, or the fields of one plain slice do."""

    key: str
    memory_bytes: int | None = None
    vendor: str | None = None
    device: str | None = None
    name: str = ""
    ttl_seconds: float = 15.0
    request: Request | None = None
    preset: str | None = msgspec.field(default=None, name="class")

    def __post_init__(self) -> None:
        if not 1 <= len(self.key) <= 64:
            raise ValueError("key has 1 to 64 characters")
        if self.vendor is not None and self.device is not None:
            raise ValueError("a request names a vendor or a device, not both")
        if not 1 <= self.ttl_seconds <= 86400:
            raise ValueError("ttl_seconds is between 1 and 86400")
        if self.request is not None and self._plain() != _NOTHING:
            raise ValueError("beside request there is no memory_bytes, vendor, device, name or ttl_seconds")

    def _plain(self) -> tuple[int | None, str | None, str | None, str, float]:
        return self.memory_bytes, self.vendor, self.device, self.name, self.ttl_seconds

    def wanted(self, presets: Mapping[str, Preset]) -> Request:
        """Raises InvalidError for a class that is not known."""
        request = self.request
        if request is None:
            request = Request(
                members=(Member((Alternative(self._selector(), self.memory_bytes),)),),
                name=self.name,
                ttl_ms=round(self.ttl_seconds * 1000),
            )
        if self.preset is None:
            return request
        if self.preset not in presets:
            known = ", ".join(sorted(presets))
            raise InvalidError("class", f"there is no class '{self.preset:.64}'; there are {known}")
        return with_preset(request, presets[self.preset])

    def _selector(self) -> str:
        for name, value in (("id", self.device), ("vendor", self.vendor)):
            if value is not None:
                return f"{name} == {json.dumps(value)}"
        return ""


class Named(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A lease, or a request that waits to be one."""

    lease: str


class Release(Named, frozen=True):
    """``lost_epoch``: the caller has just lost that grant of it, and its programs have yet to be stopped."""

    lost_epoch: int | None = None


class AcquireMany(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Each is answered as if it had come alone: some may be granted and others not."""

    requests: list[Acquire]

    def __post_init__(self) -> None:
        _check_number("requests", len(self.requests))


class ReleaseMany(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    leases: list[str]

    def __post_init__(self) -> None:
        _check_number("leases", len(self.leases))


def _check_number(field: str, number: int) -> None:
    if not 1 <= number <= _MOST_AT_ONCE:
        raise ValueError(f"{field} has 1 to {_MOST_AT_ONCE} of them")


class Page(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a list, by the order of arrival: behind ``after``, which the part before it ended with."""

    limit: int = _MOST_ON_A_PAGE
    after: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= _MOST_ON_A_PAGE:
            raise ValueError(f"limit is between 1 and {_MOST_ON_A_PAGE}")


class Wait(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    lease: str
    timeout_seconds: float = 20.0

    def __post_init__(self) -> None:
        if not 0 <= self.timeout_seconds <= _LONGEST_WAIT:
            raise ValueError(f"timeout_seconds is between 0 and {_LONGEST_WAIT:.0f}")


class QueueName(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str


class SetQueueBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to change of a queue; None: it stays as it is. -1 of an amount: none is set any more."""

    name: str
    parent: str | None = None
    weight: int | None = None
    quota_devices_milli: int | None = None
    quota_memory_bytes: int | None = None
    limit_devices_milli: int | None = None
    limit_memory_bytes: int | None = None

    def queue(self, known: Queue | None) -> Queue:
        before = Queue(self.name) if known is None else known

        def changed(limits: Limits, milli: int | None, size: int | None) -> Limits:
            return Limits(_changed(limits.devices_milli, milli), _changed(limits.memory_bytes, size))

        return Queue(
            self.name,
            before.parent if self.parent is None else self.parent,
            changed(before.quota, self.quota_devices_milli, self.quota_memory_bytes),
            changed(before.limit, self.limit_devices_milli, self.limit_memory_bytes),
            before.weight if self.weight is None else self.weight,
        )


def _changed(before: int | None, wanted: int | None) -> int | None:
    if wanted is None:
        return before
    return None if wanted == -1 else wanted


def described(lease: Lease, use: list[DeviceUse], enforcement: Enforcement, now: int) -> dict[str, Any]:
    """``device``, ``whole`` and ``memory_bytes`` are of the first device; ``parts`` has all."""
    first, state = lease.parts[0].spots[0], lease.state
    suspended = state is LeaseState.SUSPENDED
    return {
        "id": lease.id,
        "name": lease.name,
        "device": first.devices[0],
        "devices": lease.devices(),
        "whole": first.shape.whole,
        "memory_bytes": _memory(lease),
        "used_bytes": sum(one.used_bytes for one in use) if use else None,
        "refused": sum(one.refused for one in use) if use else None,
        "state": LeaseState.ACTIVE if suspended else state,
        "suspended": suspended,
        "queue": lease.request.queue,
        "priority": lease.request.priority,
        "epoch": lease.epoch,
        "holder_pid": lease.holder_pid,
        "ttl_seconds": lease.request.ttl_ms / 1000,
        "expires_in_seconds": max((lease.expires - now) / 1000, 0),
        "enforcement": _held(enforcement),
        "parts": [
            {
                "member": part.member,
                "replica": part.replica,
                "alternative": part.alternative,
                "node": spot.node,
                "devices": spot.devices,
                "whole": spot.shape.whole,
                "memory_bytes": spot.shape.memory_bytes or None,
                "compute_milli": spot.shape.compute_milli or None,
            }
            for part in lease.parts
            for spot in part.spots
        ],
    }


@functools.cache
def _held(enforcement: Enforcement) -> dict[str, str]:
    return {"memory": enforcement.memory.value, "compute": enforcement.compute.value}


def _memory(lease: Lease) -> int:
    """Of the first device: what its slice has, or the device when it is whole."""
    first = lease.parts[0].spots[0].shape
    if not first.whole:
        return first.memory_bytes
    return lease.charge.memory_bytes // max(len(lease.devices()), 1)


def queued(one: Waiting, now: int, reason: str | None = None) -> dict[str, Any]:
    """A request that waits."""
    found = {
        "id": one.id,
        "name": one.request.name or one.id,
        "queue": one.request.queue,
        "priority": one.request.priority,
        "holder_pid": one.holder_pid,
        "waited_seconds": max((now - one.arrived) / 1000, 0),
        "state": "waiting",
    }
    return found if reason is None else found | {"reason": reason}


def being_made(lease: Lease, now: int) -> dict[str, Any]:
    """A lease whose nodes have not made its slices yet: for who asked for it, it still waits."""
    return {
        "id": lease.id,
        "name": lease.name,
        "queue": lease.request.queue,
        "priority": lease.request.priority,
        "holder_pid": lease.holder_pid,
        "waited_seconds": max((now - lease.arrived) / 1000, 0),
        "state": "binding",
        "reason": "its nodes have not answered yet",
    }


def queues(tree: Tree, waiting: Mapping[str, int]) -> list[dict[str, Any]]:
    """All queues, with what they have and how many wait in each."""
    return [
        {
            "name": queue.name,
            "parent": queue.parent,
            "weight": queue.weight,
            "quota": {"devices_milli": queue.quota.devices_milli, "memory_bytes": queue.quota.memory_bytes},
            "limit": {"devices_milli": queue.limit.devices_milli, "memory_bytes": queue.limit.memory_bytes},
            "used": jsonable(tree.used[queue.name]),
            "waiting": waiting.get(queue.name, 0),
        }
        for _, queue in sorted(tree.queues.items())
    ]

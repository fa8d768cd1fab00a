"""The scheduler's core: a pure state machine. No clock, no socket, no file; time is an argument.

``State.apply(event, now)`` changes the state and returns decisions, which the daemon carries out.

A lease is *active* while its holder renews it. It is *ending* from the moment it is released or
expires until the daemon reports that none of its processes is left; until then its memory counts, so
that nothing is lent that is still in use. Memory is exact bytes on one device, never a sum over devices.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

__all__ = [
    "Acquire",
    "Decision",
    "DeviceFacts",
    "DevicesSeen",
    "End",
    "Ended",
    "Event",
    "Grant",
    "HolderGone",
    "Lease",
    "LeaseState",
    "Refusal",
    "Refuse",
    "Release",
    "Renew",
    "Renewed",
    "Request",
    "State",
    "Tick",
]


class DeviceFacts(Struct, frozen=True):
    """What placement needs to know of a device."""

    id: str
    vendor: str
    memory_bytes: int  # that programs can have
    outside_bytes: int = 0  # in use by programs that hold no lease
    holds_slices: bool = True  # something can hold a part of it to its limit


class Request(Struct, frozen=True):
    """What somebody wants: a slice of ``memory_bytes``, or with ``None`` a whole device."""

    memory_bytes: int | None = None
    vendor: str | None = None
    device: str | None = None
    name: str = ""
    ttl_seconds: float = 15.0


class LeaseState(StrEnum):
    ACTIVE = "active"
    ENDING = "ending"


class Lease(Struct):
    """A device, or a slice of one, granted until ``expires`` unless renewed."""

    id: str
    device: str
    memory_bytes: int
    whole: bool
    name: str
    uid: int
    key: str  # of the request that made it: the same key again gets the same lease
    ttl_seconds: float
    holder_pid: int  # the process that asked; 0 when it is not known
    epoch: int  # rises with every grant: what an older holder says can be told apart
    expires: float  # on the clock that `now` is read from
    state: LeaseState = LeaseState.ACTIVE


class Refusal(StrEnum):
    """Why not, and so what the caller can do about it."""

    NO_DEVICE = "no_device"  # nothing here fits the description, whatever is free
    TOO_LARGE = "too_large"  # no device that fits has so much memory
    NO_ROOM = "no_room"  # there is one, but it is in use: try again later
    NOT_FOUND = "not_found"  # no such lease, or not yours
    ENDED = "ended"  # it has expired or was released


class Acquire(Struct, frozen=True):
    request: Request
    lease_id: str
    key: str
    uid: int
    holder_pid: int = 0


class Renew(Struct, frozen=True):
    lease_id: str
    uid: int


class Release(Struct, frozen=True):
    lease_id: str
    uid: int


class HolderGone(Struct, frozen=True):
    """The process that held the lease has died."""

    lease_id: str


class Ended(Struct, frozen=True):
    """None of an ending lease's processes is left."""

    lease_id: str


class DevicesSeen(Struct, frozen=True):
    """What the devices are and how much of each is in use from outside."""

    devices: tuple[DeviceFacts, ...]


class Tick(Struct, frozen=True):
    """Time has passed."""


Event = Acquire | Renew | Release | HolderGone | Ended | DevicesSeen | Tick


class Grant(Struct, frozen=True):
    lease: Lease
    again: bool = False  # the same request had been granted before


class Renewed(Struct, frozen=True):
    lease: Lease


class Refuse(Struct, frozen=True):
    code: Refusal
    message: str


class End(Struct, frozen=True):
    """Stop the lease's processes and take its slice away; then report ``Ended``."""

    lease: Lease
    reason: str


Decision = Grant | Renewed | Refuse | End


# A driver's own share shows as used on some cards; more than this is somebody's program.
_DRIVERS_OWN = 1 << 30


class State:
    """Devices and leases, and the rules between them."""

    def __init__(self) -> None:
        self.devices: dict[str, DeviceFacts] = {}
        self.leases: dict[str, Lease] = {}
        self.epoch = 0

    def adopt(self, lease: Lease, now: float) -> None:
        """Take over a lease from before a restart: its holder has one more time to live to renew it."""
        lease.expires = now + lease.ttl_seconds
        self.leases[lease.id] = lease
        self.epoch = max(self.epoch, lease.epoch)

    def next_deadline(self) -> float | None:
        """When the next active lease expires unless renewed; None when there is none."""
        return min((x.expires for x in self.leases.values() if x.state is LeaseState.ACTIVE), default=None)

    def apply(self, event: Event, now: float) -> list[Decision]:
        match event:
            case Acquire():
                return [self._acquire(event, now)]
            case Renew():
                return [self._renew(event, now)]
            case Release():
                return [self._release(event)]
            case HolderGone():
                lease = self.leases.get(event.lease_id)
                return [] if lease is None else self._end(lease, "its holder has died")
            case Ended():
                self.leases.pop(event.lease_id, None)
                return []
            case DevicesSeen():
                self.devices = {device.id: device for device in event.devices}
                return []
            case Tick():
                due = [lease for lease in self.leases.values() if lease.expires <= now]
                return [end for lease in due for end in self._end(lease, "it was not renewed in time")]

    # ---- events -----------------------------------------------------------------------------

    def _acquire(self, event: Acquire, now: float) -> Decision:
        for lease in self.leases.values():
            if (lease.key, lease.uid) == (event.key, event.uid):
                if lease.state is LeaseState.ACTIVE:
                    return Grant(lease, again=True)
                return Refuse(Refusal.ENDED, "this request was granted before, and its lease has ended")
        request = event.request
        chosen = self._place(request)
        if isinstance(chosen, Refuse):
            return chosen
        self.epoch += 1
        lease = Lease(
            id=event.lease_id,
            device=chosen.id,
            memory_bytes=chosen.memory_bytes if request.memory_bytes is None else request.memory_bytes,
            whole=request.memory_bytes is None,
            name=request.name or event.lease_id,
            uid=event.uid,
            key=event.key,
            ttl_seconds=request.ttl_seconds,
            holder_pid=event.holder_pid,
            epoch=self.epoch,
            expires=now + request.ttl_seconds,
        )
        self.leases[lease.id] = lease
        return Grant(lease)

    def _renew(self, event: Renew, now: float) -> Decision:
        lease = self._owned(event.lease_id, event.uid)
        if isinstance(lease, Refuse):
            return lease
        lease.expires = now + lease.ttl_seconds
        return Renewed(lease)

    def _release(self, event: Release) -> Decision:
        lease = self._owned(event.lease_id, event.uid)
        if isinstance(lease, Refuse):
            return lease
        return self._end(lease, "it was released")[0]

    def _owned(self, lease_id: str, uid: int) -> Lease | Refuse:
        lease = self.leases.get(lease_id)
        if lease is None or uid not in (lease.uid, 0):
            return Refuse(Refusal.NOT_FOUND, f"there is no lease '{lease_id}'")
        if lease.state is not LeaseState.ACTIVE:
            return Refuse(Refusal.ENDED, f"the lease '{lease_id}' has ended")
        return lease

    def _end(self, lease: Lease, reason: str) -> list[Decision]:
        if lease.state is not LeaseState.ACTIVE:
            return []
        lease.state = LeaseState.ENDING
        return [End(lease, reason)]

    # ---- placement --------------------------------------------------------------------------

    def _place(self, request: Request) -> DeviceFacts | Refuse:
        """For a slice the device on which the least memory is left over; among equals the first by id."""
        fitting = [device for device in self.devices.values() if _describes(request, device)]
        if not fitting:
            return Refuse(Refusal.NO_DEVICE, _nothing_fits(request, list(self.devices.values())))
        large = [d for d in fitting if request.memory_bytes is None or request.memory_bytes <= d.memory_bytes]
        if not large:
            most = max(fitting, key=lambda device: device.memory_bytes)
            return Refuse(
                Refusal.TOO_LARGE,
                f"{_gib(request.memory_bytes or 0)} is more than any device has: "
                f"the largest that fits the request is {most.id} with {_gib(most.memory_bytes)}",
            )
        room = [(self._free(d), d) for d in large if self._has_room(request, d)]
        if not room:
            most_free = max(large, key=self._free)
            want = "a whole device" if request.memory_bytes is None else _gib(request.memory_bytes)
            return Refuse(
                Refusal.NO_ROOM,
                f"no room for {want} now: the most that is free is {_gib(self._free(most_free))} "
                f"on {most_free.id}; try again when a lease has ended",
            )
        if request.memory_bytes is None:  # the one that others use least
            return min(room, key=lambda pair: (pair[1].outside_bytes, pair[1].memory_bytes, pair[1].id))[1]
        return min(room, key=lambda pair: (pair[0], pair[1].id))[1]

    def _has_room(self, request: Request, device: DeviceFacts) -> bool:
        if request.memory_bytes is not None:
            return request.memory_bytes <= self._free(device)
        alone = not any(lease.device == device.id for lease in self.leases.values())
        shared = not device.holds_slices  # a host, whose memory others always use
        unused = device.outside_bytes <= max(device.memory_bytes // 20, _DRIVERS_OWN)
        return alone and (unused or shared)

    def _free(self, device: DeviceFacts) -> int:
        here = [lease for lease in self.leases.values() if lease.device == device.id]
        if any(lease.whole for lease in here):
            return 0  # also when the device has more memory now than when it was granted
        leased = sum(lease.memory_bytes for lease in here)
        return max(device.memory_bytes - device.outside_bytes - leased, 0)


def _describes(request: Request, device: DeviceFacts) -> bool:
    if request.memory_bytes is not None and not device.holds_slices:
        return False
    if request.device is not None:
        return device.id == request.device
    # Nobody means the host's CPU by "any device": it has to be named.
    return request.vendor == device.vendor or (request.vendor is None and device.holds_slices)


def _nothing_fits(request: Request, devices: list[DeviceFacts]) -> str:
    if any(device.id == request.device for device in devices):
        return f"nothing can hold a part of {request.device} to its limit: ask for the whole device"
    if request.device is not None:
        return f"there is no device '{request.device}'"
    vendors = sorted({device.vendor for device in devices if device.holds_slices})
    if not vendors:
        return "this machine has no accelerator that can be shared; 'hal doctor' says what was looked for"
    return (
        f"no device of vendor '{request.vendor}' can be shared here; of these some can: {', '.join(vendors)}"
    )


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"

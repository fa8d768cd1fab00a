"""What happens to the scheduler."""

from __future__ import annotations

from msgspec import Struct

from hal.scheduler.core.decisions import Cause
from hal.scheduler.core.facts import NodeFacts
from hal.scheduler.core.queues import Queue
from hal.scheduler.core.request import Request

__all__ = [
    "Cordon",
    "DeviceFailed",
    "DeviceRecovered",
    "Drain",
    "Ended",
    "Event",
    "HolderGone",
    "InventoryChanged",
    "NodeForgotten",
    "NodeJoined",
    "NodeLost",
    "Release",
    "RemoveQueue",
    "Renew",
    "Resumed",
    "SetQueue",
    "Submit",
    "Tick",
    "Uncordon",
]


class _Event(Struct, frozen=True, tag=True):
    pass


class NodeJoined(_Event, frozen=True):
    """A node reports for the first time, or again after it was lost."""

    node: NodeFacts


class InventoryChanged(_Event, frozen=True):
    """What a known node's devices are now, and how much of each is in use from outside."""

    node: NodeFacts


class NodeLost(_Event, frozen=True):
    """It no longer answers: its leases have a time of grace in which it may come back."""

    node: str
    reason: str = "its node no longer answers"


class NodeForgotten(_Event, frozen=True):
    """It is not waited for any more: its leases end. Of ``devices`` nothing that was set is kept, either."""

    node: str
    devices: tuple[str, ...] = ()


class DeviceFailed(_Event, frozen=True):
    """It is not to be used: who is on it has to leave."""

    device: str
    reason: str


class DeviceRecovered(_Event, frozen=True):
    device: str


class Cordon(_Event, frozen=True):
    """Nothing new on this device or node; who is there may stay."""

    target: str
    reason: str = "cordoned"


class Drain(_Event, frozen=True):
    """Nothing new on this device or node, and who is there has to leave."""

    target: str
    reason: str = "drained"


class Uncordon(_Event, frozen=True):
    target: str


class Submit(_Event, frozen=True):
    """A request. ``key`` and ``uid`` together stand for it: again, it gets the same answer."""

    request: Request
    id: str
    key: str
    uid: int
    holder_pid: int = 0


class Renew(_Event, frozen=True):
    """The holder lives and still wants it, lease or place in the queue."""

    id: str
    uid: int


class Release(_Event, frozen=True, omit_defaults=True):
    """Ends a lease, or takes a request out of the queue."""

    id: str
    uid: int
    reason: str = "it was released"


class HolderGone(_Event, frozen=True, omit_defaults=True):
    """The process that held the lease, or waited for it, has died; or for another ``cause`` what it held is
    no more."""

    id: str
    reason: str = "its holder has died"
    cause: Cause = Cause.HOLDER_GONE


class Ended(_Event, frozen=True):
    """None of an ending lease's processes is left."""

    id: str


class SetQueue(_Event, frozen=True):
    """Make a queue, or change what is set of a known one."""

    queue: Queue


class RemoveQueue(_Event, frozen=True):
    """There is to be no such queue any more. Refused while anything is in it or below it."""

    name: str


class Resumed(_Event, frozen=True):
    """The scheduler was away: every holder has one more time to live to renew."""


class Tick(_Event, frozen=True):
    """Time has passed."""


Event = (
    NodeJoined
    | InventoryChanged
    | NodeLost
    | NodeForgotten
    | DeviceFailed
    | DeviceRecovered
    | Cordon
    | Drain
    | Uncordon
    | Submit
    | Renew
    | Release
    | HolderGone
    | Ended
    | SetQueue
    | RemoveQueue
    | Resumed
    | Tick
)

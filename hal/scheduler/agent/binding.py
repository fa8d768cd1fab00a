"""What a node holds for a lease, and what it answers: the bodies of orders and reports (docs/protocol.md)."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec import Struct

from hal.enforce.ledger import DeviceUse
from hal.model import Enforcement
from hal.scheduler.core.facts import NodeFacts, check_facts
from hal.scheduler.core.fleet import Spot
from hal.scheduler.core.lease import Lease
from hal.scheduler.jobs.output import STREAMS, Piece
from hal.scheduler.jobs.spec import Ended, JobSpec
from hal.scheduler.names import check_labels, check_node

__all__ = [
    "ORDERS",
    "Beat",
    "BindOrder",
    "Binding",
    "Bound",
    "BoundPart",
    "Join",
    "Joined",
    "Order",
    "OutputOrder",
    "RunOrder",
    "SignalOrder",
    "Started",
    "UnbindOrder",
    "Unbound",
    "binding_of",
    "nodes_of",
]


_MOST_USE = 1 << 50  # of a device
_MOST_SIGNAL = 128
_MOST_OUTPUT = 1 << 60  # bytes of a stream; no file can be read at 1 << 63


class BoundPart(Struct, frozen=True):
    """What one member of the gang has on this node."""

    number: int  # of the member in the gang
    spots: tuple[Spot, ...]


class Binding(Struct, frozen=True):
    """All that a lease has on one node. The epoch tells it from the same lease granted anew."""

    lease: str
    epoch: int
    name: str
    uid: int
    members: int  # of the whole gang
    parts: tuple[BoundPart, ...]
    port: int = 0  # on which the members of a gang may meet: the node of the first one finds it

    def spots(self) -> Iterator[Spot]:
        return (spot for part in self.parts for spot in part.spots)


class Bound(Struct, frozen=True):
    """The slices are made: what a program of each member needs, by the member's number, and who holds it."""

    environments: list[tuple[int, dict[str, str]]]
    enforcement: Enforcement
    port: int = 0  # of a gang, on the node of its first member: nobody listened there


class BindOrder(Struct, frozen=True):
    term: int
    binding: Binding


class UnbindOrder(Struct, frozen=True):
    term: int
    lease: str
    epoch: int


class Unbound(Struct, frozen=True):
    """``ended``: nothing of it is left; else the agent says so with a later beat."""

    ended: bool


class RunOrder(Struct, frozen=True):
    """Start a member's program in its slice, once however often it is ordered."""

    term: int
    lease: str
    epoch: int
    member: int
    job: str
    owner: str  # the key's name or the local user's, as whom ``run_as`` of the node knows them
    uid: int  # of the owner, as in the lease
    spec: JobSpec
    variables: dict[str, str]  # hal's own for this member: rendezvous, place in the array


class Started(Struct, frozen=True):
    pass


class SignalOrder(Struct, frozen=True):
    term: int
    lease: str
    epoch: int
    member: int
    signal: int


class OutputOrder(Struct, frozen=True):
    """A piece of what a member has said. It changes nothing, and so is of any grant that is kept."""

    lease: str
    epoch: int
    member: int
    stream: str = "stdout"
    offset: int = 0
    limit: int = 32768

    def __post_init__(self) -> None:
        if self.stream not in STREAMS:
            raise ValueError("stream is stdout or stderr")
        if not 0 <= self.offset <= _MOST_OUTPUT or not 1 <= self.limit <= 32768:
            raise ValueError(f"offset is between 0 and {_MOST_OUTPUT}, and limit between 1 and 32768")


Order = BindOrder | UnbindOrder | RunOrder | SignalOrder | OutputOrder

# What goes over the wire for each: the operation's name, and the type of its answer.
ORDERS: dict[type[Order], tuple[str, type[Struct]]] = {
    BindOrder: ("bind", Bound),
    UnbindOrder: ("unbind", Unbound),
    RunOrder: ("run", Started),
    SignalOrder: ("signal", Started),
    OutputOrder: ("output", Piece),
}


class Join(Struct, frozen=True):
    """An agent says who it is and what it holds: lease and epoch of each."""

    node: str
    boot: str  # of the node's kernel: another one, and nothing of before runs there
    term: int  # the highest whose orders it has seen
    sent: float  # seconds since the boot: an earlier join that comes late counts for nothing
    version: str
    facts: NodeFacts
    bound: dict[str, int] = {}
    labels: dict[str, str] = {}

    def __post_init__(self) -> None:
        check_node(self.node)
        check_labels(self.labels)

    def check(self) -> None:
        """What the scheduler cannot count with. Raises ValueError."""
        check_facts(self.facts)


class Joined(Struct, frozen=True):
    """What the scheduler makes of it. What is not in ``keep`` is to be ended.

    ``again``: the node has joined once it has done so and says it again; until then nothing is lent there.
    """

    term: int
    beat_seconds: float
    cut_off_seconds: float  # without an answer for so long, a node stops all that it holds
    keep: dict[str, int] = {}
    again: bool = False


class Beat(Struct, frozen=True):
    """An agent lives. What has not changed since its last answered beat is left out."""

    node: str
    term: int
    facts: NodeFacts | None = None
    ended: list[tuple[str, int]] = []  # lease and epoch
    use: dict[str, list[DeviceUse]] = {}
    runs: list[Ended] = []  # programs of jobs that have ended, until answered

    def check(self) -> None:
        """What the scheduler cannot count with. Raises ValueError."""
        if self.facts is not None:
            check_facts(self.facts)
        for lease, uses in self.use.items():
            if any(not 0 <= value <= _MOST_USE for one in uses for value in (one.used_bytes, one.refused)):
                raise ValueError(f"use of '{lease:.64}': amounts are between 0 and {_MOST_USE}")
        if any(not 0 <= (one.signal or 0) <= _MOST_SIGNAL for one in self.runs):
            raise ValueError(f"runs: a signal is between 1 and {_MOST_SIGNAL}")


def nodes_of(lease: Lease) -> list[str]:
    """In the order of the gang's members, each once."""
    spots = lease.spots()
    return [spots[0].node] if len(spots) == 1 else list(dict.fromkeys(spot.node for spot in spots))


def binding_of(lease: Lease, node: str, prefix: str = "") -> Binding:
    """What a lease has on one node, with its devices named as that node does, which is without ``prefix``."""
    if len(lease.parts) == 1 and len(lease.parts[0].spots) == 1 and not prefix:  # most leases of one's own
        all_of_it = (BoundPart(0, lease.parts[0].spots),)
        return Binding(lease.id, lease.epoch, lease.name, lease.uid, 1, all_of_it)

    def named_there(spot: Spot) -> Spot:
        if not prefix:
            return spot
        return msgspec.structs.replace(
            spot, devices=tuple(device.removeprefix(prefix) for device in spot.devices)
        )

    parts = [
        BoundPart(number, tuple(named_there(spot) for spot in part.spots if spot.node == node))
        for number, part in enumerate(lease.parts)
    ]
    here = tuple(part for part in parts if part.spots)
    return Binding(lease.id, lease.epoch, lease.name, lease.uid, len(lease.parts), here)

"""How the daemon says no, and to whom it answers later."""

from __future__ import annotations

import zmq
from msgspec import Struct

from hal.scheduler import core, wire

__all__ = ["Address", "Peer", "Refused", "Waiter", "code_of", "error", "leaving", "peer"]


class Refused(Exception):
    """The answer to a request is an error."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Address(Struct, frozen=True):
    """Where a message came from and its answer goes: a socket of ours, and ZeroMQ's name of the other."""

    socket: zmq.Socket[bytes]
    identity: bytes


class Peer(Struct, frozen=True):
    """Who asks. The kernel knows user and process of those on this machine; ``pid`` -1: it is elsewhere."""

    address: Address
    uid: int
    pid: int


class Waiter:
    """A client that is answered when its lease is granted and made, or the time is up."""

    def __init__(self, lease: str, until: float) -> None:
        self.lease = lease
        self.until = until  # on the monotonic clock
        self.address: Address | None = None
        self.request = ""


def error(id: str, code: str, message: str) -> wire.Reply:
    return wire.Reply(wire.VERSION, id, False, error=wire.ErrorBody(code, message))


def leaving(id: str) -> wire.Reply:
    return error(id, "leaving", "this scheduler is on its way out")


def code_of(refused: core.Refuse) -> str:
    """What the protocol calls a refusal of the core."""
    if refused.code is core.Refusal.INVALID:
        return "not_found" if refused.field == "queue" else "malformed"
    return refused.code.value


def peer(address: Address, frame: zmq.Frame) -> Peer:
    """uid and pid of the sender, as the kernel gave them to libzmq: "host:uid:gid:pid" on ipc."""
    try:
        _, uid, _, pid = str(frame.get("Peer-Address")).rsplit(":", 3)
        return Peer(address, int(uid), int(pid))
    except (ValueError, zmq.ZMQError):
        raise wire.Malformed("the sender's user cannot be told; only local clients are served") from None

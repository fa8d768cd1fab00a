"""How the daemon says no, and to whom it answers later."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator

import msgspec
import zmq
from msgspec import Struct

from hal.backend import HalError
from hal.scheduler import core, wire
from hal.scheduler.security.roles import Role

__all__ = [
    "FAULTS",
    "Address",
    "Later",
    "Peer",
    "Refused",
    "Waiter",
    "Work",
    "code_of",
    "error",
    "fault",
    "leaving",
]


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
    """Who asks, as the gate found (hal/scheduler/security/gate.py). ``uid`` owns what it makes."""

    address: Address
    name: str  # "uid:1000", or the key's
    uid: int
    pid: int  # as the kernel says; -1: it is on another machine
    role: Role
    host: str = ""  # of another machine, where that is known
    key: str = ""  # the public half, of another machine

    def sees(self, owner: int) -> bool:
        """May it be told of what this owner has?"""
        return self.uid == owner or self.role in (Role.ADMIN, Role.READER)

    def commands(self, owner: int) -> bool:
        """May it change or end what this owner has?"""
        return self.uid == owner or self.role is Role.ADMIN

    def speaks_for(self, node: str) -> bool:
        """An agent's key is named for its node."""
        return self.role is Role.ADMIN or (self.role is Role.AGENT and self.name == node)


class Waiter:
    """A client that is answered when its lease is granted and made, or the time is up."""

    def __init__(self, lease: str, until: float) -> None:
        self.lease = lease
        self.until = until  # on the monotonic clock
        self.peer: Peer | None = None
        self.request = ""


class Later(Waiter, ABC):
    """One that waits for something else than a lease, and knows the answer itself."""

    @abstractmethod
    def answer(self, *, at_once: bool) -> wire.Body | None:
        """None: nothing yet; not ``at_once``, which is when its time is up. Raises Refused."""


class Work(Later):
    """An answer that takes long to make: a piece each turn, and as fast as its client's part of the time
    allows."""

    def __init__(self, pieces: Generator[None, None, wire.Body]) -> None:
        super().__init__("", 0.0)  # it is always due
        self._pieces = pieces

    def answer(self, *, at_once: bool) -> wire.Body | None:
        try:
            next(self._pieces)
        except StopIteration as done:
            body: wire.Body = done.value
            return body
        return None


FAULTS = (wire.Malformed, msgspec.ValidationError, core.InvalidError, Refused, HalError)


def fault(wrong: Exception) -> wire.ErrorBody:
    """What is said of one of FAULTS."""
    match wrong:
        case Refused():
            return wire.ErrorBody(wrong.code, str(wrong))
        case wire.Malformed():
            return wire.ErrorBody("malformed", str(wrong))
        case msgspec.ValidationError(__cause__=ValueError() as own):  # a sentence of ours
            return wire.ErrorBody("malformed", str(own))
        case msgspec.ValidationError():
            return wire.ErrorBody("malformed", f"the request's body does not fit: {_short(str(wrong))}")
        case core.InvalidError():
            return wire.ErrorBody("not_found" if wrong.field == "class" else "malformed", str(wrong))
    return wire.ErrorBody("failed", str(wrong))


def _short(text: str) -> str:
    """What was sent may be in it; where in the body it was is at its end."""
    return text if len(text) <= 400 else f"{text[:200]}…{text[-200:]}"


def error(id: str, code: str, message: str) -> wire.Reply:
    return wire.Reply(wire.VERSION, id, False, error=wire.ErrorBody(code, message))


def leaving(id: str) -> wire.Reply:
    return error(id, "leaving", "this scheduler is on its way out")


def code_of(refused: core.Refuse) -> str:
    """What the protocol calls a refusal of the core."""
    if refused.code is core.Refusal.INVALID:
        return "not_found" if refused.field == "queue" else "malformed"
    if refused.code is core.Refusal.IN_USE:
        return "failed"
    return refused.code.value

"""What parent and worker say to each other: length-prefixed MessagePack over a socket pair.

Each method of the contract has its types here, so that both sides check what they read.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import Any

import msgspec
from msgspec import Struct

from hal.backend import (
    Cost,
    GoneError,
    Group,
    HalError,
    StateError,
    TemporaryError,
    UnsupportedError,
)
from hal.model import Enforcement, Event, Exposure, Hold, Inventory, Portrait, Probe, Process, Reading

__all__ = ["METHODS", "Failure", "Hung", "Reply", "Request", "receive", "send"]

# method: (its arguments, its result)
METHODS: dict[str, tuple[Any, Any]] = {
    "probe": (tuple[()], Probe),
    "enumerate": (tuple[()], Inventory),
    "sample": (tuple[list[Group], list[str], float, frozenset[Cost]], list[Reading]),
    "processes": (tuple[list[str], float], list[Process]),
    "expose": (tuple[list[str]], Exposure),
    "limits": (tuple[()], Enforcement),
    "events": (tuple[()], list[Event]),
    "hold_memory": (tuple[str, str, int], Hold),
    "share_units": (tuple[str, int, int], Exposure | None),
    "describe": (tuple[()], Portrait),
}

_KINDS = {kind.__name__: kind for kind in (GoneError, StateError, TemporaryError, UnsupportedError, HalError)}
_HEAD = struct.Struct("=I")
_MOST = 64 << 20  # far above the readings of any node; a damaged worker may say any length


class Request(Struct, frozen=True, array_like=True):
    id: int
    method: str
    arguments: msgspec.Raw


class Failure(Struct, frozen=True, array_like=True):
    """An exception of the backend: HalErrors keep their class, all else is a HalError."""

    kind: str
    message: str
    vendor_code: int | None

    @classmethod
    def of(cls, error: Exception) -> Failure:
        if not isinstance(error, HalError):
            return cls("HalError", f"{type(error).__name__}: {error}", None)
        kind = next(name for name, kind in _KINDS.items() if isinstance(error, kind))
        return cls(kind, str(error), error.vendor_code)

    def error(self) -> HalError:
        return _KINDS.get(self.kind, HalError)(self.message, vendor_code=self.vendor_code)


class Reply(Struct, frozen=True, array_like=True):
    id: int
    failure: Failure | None
    result: msgspec.Raw


class Hung(Exception):
    """Nothing came by the deadline."""


def send(end: socket.socket, message: Request | Reply) -> None:
    """Raises OSError when the other side has gone."""
    packed = msgspec.msgpack.encode(message)
    end.sendall(_HEAD.pack(len(packed)) + packed)


def receive(end: socket.socket, deadline: float | None = None) -> bytes:
    """The next message, by ``time.monotonic()`` deadline.

    Raises EOFError when the other side has gone, Hung, and ValueError for an absurd length.
    """
    (size,) = _HEAD.unpack(_exactly(end, _HEAD.size, deadline))
    if size > _MOST:
        raise ValueError(f"a message of {size} bytes")
    return _exactly(end, size, deadline)


def _exactly(end: socket.socket, size: int, deadline: float | None) -> bytes:
    parts = []
    while size > 0:
        if deadline is not None:
            end.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            part = end.recv(min(size, 1 << 20))
        except TimeoutError:
            raise Hung from None
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)

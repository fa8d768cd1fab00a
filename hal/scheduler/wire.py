"""What goes over the socket: MessagePack maps, bounded before they are unpacked and typed after.

A request is one frame, a reply is one frame (docs/protocol.md describes both for other languages)::

    {"v": 1, "id": "…", "op": "acquire", "body": {…}}
    {"v": 1, "id": "…", "ok": true, "body": {…}}
    {"v": 1, "id": "…", "ok": false, "error": {"code": "no_room", "message": "…"}}
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgpack
import msgspec
from msgspec import Struct

__all__ = [
    "MAX_FRAME_BYTES",
    "MAX_REPLY_BYTES",
    "VERSION",
    "Body",
    "ErrorBody",
    "Malformed",
    "Reply",
    "Request",
    "pack",
    "unpack_message",
    "unpack_reply",
    "unpack_request",
]

VERSION = 1
MAX_FRAME_BYTES = 64 * 1024  # of a request
MAX_REPLY_BYTES = 16 * 1024 * 1024  # lists grow with the cluster

Body = dict[str, Any]


class Malformed(ValueError):
    """Bytes that are no message; ``str()`` says why, ``id`` names the request if it could be read."""

    def __init__(self, message: str, id: str = "") -> None:
        super().__init__(message)
        self.id = id


class Request(Struct, frozen=True):
    v: int
    id: str
    op: str
    body: Body = {}


class ErrorBody(Struct, frozen=True):
    code: str
    message: str


class Reply(Struct, frozen=True):
    v: int
    id: str
    ok: bool
    body: Body = {}
    error: ErrorBody | None = None


def pack(message: Request | Reply) -> bytes:
    packed: bytes = msgpack.packb(msgspec.to_builtins(message, builtin_types=(bytes,)))
    return packed


def unpack_message(frame: bytes) -> Request | Reply:
    """Of an agent, which asks and is asked. Raises Malformed."""
    raw = _raw(frame, MAX_FRAME_BYTES)
    return _checked(raw, Request) if isinstance(raw, dict) and "op" in raw else _checked(raw, Reply)


def unpack_request(frame: bytes) -> Request:
    """Raises Malformed."""
    return _typed(frame, Request, MAX_FRAME_BYTES)


def unpack_reply(frame: bytes) -> Reply:
    """Raises Malformed."""
    return _typed(frame, Reply, MAX_REPLY_BYTES)


T = TypeVar("T", Request, Reply)


def _typed(frame: bytes, kind: type[T], most: int) -> T:
    return _checked(_raw(frame, most), kind)


def _raw(frame: bytes, most: int) -> Any:
    if len(frame) > most:
        raise Malformed(f"the message has {len(frame)} bytes; {most} are allowed")
    try:
        return msgpack.unpackb(frame, raw=False, strict_map_key=True)
    except Exception as error:  # msgpack raises ValueError, its subclasses, and on bad UTF-8 others
        raise Malformed(f"the message is not MessagePack: {error}") from None


def _checked(raw: Any, kind: type[T]) -> T:
    id = raw["id"] if isinstance(raw, dict) and isinstance(raw.get("id"), str) else ""
    try:
        message = msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise Malformed(f"the message is not of the protocol: {error}", id) from None
    if message.v != VERSION:
        raise Malformed(f"protocol version {message.v} is not known here; this is version {VERSION}", id)
    return message

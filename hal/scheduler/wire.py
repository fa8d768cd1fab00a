"""What goes over the socket: MessagePack maps, bounded before they are unpacked and typed after.

A request is one frame, a reply is one frame (docs/protocol.md describes both for other languages)::

    {"v": 1, "id": "…", "op": "acquire", "body": {…}}
    {"v": 1, "id": "…", "ok": true, "body": {…}}
    {"v": 1, "id": "…", "ok": false, "error": {"code": "no_room", "message": "…"}}
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import msgpack
import msgspec
from msgspec import Struct

__all__ = [
    "MAX_AGENT_BYTES",
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
MAX_AGENT_BYTES = 256 * 1024  # of what an agent reports: it names all that its node has
MAX_REPLY_BYTES = 16 * 1024 * 1024  # of a reply, and of an order: lists grow with the cluster

Body = dict[str, Any]


class Malformed(ValueError):
    """Bytes that are no message; ``str()`` says why, ``id`` names the request if it could be read."""

    def __init__(self, message: str, id: str = "") -> None:
        super().__init__(message)
        self.id = id


class Request(Struct, frozen=True, omit_defaults=True):
    v: int
    id: str
    op: str
    body: Body = {}
    deadline_ms: int | None = None  # since 1970, as the scheduler counts: not begun after it


class ErrorBody(Struct, frozen=True):
    code: str
    message: str


class Reply(Struct, frozen=True):
    v: int
    id: str
    ok: bool
    body: Body = {}
    error: ErrorBody | None = None


_encode = msgspec.msgpack.Encoder().encode


def pack(message: Request | Reply) -> bytes:
    return _encode(message)


def unpack_message(frame: bytes, most: int = MAX_AGENT_BYTES) -> Request | Reply:
    """Of an agent or a scheduler, which ask and are asked. Raises Malformed."""
    try:
        return _typed(frame, Request, _decode_request, most)
    except Malformed as wrong:
        with contextlib.suppress(Malformed):
            return _typed(frame, Reply, _decode_reply, most)
        raise wrong


def unpack_request(frame: bytes) -> Request:
    """Raises Malformed."""
    return _typed(frame, Request, _decode_request, MAX_FRAME_BYTES)


def unpack_reply(frame: bytes) -> Reply:
    """Raises Malformed."""
    return _typed(frame, Reply, _decode_reply, MAX_REPLY_BYTES)


_decode_request = msgspec.msgpack.Decoder(Request).decode
_decode_reply = msgspec.msgpack.Decoder(Reply).decode

T = TypeVar("T", Request, Reply)


def _typed(frame: bytes, kind: type[T], decode: Callable[[bytes], T], most: int) -> T:
    if len(frame) > most:
        raise Malformed(f"the message has {len(frame)} bytes; {most} are allowed")
    try:
        message = decode(frame)
    except Exception:  # of the decoder's own, RecursionError, and on bad UTF-8 others
        raise _why_not(frame, kind) from None
    if message.v != VERSION:
        raise Malformed(
            f"protocol version {message.v} is not known here; this is version {VERSION}", message.id
        )
    return message


def _why_not(frame: bytes, kind: type[Request] | type[Reply]) -> Malformed:
    """What is wrong, and with which request: read again, for the id that can be read nevertheless."""
    try:
        raw = msgpack.unpackb(frame, raw=False, strict_map_key=True)
    except Exception as error:  # msgpack raises ValueError, its subclasses, and on bad UTF-8 others
        return Malformed(f"the message is not MessagePack: {error}")
    id = raw["id"] if isinstance(raw, dict) and isinstance(raw.get("id"), str) else ""
    try:
        msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        return Malformed(f"the message is not of the protocol: {error}", id)
    return Malformed("the message is not MessagePack that can be read here", id)

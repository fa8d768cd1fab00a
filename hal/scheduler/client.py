"""Talking to the daemon: one call, one reply; retries are safe because acquiring carries a key."""

from __future__ import annotations

import secrets
import time
from typing import Any

import zmq

from hal.backend import GoneError, HalError, StateError, TemporaryError, UnsupportedError
from hal.scheduler import wire
from hal.scheduler.endpoint import Endpoint
from hal.scheduler.errors import MalformedError
from hal.scheduler.places import Places

__all__ = ["REST", "Client", "packed", "refusal"]

REST = 0.2  # seconds before a scheduler that is too busy is asked again
_BY_CODE: dict[str, type[HalError]] = {
    "no_room": TemporaryError,
    "limit": TemporaryError,
    "busy": TemporaryError,
    "late": TemporaryError,
    "no_device": UnsupportedError,
    "too_large": UnsupportedError,
    "not_found": GoneError,
    "ended": GoneError,
    "denied": StateError,
    "failed": StateError,
    "malformed": MalformedError,
}


def refusal(error: wire.ErrorBody | None) -> HalError:
    """What to raise for an error that was answered."""
    found = error or wire.ErrorBody("failed", "the scheduler gave no reason")
    return _BY_CODE.get(found.code, HalError)(found.message)


def packed(request: wire.Request) -> bytes:
    """Raises MalformedError when there is something in it that cannot be sent."""
    try:
        return wire.pack(request)
    except OverflowError:
        raise MalformedError("a number in the request is larger than any can be") from None
    except UnicodeEncodeError as error:
        text = ascii(error.object if len(error.object) <= 64 else f"{error.object[:61]}...")
        raise MalformedError(f"{text} is not text in UTF-8, and cannot be sent") from None


class Client:
    """A connection to the daemon of one runtime directory, or to the one that is chosen. For one thread."""

    def __init__(self, to: Places | Endpoint | None = None, *, timeout: float = 5.0) -> None:
        """Raises StateError when HAL_SCHEDULER or HAL_KEY is of no use."""
        if to is None:
            to = Endpoint.chosen()
        self._endpoint = Endpoint.here(to) if isinstance(to, Places) else to
        self._timeout = timeout
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._hang_up()
        self._context.term()

    def call(self, op: str, *, timeout: float | None = None, **body: Any) -> dict[str, Any]:
        """One operation, asked again while the scheduler is too busy for this client. Raises Unreachable when
        nobody answers in time, else the HalError of the refusal."""
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        while True:
            if not self._endpoint.somebody_listens():
                self._hang_up()
                raise self._endpoint.nobody()
            request = wire.Request(wire.VERSION, secrets.token_hex(8), op, body)
            reply = self._exchange(request, deadline - time.monotonic())
            is_busy = reply.error is not None and reply.error.code == "busy"
            if not is_busy or time.monotonic() + REST >= deadline:
                break
            time.sleep(REST)
        if reply.ok:
            return reply.body
        if reply.error is not None and reply.error.code == "leaving":
            self._hang_up()
            raise self._endpoint.nobody()
        raise refusal(reply.error)

    def listed(self, op: str, *names: str, **body: Any) -> dict[str, list[dict[str, Any]]]:
        """Lists of an operation that answers with a page at a time, whole."""
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        page: dict[str, Any] = {}
        while True:
            answer = self.call(op, **body, **page)
            for name in names:
                found[name] += answer[name]
            if answer.get("next") is None:
                return found
            page = {"after": answer["next"]}

    def _exchange(self, request: wire.Request, timeout: float) -> wire.Reply:
        frame = packed(request)
        deadline = time.monotonic() + timeout
        if self._socket is None:
            self._socket = self._context.socket(zmq.DEALER)
            self._socket.set(zmq.LINGER, 0)
            self._socket.set(zmq.MAXMSGSIZE, wire.MAX_REPLY_BYTES)
            try:
                self._endpoint.connect(self._socket, timeout)
            except StateError:
                self._hang_up()
                raise
        self._socket.send(frame)
        while (left := deadline - time.monotonic()) > 0 and self._socket.poll(int(left * 1000) + 1):
            try:
                reply = wire.unpack_reply(self._socket.recv())
            except wire.Malformed as error:
                raise StateError(f"the scheduler gave an answer that cannot be read: {error}") from None
            if reply.id == request.id:  # an earlier call's late answer is dropped
                return reply
        self._hang_up()
        raise self._endpoint.nobody()

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

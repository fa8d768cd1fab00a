"""Talking to the daemon: one call, one reply; retries are safe because acquiring carries a key."""

from __future__ import annotations

import os
import secrets
import socket
import time
from typing import Any

import zmq

from hal.backend import GoneError, HalError, StateError, TemporaryError, UnsupportedError
from hal.scheduler import wire
from hal.scheduler.places import Places

__all__ = ["Client", "Unreachable"]

_BY_CODE: dict[str, type[HalError]] = {
    "no_room": TemporaryError,
    "limit": TemporaryError,
    "no_device": UnsupportedError,
    "too_large": UnsupportedError,
    "not_found": GoneError,
    "ended": GoneError,
    "denied": StateError,
    "failed": StateError,
}


class Unreachable(StateError):
    """No daemon answers."""


class Client:
    """A connection to the daemon of one runtime directory. For one thread."""

    def __init__(self, places: Places | None = None, *, timeout: float = 5.0) -> None:
        self._places = Places() if places is None else places
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
        """One operation. Raises Unreachable when nobody answers in time, else the HalError of the refusal."""
        if not self._somebody_listens():
            self._hang_up()
            raise self._nobody()
        request = wire.Request(wire.VERSION, secrets.token_hex(8), op, body)
        reply = self._exchange(request, self._timeout if timeout is None else timeout)
        if reply.ok:
            return reply.body
        if reply.error is not None and reply.error.code == "leaving":
            self._hang_up()
            raise self._nobody()
        error = reply.error or wire.ErrorBody("failed", "the scheduler gave no reason")
        raise _BY_CODE.get(error.code, HalError)(error.message)

    def _exchange(self, request: wire.Request, timeout: float) -> wire.Reply:
        if self._socket is None:
            self._socket = self._context.socket(zmq.DEALER)
            self._socket.set(zmq.LINGER, 0)
            self._socket.set(zmq.MAXMSGSIZE, wire.MAX_REPLY_BYTES)
            self._socket.connect(self._places.address)
        deadline = time.monotonic() + timeout
        self._socket.send(wire.pack(request))
        while (left := deadline - time.monotonic()) > 0 and self._socket.poll(int(left * 1000) + 1):
            try:
                reply = wire.unpack_reply(self._socket.recv())
            except wire.Malformed as error:
                raise StateError(f"the scheduler gave an answer that cannot be read: {error}") from None
            if reply.id == request.id:  # an earlier call's late answer is dropped
                return reply
        self._hang_up()
        raise self._nobody()

    def _somebody_listens(self) -> bool:
        """Asked of the kernel, which knows at once: ZeroMQ would wait for a daemon that was killed."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            try:
                probe.connect(os.fspath(self._places.socket))
            except BlockingIOError:  # one that has much to do
                return True
            except OSError:
                return False
            return True

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _nobody(self) -> Unreachable:
        return Unreachable(
            f"no scheduler answers at {self._places.socket}; start one with 'hal serve', "
            "or use 'hal run', which starts its own"
        )

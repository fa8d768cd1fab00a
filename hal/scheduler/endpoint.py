"""Where a scheduler is reached, and with which key: this user's own socket, or what HAL_SCHEDULER names."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import zmq
from msgspec import Struct

from hal.backend import StateError
from hal.scheduler import wire
from hal.scheduler.places import Places
from hal.scheduler.security.keys import ClientKey, read_client_key

__all__ = ["Endpoint", "endpoint"]


class Endpoint(Struct, frozen=True):
    """An address, and for TCP the key with which it is reached."""

    address: str
    key: ClientKey | None = None

    def connect(self, to: zmq.Socket[Any]) -> None:
        """Set a fresh DEALER's limits and key, and connect it. Raises StateError."""
        to.set(zmq.LINGER, 0)
        to.set(zmq.MAXMSGSIZE, wire.MAX_REPLY_BYTES)
        if self.key is not None:
            to.set(zmq.CURVE_SERVERKEY, self.key.scheduler.encode())
            to.set(zmq.CURVE_PUBLICKEY, self.key.public.encode())
            to.set(zmq.CURVE_SECRETKEY, self.key.secret.encode())
        to.set(zmq.IPV6, int("[" in self.address))
        try:
            to.connect(self.address)
        except zmq.ZMQError as error:
            raise StateError(f"'{self.address}' cannot be connected to: {error.strerror}") from None

    def somebody_listens(self) -> bool:
        """Asked of the kernel, which knows of its own sockets at once: ZeroMQ would wait for a daemon that
        was killed. Of another machine nobody knows: True."""
        if not self.address.startswith("ipc://"):
            return True
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            try:
                probe.connect(self.address.removeprefix("ipc://"))
            except BlockingIOError:  # one that has much to do
                return True
            except OSError:
                return False
            return True

    @property
    def nobody(self) -> str:
        """What to say when nobody answers there."""
        if self.address.startswith("ipc://"):
            return (
                f"no scheduler answers at {self.address.removeprefix('ipc://')}; start one with 'hal serve', "
                "or use 'hal run', which starts its own"
            )
        return f"no scheduler answers at {self.address}, or it does not know this key"


def endpoint(address: str | None = None, key: str | os.PathLike[str] | None = None) -> Endpoint:
    """What is given, else what HAL_SCHEDULER and HAL_KEY say, else this user's own socket.

    Raises StateError for what is no address, and for a key that is missing or cannot be used.
    """
    where = address or os.environ.get("HAL_SCHEDULER") or Places().address
    if where.startswith("ipc://"):
        return Endpoint(where)
    if not where.startswith("tcp://"):
        raise StateError(f"'{where}' is no scheduler's address: write tcp://HOST:PORT or ipc://PATH")
    file = key or os.environ.get("HAL_KEY")
    if file is None:
        raise StateError(f"{where} needs a key: set HAL_KEY to its file ('hal keys new' makes one)")
    return Endpoint(where, read_client_key(Path(file)))

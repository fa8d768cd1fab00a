"""Where the scheduler is, and what a socket needs to reach it: HAL_SCHEDULER and HAL_KEY, or this machine's.

Over TCP the handshake is waited for: ZeroMQ itself would try for ever, and not say that a key is refused.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

import zmq

from hal.backend import StateError
from hal.scheduler.errors import Unreachable
from hal.scheduler.lender import Lender
from hal.scheduler.names import check_address
from hal.scheduler.places import Places
from hal.scheduler.security.keys import ClientKey, read_client_key

__all__ = ["Endpoint"]

_FAILED = (zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_DISCONNECTED)


class Endpoint:
    """One scheduler's address, and over TCP the key that opens it."""

    def __init__(self, address: str, key: ClientKey | None = None, *, places: Places | None = None) -> None:
        """Raises StateError when it is no address, or one of TCP without a key."""
        try:
            if places is None:  # else nobody has written it
                check_address(address)
        except ValueError as wrong:
            raise StateError(str(wrong)) from None
        if address.startswith("tcp://") and key is None:
            raise StateError(
                f"{address} needs a key: set HAL_KEY to its file ('hal keys new' makes one, at the scheduler)"
            )
        self.address = address
        self.key = key
        self.places = places  # of this user on this machine: a private daemon can be started there

    @classmethod
    def here(cls, places: Places) -> Endpoint:
        return cls(places.address, places=places)

    @classmethod
    def chosen(cls) -> Endpoint:
        """Of HAL_SCHEDULER, with HAL_KEY; else that of the runtime directory. Raises StateError."""
        address, file = os.environ.get("HAL_SCHEDULER"), os.environ.get("HAL_KEY")
        if not address:
            return cls.here(Places())
        needs_key = bool(file) and address.startswith("tcp://")
        return cls(address, read_client_key(Path(file)) if file and needs_key else None)

    def connect(self, dealer: zmq.Socket[bytes], timeout: float) -> None:
        """Raises Unreachable when nobody is there within so many seconds, StateError when the key is refused
        or the scheduler is another."""
        if self.key is None:
            self.dial(dealer)
            return
        deadline = time.monotonic() + timeout
        monitor = dealer.get_monitor_socket()
        try:
            self.dial(dealer)
            self._look_up(timeout)
            self._wait(monitor, deadline - time.monotonic())
        finally:
            dealer.disable_monitor()
            monitor.close(linger=0)

    def dial(self, dealer: zmq.Socket[Any]) -> None:
        """Connect without waiting for what becomes of it. Raises StateError when the address is none."""
        if self.key is not None:
            dealer.set(zmq.CURVE_SERVERKEY, self.key.scheduler.encode())
            dealer.set(zmq.CURVE_PUBLICKEY, self.key.public.encode())
            dealer.set(zmq.CURVE_SECRETKEY, self.key.secret.encode())
            dealer.set(zmq.IPV6, int("[" in self.address))
        try:
            dealer.connect(self.address)
        except zmq.ZMQError as error:
            what = "write tcp://HOST:PORT or ipc://PATH" if error.errno == errno.EINVAL else error.strerror
            raise StateError(f"'{self.address}' is no scheduler's address; {what}") from None

    def _look_up(self, timeout: float) -> None:
        """ZeroMQ looks a name up in its own thread, again and again, and tells nobody that there is none."""
        host = self.address.removeprefix("tcp://").rpartition(":")[0].strip("[]")
        wrong: list[Exception] = []

        def ask() -> None:
            try:
                socket.getaddrinfo(host, None)
            except (OSError, UnicodeError) as error:
                wrong.append(error)

        asking = threading.Thread(target=ask, name="hal-look-up", daemon=True)  # a resolver knows no deadline
        asking.start()
        asking.join(timeout)
        if asking.is_alive():
            wrong.append(TimeoutError(errno.ETIMEDOUT, "the name is still being looked up"))
        if wrong:
            reason = getattr(wrong[0], "strerror", None) or wrong[0]
            raise Unreachable(f"no scheduler answers at {self.address}: '{host}': {reason}")

    def _wait(self, monitor: zmq.Socket[bytes], timeout: float) -> None:
        assert self.key is not None
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0 and monitor.poll(int(left * 1000) + 1):
            (event, _) = struct.unpack("=hi", monitor.recv_multipart()[0])
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                return
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                raise StateError(
                    f"the scheduler at {self.address} refuses the key '{self.key.name}': it is not known "
                    "there, or was revoked"
                )
            if event in _FAILED:
                raise StateError(
                    f"what answers at {self.address} is not the scheduler of the key '{self.key.name}', "
                    "or is on its way out"
                )
            if event == zmq.EVENT_CLOSED:  # the connection was refused
                raise self.nobody()
        raise self.nobody()

    def somebody_listens(self) -> bool:
        """Of a socket of this machine, asked of the kernel, which knows at once: ZeroMQ would wait for a
        daemon that was killed. Over TCP ``connect`` tells."""
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

    def nobody(self) -> Unreachable:
        if self.address.startswith("ipc://") and _is_shut(path := self.address.removeprefix("ipc://")):
            return Unreachable(
                f"{path} is not open to this user: the scheduler's hal.toml has to name a group of theirs "
                "(security.group), or they use a key (HAL_SCHEDULER=tcp://HOST:PORT, HAL_KEY=FILE)"
            )
        if self.places is None:
            return Unreachable(f"no scheduler answers at {self.address}")
        if address := Lender(self.places).elsewhere():
            return Unreachable(
                f"no scheduler runs here: this machine's devices are lent by the one at {address}; set "
                "HAL_SCHEDULER to that, and HAL_KEY to your key's file"
            )
        return Unreachable(
            f"no scheduler answers at {self.places.socket}; start one with 'hal serve', "
            "or use 'hal run', which starts its own"
        )


def _is_shut(path: str) -> bool:
    """It is there, or may be, and only others can reach it."""
    try:
        return Path(path).is_socket() and not os.access(path, os.W_OK)
    except PermissionError:
        return True

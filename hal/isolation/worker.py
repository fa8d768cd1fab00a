"""The worker: one backend, called by its parent, in a process that may die."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from hal.backend import (
    Ages,
    Backend,
    Describes,
    Exposes,
    HoldsMemory,
    Limits,
    ListsProcesses,
    SharesUnits,
    Watches,
)
from hal.entries import installed, load
from hal.isolation.calls import METHODS, Failure, Reply, Request, receive, send
from hal.model import Enforcement, Exposure, Hold, Portrait, Rung

__all__ = ["serve"]

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15  # prctl(2)

# What a backend without an optional group answers.
_WITHOUT: dict[str, tuple[type[Any], Any]] = {
    "processes": (ListsProcesses, []),
    "expose": (Exposes, Exposure()),
    "limits": (Limits, Enforcement(Rung.NONE, Rung.NONE)),
    "events": (Watches, []),
    "hold_memory": (HoldsMemory, Hold(Rung.NONE, "its backend knows no such limit")),
    "share_units": (SharesUnits, None),
    "describe": (Describes, Portrait()),
}


def serve(make: Callable[[], Backend], end: socket.socket, name: str = "") -> None:
    """Answer until the parent hangs up. Nothing that a vendor's library prints reaches the user.

    The worker of an installed backend, called ``name``, begins anew when its library was replaced on disk.
    """
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_NAME, b"hal-vendor", 0, 0, 0)  # as `ps -c` and `top` show it
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent's to handle; it then hangs up
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    backend: Backend | Exception
    try:
        backend = make()
    except Exception as error:
        backend = error
    try:
        while True:
            send(end, _answer(backend, msgspec.msgpack.decode(receive(end), type=Request)))
            if name and isinstance(backend, Ages) and backend.outdated():
                _take_over(name, end)
    except (EOFError, OSError):
        return


def _answer(backend: Backend | Exception, request: Request) -> Reply:
    try:
        if isinstance(backend, Exception):
            raise backend
        arguments, _ = METHODS[request.method]
        given = msgspec.msgpack.decode(request.arguments, type=arguments)
        optional = _WITHOUT.get(request.method)
        if optional is not None and not isinstance(backend, optional[0]):
            value = optional[1]
        else:
            value = getattr(backend, request.method)(*given)
        return Reply(request.id, None, msgspec.Raw(msgspec.msgpack.encode(value)))
    except Exception as error:  # a stranger's code: anything may come out of it
        return Reply(request.id, Failure.of(error), msgspec.Raw(b"\xc0"))


def _take_over(name: str, end: socket.socket) -> None:
    """This process with nothing loaded yet: the same id, the same socket, and what waits in it unread."""
    end.set_inheritable(True)
    command = [sys.executable, "-m", "hal.isolation.worker", name, str(end.fileno())]
    os.execv(sys.executable, command)  # noqa: S606 - our own


def main(name: str, descriptor: str) -> None:
    """The start of a worker that could not be forked: ``python -m hal.isolation.worker NAME FD``."""
    end = socket.socket(fileno=int(descriptor))
    serve(lambda: load(installed("hal.backends")[name])(), end, name)


if __name__ == "__main__":
    main(*sys.argv[1:])

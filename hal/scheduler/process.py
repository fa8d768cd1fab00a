"""What makes a process the one daemon of a directory: its lock, and signals that a poll can see."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from hal.backend import StateError
from hal.scheduler.lender import Lender
from hal.scheduler.places import Places

__all__ = [
    "AlreadyRunning",
    "collect_rarely",
    "locked",
    "locked_for_agent",
    "signals_as_bytes",
    "tell_systemd",
]


class AlreadyRunning(StateError):
    """Another daemon serves this runtime directory, or its store."""


def collect_rarely() -> None:
    """What is there by now stays: Python need not go through it for garbage, nor often through what comes.

    A look at everything holds up all who wait, by 10 ms with 10 MB of objects and by more with more.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@contextlib.contextmanager
def locked(places: Places, who: str | None) -> Iterator[None]:
    """One daemon a directory: without this, a second one would take over the first one's socket. One a
    store, which may be elsewhere. And one that lends what is here: ``who`` (lender.py), or None if this one
    does not. Raises AlreadyRunning, or StateError when what is here is another's."""
    locks = [places.lock] if places.state == places.directory else [places.lock, places.store_lock]
    lender = Lender(places)
    with contextlib.ExitStack() as held:
        for lock in locks:
            serves = AlreadyRunning(f"a scheduler already serves {lock.parent}")
            held.enter_context(_lock(lock, serves, places))
        if who is not None:
            lender.check(who)
            held.enter_context(_lock(places.agent_lock, lender.taken(), places))
            lender.write(who)
            locks.append(places.agent_lock)
        try:
            yield
        finally:
            if not places.store.exists():
                for lock in locks:
                    lock.unlink(missing_ok=True)
                if who is not None:
                    lender.remove()
                places.log.unlink(missing_ok=True)
                places.clock.unlink(missing_ok=True)
                places.remove_empty()


@contextlib.contextmanager
def locked_for_agent(places: Places, scheduler: str) -> Iterator[None]:
    """For the agent of a scheduler elsewhere, at this address. Raises StateError."""
    lender = Lender(places)
    with _lock(places.agent_lock, lender.taken(), places):
        lender.check(scheduler)
        lender.write(scheduler)
        yield
        places.agent_lock.unlink(missing_ok=True)


def _lock(lock: Path, taken: StateError, places: Places) -> IO[bytes]:
    """Closed, it is free again. Raises ``taken``."""
    while True:
        handle = lock.open("ab")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            raise taken from None
        # A predecessor may have removed the file between our open and our lock.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle.fileno()), lock.stat()):
                return handle
        handle.close()
        places.make()


def tell_systemd(state: str) -> None:
    """``READY=1`` and the like (sd_notify(3)), where a unit of ``Type=notify`` waits for it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            to.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)


@contextlib.contextmanager
def signals_as_bytes(*more: signal.Signals) -> Iterator[socket.socket]:
    """SIGTERM, SIGINT and ``more`` arrive on a socket that the poll sees, each as a byte of its number."""
    ours, pythons = socket.socketpair()
    pythons.setblocking(False)
    before = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
    numbers = (signal.SIGTERM, signal.SIGINT, *more)
    handlers = {number: signal.signal(number, lambda *_: None) for number in numbers}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)  # whoever started this may have blocked them
    try:
        yield ours
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        ours.close()
        pythons.close()

"""A lease as a value that keeps itself alive."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from hal.backend import GoneError
from hal.model import Enforcement, Rung
from hal.scheduler.client import Client, Unreachable
from hal.scheduler.places import Places
from hal.scheduler.private import ensure_daemon

__all__ = ["HeldLease", "lease"]


class HeldLease:
    """A slice or device that is yours until ``release()`` or the end of a ``with``.

    A thread renews it. If that fails until the lease has run out, or the scheduler ends it, ``lost`` is
    set to the reason and ``on_lost`` is called once: whatever uses the slice has to stop then.
    """

    def __init__(
        self, places: Places, body: dict[str, Any], *, private: bool, on_lost: Callable[[str], None] | None
    ) -> None:
        self._places = places
        self._private = private
        self._on_lost = on_lost
        granted = body["lease"]
        self.id: str = granted["id"]
        self.device: str = granted["device"]
        self.memory_bytes: int = granted["memory_bytes"]
        self.whole: bool = granted["whole"]
        self.epoch: int = granted["epoch"]
        self.enforcement = Enforcement(**{k: Rung(v) for k, v in granted["enforcement"].items()})
        self.variables: dict[str, str] = body["environment"]
        self.lost: str | None = None
        self._ttl: float = granted["ttl_seconds"]
        self._done = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="hal-lease", daemon=True)
        # No signal is for this thread: it would have the default action here, whatever others block or await.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        self._renewer.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __enter__(self) -> HeldLease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def environment(self, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
        """What to start a program with, so that it runs in this slice and sees nothing else."""
        env = {**inherited, **self.variables}
        preloads = [source.get("LD_PRELOAD", "") for source in (self.variables, inherited)]
        if any(preloads):
            env["LD_PRELOAD"] = ":".join(path for path in preloads if path)
        return env

    def release(self) -> None:
        """Give it back. A lease that has ended already, or whose scheduler is gone, is no error."""
        if self._done.is_set():
            return
        self._done.set()
        if threading.current_thread() is not self._renewer:
            self._renewer.join()
        if self.lost is None:
            with Client(self._places) as client, contextlib.suppress(GoneError, Unreachable):
                client.call("release", lease=self.id)

    def _renew(self) -> None:
        good_until = time.monotonic() + self._ttl
        with Client(self._places, timeout=min(self._ttl / 3, 2.0)) as client:
            # Short steps after a failure: the time that is left is for more than one try.
            pause = self._ttl / 3
            while not self._done.wait(pause):
                asked = time.monotonic()
                pause = self._ttl / 3
                try:
                    client.call("renew", lease=self.id)
                    good_until = asked + self._ttl
                except GoneError as error:
                    return self._lose(str(error))
                except Exception as error:  # whatever it is, the holder has to learn when time is up
                    if time.monotonic() > good_until:
                        return self._lose(f"it could not be renewed: {error}")
                    pause = self._ttl / 30
                    if self._private:
                        with contextlib.suppress(Exception):
                            ensure_daemon(self._places)
        return None

    def _lose(self, reason: str) -> None:
        self.lost = reason
        if self._on_lost is not None:
            self._on_lost(reason)


def lease(
    *,
    memory_bytes: int | None = None,
    vendor: str | None = None,
    device: str | None = None,
    name: str = "",
    ttl_seconds: float = 15.0,
    places: Places | None = None,
    on_lost: Callable[[str], None] | None = None,
) -> HeldLease:
    """Lease a slice of ``memory_bytes``, or with ``None`` a whole device.

    Uses the daemon of the runtime directory, or starts a private one. Raises TemporaryError when there is
    no room now, UnsupportedError when no device here can ever serve it, StateError without a scheduler.
    """
    where = Places() if places is None else places
    key = secrets.token_hex(16)
    asked: dict[str, Any] = {
        "key": key,
        "memory_bytes": memory_bytes,
        "vendor": vendor,
        "device": device,
        "name": name,
        "ttl_seconds": ttl_seconds,
    }
    for last_try in (False, True):
        ensure_daemon(where)
        with Client(where, timeout=10.0) as client:
            try:
                body = client.call("acquire", **asked)
                private = bool(client.call("hello")["private"])
                break
            except Unreachable:
                if last_try:  # once it may have been on its way out
                    raise
    return HeldLease(where, body, private=private, on_lost=on_lost)

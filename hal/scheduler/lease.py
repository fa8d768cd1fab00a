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

import msgspec

from hal.backend import GoneError, HalError, StateError, TemporaryError
from hal.model import Enforcement, Rung
from hal.scheduler.client import Client
from hal.scheduler.core.request import Request
from hal.scheduler.endpoint import Endpoint
from hal.scheduler.errors import Unreachable
from hal.scheduler.places import Places
from hal.scheduler.private import ensure_daemon
from hal.scheduler.told import check_renewed

__all__ = ["HeldLease", "lease"]

_PATIENCE = 3.0  # seconds for which the scheduler is asked to hold back its answer: less than a lease lives,
# so that a scheduler which was restarted is asked again in time
_RESTART = 30.0  # seconds in which a scheduler that has gone may come back


class HeldLease:
    """A slice or device that is yours until ``release()`` or the end of a ``with``.

    A thread renews it. If that fails until the lease has run out, or the scheduler ends it, ``lost`` is
    set to the reason and ``on_lost`` is called once: whatever uses the slice has to stop then.
    """

    def __init__(
        self, where: Endpoint, body: dict[str, Any], *, host: _Host, on_lost: Callable[[str], None] | None
    ) -> None:
        self.where = self._where = where
        self._private = host.private
        self._on_lost = on_lost
        granted = body["lease"]
        self.id: str = granted["id"]
        self.device: str = granted["device"]
        self.devices: list[str] = granted["devices"]
        self.memory_bytes: int = granted["memory_bytes"]
        self.whole: bool = granted["whole"]
        self.epoch: int = granted["epoch"]
        self.enforcement = Enforcement(**{k: Rung(v) for k, v in granted["enforcement"].items()})
        self.parts: list[dict[str, Any]] = granted["parts"]
        self.is_here = all(part["node"] == host.node for part in self.parts)  # else on other nodes, or partly
        self.variables: list[dict[str, str]] = body["environments"]  # one for each member of the gang
        self.lost: str | None = None
        self._ttl: float = granted["ttl_seconds"]
        self._done = threading.Event()
        self._pid = os.getpid()
        self._renewer = threading.Thread(target=self._renew, name="hal-lease", daemon=True)
        # No signal is for this thread: it would have the default action here, whatever others block or await.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        self._renewer.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __enter__(self) -> HeldLease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def environment(self, inherited: Mapping[str, str] = os.environ, *, member: int = 0) -> dict[str, str]:
        """What to start a program with, so that it runs in this slice and sees nothing else.

        A gang has one for each ``member``.
        """
        own = self.variables[member]
        env = {**inherited, **own}
        preloads = [source.get("LD_PRELOAD", "") for source in (own, inherited)]
        if any(preloads):
            env["LD_PRELOAD"] = ":".join(path for path in preloads if path)
        return env

    def release(self) -> None:
        """Give it back. That a lease has ended, or a scheduler has gone or is busy, is no error."""
        if self._done.is_set() or os.getpid() != self._pid:  # a forked process leaves it to its parent
            return
        self._done.set()
        if threading.current_thread() is not self._renewer:
            self._renewer.join()
        if self.lost is None:
            # StateError: its node has lost it, or nobody answers.
            with Client(self._where) as client, contextlib.suppress(GoneError, StateError, TemporaryError):
                client.call("release", lease=self.id)

    def taken_away(self) -> str | None:
        """Why, and by whom, if somebody has ended it; None: nobody has, or the scheduler cannot be asked."""
        with contextlib.suppress(HalError), Client(self._where, timeout=2.0) as client:
            over = client.call("lease", lease=self.id).get("over")
            if over is None or over["cause"] == "holder_gone":
                return None
            if over["by"] is None:
                return None if over["cause"] == "released" else str(over["reason"])
            return f"{over['reason']} (by {over['by']})"
        return None

    def _renew(self) -> None:
        good_until = time.monotonic() + self._ttl
        with Client(self._where, timeout=min(self._ttl / 3, 2.0)) as client:
            # Short steps after a failure: the time that is left is for more than one try.
            pause = self._ttl / 3
            while not self._done.wait(pause):
                asked = time.monotonic()
                pause = self._ttl / 3
                try:
                    check_renewed(self.id, self.epoch, client.call("renew", lease=self.id))
                    good_until = asked + self._ttl
                except GoneError as error:
                    return self._lose(client, str(error))
                except Exception as error:  # whatever it is, the holder has to learn when time is up
                    if time.monotonic() > good_until:
                        return self._lose(client, f"it could not be renewed: {error}")
                    pause = self._ttl / 30
                    if self._private:
                        with contextlib.suppress(Exception):
                            ensure_daemon(self._where)
        return None

    def _lose(self, client: Client, reason: str) -> None:
        self.lost = reason
        try:
            if self._on_lost is not None:
                self._on_lost(reason)
        finally:  # with `requeue` it would wait again, and be granted to nobody
            with contextlib.suppress(HalError):
                client.call("release", lease=self.id, lost_epoch=self.epoch)


def lease(
    *,
    memory_bytes: int | None = None,
    vendor: str | None = None,
    device: str | None = None,
    name: str = "",
    ttl_seconds: float = 15.0,
    request: Request | None = None,
    preset: str | None = None,
    places: Places | None = None,
    on_lost: Callable[[str], None] | None = None,
    on_wait: Callable[[dict[str, Any]], None] | None = None,
) -> HeldLease:
    """Lease a slice of ``memory_bytes``, or with ``None`` a whole device; or whatever ``request`` says.

    Uses the daemon that HAL_SCHEDULER names, or that of the runtime directory, or starts a private one. A
    request with ``wait`` stays in its queue until it is served, of which ``on_wait`` is told once. Raises
    TemporaryError when there is no room now, UnsupportedError when no device here can ever serve it,
    StateError without a scheduler.
    """
    where = Endpoint.chosen() if places is None else Endpoint.here(places)
    asked: dict[str, Any] = {"key": secrets.token_hex(16)}
    if request is None:
        asked |= {
            "memory_bytes": memory_bytes,
            "vendor": vendor,
            "device": device,
            "name": name,
            "ttl_seconds": ttl_seconds,
        }
    else:
        asked["request"] = msgspec.to_builtins(request)
    if preset is not None:
        asked["class"] = preset
    with Client(where, timeout=10.0) as client:
        body, host = _acquired(client, where, asked)
        if "waiting" in body:
            body = _served(client, where, asked, body["waiting"], host.private, on_wait)
    return HeldLease(where, body, host=host, on_lost=on_lost)


class _Host(msgspec.Struct, frozen=True):
    """Who lends."""

    private: bool
    node: str | None  # the scheduler's own, if that is this machine


def _acquired(client: Client, where: Endpoint, asked: dict[str, Any]) -> tuple[dict[str, Any], _Host]:
    for last_try in (False, True):
        ensure_daemon(where)
        try:
            body, told = client.call("acquire", **asked), client.call("hello")
            node = told.get("node") if where.places is not None else None
            return body, _Host(bool(told["private"]), node)
        except Unreachable:
            if last_try:  # once it may have been on its way out
                raise
    raise AssertionError


def _served(
    client: Client,
    where: Endpoint,
    asked: dict[str, Any],
    waiting: dict[str, Any],
    private: bool,
    on_wait: Callable[[dict[str, Any]], None] | None,
) -> dict[str, Any]:
    """Wait until it is granted. Whoever is interrupted meanwhile waits no longer."""
    id = waiting["id"]
    try:
        if on_wait is not None:
            on_wait(waiting)
        while True:
            try:
                body = client.call("wait", timeout=_PATIENCE + 2, lease=id, timeout_seconds=_PATIENCE)
            except Unreachable:  # the scheduler is being restarted: it has kept our place
                if not private and not _comes_back(client):
                    raise
                body, _ = _acquired(client, where, asked)
            except TemporaryError:  # it has answered, and our place is kept
                continue
            if "lease" in body:
                return body
    except BaseException:
        with contextlib.suppress(HalError):
            client.call("release", timeout=2.0, lease=id)
        raise


def _comes_back(client: Client) -> bool:
    deadline = time.monotonic() + _RESTART
    while time.monotonic() < deadline:
        with contextlib.suppress(Unreachable):
            client.call("hello")
            return True
        time.sleep(0.1)
    return False

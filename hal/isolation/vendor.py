"""The parent's side: a backend whose vendor library is in a worker process.

It is itself a backend, so nothing above knows the difference. A worker that dies, hangs past the
deadline or talks nonsense is killed and started again, after a pause that doubles each time.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from hal.backend import EVERY_COST, Backend, Cost, Group
from hal.isolation import VendorLost, worker
from hal.isolation.calls import METHODS, Hung, Reply, Request, receive, send
from hal.model import Enforcement, Event, Exposure, Inventory, Portrait, Probe, Process, Reading

__all__ = ["Vendor"]

_PATIENCE = 10.0  # seconds for a call without a deadline of its own: drivers can take long to start
_GRACE = 0.25  # seconds past a call's own deadline, in which a live worker says what it did reach
_EXIT = 0.2  # seconds in which a worker whose socket is closed is seen to end
_DIED = "it died"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds before a worker is started again


class Vendor:
    """One backend in a worker. Calls may be begun for several vendors and finished in any order."""

    def __init__(self, name: str, load: Callable[[], Backend]) -> None:
        self.name = name
        self._load = load
        self._end: socket.socket | None = None
        self._pid = 0
        self._calls = 0
        self._pause = _FIRST_PAUSE
        self._not_before = float("-inf")
        self._reason = ""
        self._first_probe: Callable[[], Any] | None = self.begin("probe")

    # ---- the contract -----------------------------------------------------------------------

    def probe(self) -> Probe:
        # The first one was begun with the worker, so that all vendors start side by side.
        finish, self._first_probe = self._first_probe or self.begin("probe"), None
        found: Probe = finish()
        return found

    def enumerate(self) -> Inventory:
        found: Inventory = self.begin("enumerate")()
        return found

    def sample(
        self,
        groups: Sequence[Group],
        ids: Sequence[str],
        deadline: float,
        costs: frozenset[Cost] = EVERY_COST,
    ) -> list[Reading]:
        readings: list[Reading] = self.begin("sample", list(groups), list(ids), deadline, costs)()
        return readings

    def processes(self, ids: Sequence[str], deadline: float) -> list[Process]:
        found: list[Process] = self.begin("processes", list(ids), deadline)()
        return found

    def expose(self, ids: Sequence[str]) -> Exposure:
        exposure: Exposure = self.begin("expose", list(ids))()
        return exposure

    def limits(self) -> Enforcement:
        enforcement: Enforcement = self.begin("limits")()
        return enforcement

    def events(self) -> list[Event]:
        found: list[Event] = self.begin("events")()
        return found

    def describe(self) -> Portrait:
        found: Portrait = self.begin("describe")()
        return found

    def close(self) -> None:
        if self._end is not None:
            self._end.close()
            self._end = None
            self._reap(_EXIT)

    # ---- one call ---------------------------------------------------------------------------

    def begin(self, method: str, *arguments: Any) -> Callable[[], Any]:
        """Send a call; what is returned waits for its result.

        That raises VendorLost, or the backend's own HalError.
        """
        own = next((a for a in arguments if isinstance(a, float)), None)
        deadline = time.monotonic() + _PATIENCE if own is None else own + _GRACE
        try:
            end = self._connected()
            self._calls += 1
            call = self._calls
            send(end, Request(call, method, msgspec.Raw(msgspec.msgpack.encode(arguments))))
        except (OSError, VendorLost) as error:
            lost = error if isinstance(error, VendorLost) else self._lose(_DIED)

            def failed() -> Any:
                raise lost

            return failed
        return lambda: self._finish(end, call, method, deadline)

    def _finish(self, end: socket.socket, call: int, method: str, deadline: float) -> Any:
        if end is not self._end:
            raise VendorLost(f"the {self.name} library was lost: {self._reason}")
        try:
            while True:
                reply = msgspec.msgpack.decode(receive(end, deadline), type=Reply)
                if reply.id == call:
                    break
            if reply.failure is None:
                result = msgspec.msgpack.decode(reply.result, type=METHODS[method][1])
        except Hung:
            raise self._lose("it did not answer in time") from None
        except (EOFError, OSError):
            raise self._lose(_DIED) from None
        except (ValueError, msgspec.DecodeError):
            raise self._lose("it gave an answer that makes no sense") from None
        if reply.failure is not None:
            raise reply.failure.error()
        self._pause = _FIRST_PAUSE
        return result

    # ---- the worker -------------------------------------------------------------------------

    def _connected(self) -> socket.socket:
        if self._end is None:
            wait = self._not_before - time.monotonic()
            if wait > 0:
                raise VendorLost(
                    f"the {self.name} library was lost: {self._reason}; next try in {wait:.1f} s"
                )
            self._end = self._start()
        return self._end

    def _lose(self, how: str) -> VendorLost:
        assert self._end is not None
        self._end.close()
        self._end = None
        ended = self._reap(_EXIT if how == _DIED else 0)
        self._reason = how if ended is None else f"{how} ({ended})"
        self._not_before = time.monotonic() + self._pause
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        return VendorLost(f"the {self.name} library was lost: {self._reason}")

    def _reap(self, patience: float) -> str | None:
        """End the worker, by force after ``patience`` seconds; says which signal had ended it before."""
        deadline = time.monotonic() + patience
        with suppress(ChildProcessError, ProcessLookupError):
            while True:
                done, status = os.waitpid(self._pid, os.WNOHANG)
                if done != 0:
                    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else None
                if time.monotonic() >= deadline:
                    os.kill(self._pid, signal.SIGKILL)
                    os.waitpid(self._pid, 0)
                    return None
                time.sleep(0.001)
        return None

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        # A fork costs a millisecond where a new interpreter costs fifty; beside other threads, whose
        # locks it would copy, it is not safe.
        if threading.active_count() == 1 and len(list(Path("/proc/self/task").iterdir())) == 1:
            self._pid = os.fork()
            if self._pid == 0:
                self._be_worker(theirs)
        else:
            command = [sys.executable, "-m", "hal.isolation.worker", self.name, str(theirs.fileno())]
            self._pid = subprocess.Popen(command, pass_fds=[theirs.fileno()]).pid
        theirs.close()
        return ours

    def _be_worker(self, end: socket.socket) -> None:
        status = 1
        try:
            keep = os.dup2(end.fileno(), 3)
            os.closerange(4, os.sysconf("SC_OPEN_MAX"))
            worker.serve(self._load, socket.socket(fileno=keep), self.name)
            status = 0
        finally:
            os._exit(status)

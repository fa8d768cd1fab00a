"""The processes that hold leases or wait for them, watched by pidfd: one that dies is seen at once.

Those of other machines cannot be watched: of them it is known when they were last heard."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections import OrderedDict
from collections.abc import Container

import zmq

__all__ = ["SILENCE", "SILENT", "Holders"]

SILENT = 120.0  # seconds: longer than anybody waits for one answer (``wait``)
_IDLE = 64  # processes that are watched on when they hold nothing
SILENCE = "nothing was heard for two minutes from who wants it, on another machine"


class Holders:
    """Registers each holder once, however much it holds, in one descriptor that the daemon's poller waits on.

    The poller is given as many descriptors at each turn as are registered with it: ten thousand holders
    are one of them.
    """

    def __init__(self, poller: zmq.Poller) -> None:
        self._poller = poller
        self._epoll = select.epoll()
        self._pid_of: dict[str, int] = {}  # of a lease, or of who waits for one
        self._pidfd_of: dict[int, int] = {}
        self._held_by: dict[int, dict[str, None]] = {}  # pid -> ids
        self._idle: OrderedDict[int, None] = OrderedDict()  # pids that hold nothing now, and may in a moment
        # Whose holders are on other machines, and when each was heard last: they count as alive.
        self._elsewhere: dict[str, float] = {}
        self._looked = float("-inf")
        poller.register(self._epoll.fileno(), zmq.POLLIN)

    def __contains__(self, id: str) -> bool:
        return id in self._pid_of or id in self._elsewhere

    def watch(self, id: str, pid: int) -> bool:
        """False when the process has gone already. Where none can be watched, the lease still expires."""
        if pid < 0:
            if id not in self._pid_of:
                self._elsewhere[id] = time.monotonic()
            return True
        if pid == 0 or id in self:
            return True
        if pid not in self._pidfd_of:
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                return False
            except OSError:
                return True
            self._pidfd_of[pid] = pidfd
            self._held_by[pid] = {}
            self._epoll.register(pidfd, select.EPOLLIN)
        elif _has_died(self._pidfd_of[pid]):
            if pid in self._idle:
                self._forget(pid)
                return self.watch(id, pid)  # the number may be another's by now
            return False
        self._idle.pop(pid, None)
        self._pid_of[id] = pid
        self._held_by[pid][id] = None
        return True

    def gone(self, ready: Container[object]) -> list[str]:
        """Whose holders are among what the poller has found ready: they are watched no longer."""
        if self._epoll.fileno() not in ready:
            return []
        dead = {fd for fd, _ in self._epoll.poll(0)}
        pids = [pid for pid, pidfd in self._pidfd_of.items() if pidfd in dead]
        found = [id for pid in pids for id in self._held_by[pid]]
        for id in found:
            self.unwatch(id)
        for pid in pids:
            if pid in self._pidfd_of:
                self._forget(pid)
        return found

    def hear(self, id: str) -> None:
        """It waits from now on: a holder elsewhere need not have said anything while it had its lease."""
        if id in self._elsewhere:
            self._elsewhere[id] = time.monotonic()

    def silent(self, now: float) -> list[str]:
        """Whose holders are elsewhere, and have said nothing for SILENT; looked at once a second."""
        if now - self._looked < 1:
            return []
        self._looked = now
        return [id for id, heard in self._elsewhere.items() if now - heard >= SILENT]

    def unwatch(self, id: str) -> None:
        self._elsewhere.pop(id, None)
        pid = self._pid_of.pop(id, None)
        if pid is None:
            return
        held = self._held_by[pid]
        del held[id]
        if not held:
            self._idle[pid] = None
            if len(self._idle) > _IDLE:
                self._forget(next(iter(self._idle)))

    def _forget(self, pid: int) -> None:
        """It holds nothing."""
        self._idle.pop(pid, None)
        del self._held_by[pid]
        pidfd = self._pidfd_of.pop(pid)
        self._epoll.unregister(pidfd)
        os.close(pidfd)

    def close(self) -> None:
        for pid in list(self._pidfd_of):
            self._forget(pid)
        with contextlib.suppress(KeyError):
            self._poller.unregister(self._epoll.fileno())
        self._epoll.close()


def _has_died(pidfd: int) -> bool:
    one = select.poll()  # select() itself takes no descriptor above 1023
    one.register(pidfd, select.POLLIN)
    return bool(one.poll(0))

"""The processes that hold leases or wait for them, watched by pidfd: one that dies is seen at once."""

from __future__ import annotations

import os
from collections.abc import Iterable

import zmq

__all__ = ["Holders"]


class Holders:
    """Registers each holder with the poller that the daemon waits on."""

    def __init__(self, poller: zmq.Poller) -> None:
        self._poller = poller
        self._ids: dict[int, str] = {}  # pidfd -> id of a lease or of who waits for one
        self._elsewhere: set[str] = set()  # whose holders are on other machines: they count as alive

    def __contains__(self, id: str) -> bool:
        return id in self._elsewhere or id in self._ids.values()

    def watch(self, id: str, pid: int) -> bool:
        """False when the process has gone already. Where none can be watched, the lease still expires."""
        if pid == 0 or id in self:
            return True
        if pid < 0:
            self._elsewhere.add(id)
            return True
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        except OSError:
            return True
        self._ids[pidfd] = id
        self._poller.register(pidfd, zmq.POLLIN)
        return True

    def gone(self, ready: Iterable[object]) -> list[str]:
        """Whose holders are among what the poller has found ready: they are watched no longer."""
        found = [(pidfd, id) for pidfd, id in self._ids.items() if pidfd in set(ready)]
        for _, id in found:
            self.unwatch(id)
        return [id for _, id in found]

    def unwatch(self, id: str) -> None:
        self._elsewhere.discard(id)
        for pidfd in [fd for fd, held in self._ids.items() if held == id]:
            del self._ids[pidfd]
            self._poller.unregister(pidfd)
            os.close(pidfd)

    def close(self) -> None:
        for id in set(self._ids.values()):
            self.unwatch(id)

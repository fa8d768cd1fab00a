"""The daemon's sockets against clients that say nothing, read slowly or never end a message.

ZeroMQ bounds a frame, and by the high-water marks the messages in each queue. It does not bound one
message of many frames that never ends: that is kept, outside every queue, until the last frame comes. So
the daemon looks at its own memory, and cuts the connections when there is too much of it; ZeroMQ then drops
what was unfinished, and who has done nothing wrong connects again. What comes faster than the daemon looks
meets the hard limit (RLIMIT_DATA): the connection ends, or the process, and its successor takes over what is
on disk.

Nor may connections use up the files: libzmq ends the process when a local one finds none left
(ipc_listener.cpp, EMFILE). Of too many connections, those of the peer that has the most are cut.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import socket
import stat
import struct
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import zmq

from hal.backend import StateError
from hal.scheduler import wire
from hal.units import format_bytes

__all__ = [
    "LOOK",
    "Pressure",
    "bounded",
    "cap_memory",
    "count",
    "count_files",
    "cut",
    "raise_files",
    "uncap_memory",
]

_FILES = 65_536
_ROOM = 4  # files for each connection that is meant to be
_QUEUED = 128  # messages in each direction of a connection: requests, or replies
_HANDSHAKE_MS = 5_000  # to say who one is
_BEAT_MS, _SILENT_MS = 10_000, 30_000  # ZeroMQ's own heartbeats: a host that has gone is noticed
_MARK = 0.5  # of what the scheduler's own state leaves of the cap: connections are cut
_TO_BEGIN = 48 << 20  # bytes beside its state: for the stacks of ZeroMQ's threads, and some messages
LOOK = 0.25  # seconds between two looks when nothing happens: an unfinished message wakes nobody
_REST = 5.0  # seconds after a cut in which its effect is waited for


def bounded(router: zmq.Socket[bytes], *, queued: int = _QUEUED) -> None:
    """Set before the first bind: so many messages for each connection, and none for who says nothing."""
    router.set(zmq.MAXMSGSIZE, wire.MAX_AGENT_BYTES)  # what others may send is less (``Door.admit``)
    router.set(zmq.SNDHWM, queued)
    router.set(zmq.RCVHWM, queued)
    router.set(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
    router.set(zmq.HEARTBEAT_IVL, _BEAT_MS)
    router.set(zmq.HEARTBEAT_TIMEOUT, _SILENT_MS)
    router.set(zmq.HEARTBEAT_TTL, _SILENT_MS)
    router.set(zmq.TCP_KEEPALIVE, 1)
    router.set(zmq.TCP_KEEPALIVE_IDLE, _SILENT_MS // 1000)
    router.set(zmq.TCP_KEEPALIVE_INTVL, 10)
    router.set(zmq.TCP_KEEPALIVE_CNT, 3)
    router.set(zmq.BACKLOG, 1024)


def raise_files(connections: int) -> int:
    """Have files for many times so many connections, if that is allowed: those that come before the next
    look must not use them up. How many connections there may be with what is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(_FILES, _ROOM * connections)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return connections if soft == resource.RLIM_INFINITY else min(connections, soft // _ROOM)


# ---- memory -----------------------------------------------------------------------------------


def cap_memory(limit: int) -> None:
    """No more than ``limit`` bytes of writable memory for this process, and for those it starts until they
    call ``uncap_memory``. Raises StateError when so little is left of it that nobody could be served.

    RLIMIT_DATA and not RLIMIT_AS: vendors' libraries and allocators reserve address space that they never
    use, and mapped files are not this process's memory. Not a cgroup: that would count the jobs, too, and
    needs a delegated tree; the systemd unit may set MemoryMax beside this.
    """
    trim()
    taken = int(Path("/proc/self/statm").read_bytes().split()[5]) * _PAGE  # as RLIMIT_DATA counts
    if taken + _TO_BEGIN > limit:
        raise StateError(
            f"what the scheduler has to remember takes {format_bytes(taken)} of the {format_bytes(limit)} "
            f"that limits.memory gives it: set limits.memory to {format_bytes(2 * taken)} or more"
        )
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def uncap_memory() -> None:
    """Undo it, in a process that is to become a job."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


class Pressure:
    """Looks at how much memory and how many files this process has. ``memory``: bytes, as of ``cap_memory``,
    or None; ``connections``: how many there may be.

    What it has at first is its own state, and what is left a while after a cut: no connection has that. In
    between, its own grows by what is ``kept``.
    """

    def __init__(self, memory: int | None, connections: int) -> None:
        self._memory = memory
        self._own: int | None = None  # bytes, when so much was kept:
        self._kept = 0
        self._least: int | None = None  # that it had since a cut
        self._connections = connections
        self._files = connections  # with more files open, connections are counted
        self._looked = self._rest_until = float("-inf")
        # Held open: when connections have used up all files, this is still to be known.
        self._statm = Path("/proc/self/statm").open("rb", buffering=0)  # noqa: SIM115

    def close(self) -> None:
        self._statm.close()

    def look(self, now: float, addresses: Collection[str], kept: int = 0) -> str | None:
        """With too much memory in use, cut all connections to these addresses; with too many connections,
        those of the peer that has the most. A sentence about it, or None. ``now``: seconds on a clock that
        never goes back; ``kept``: bytes that wait in queues."""
        if now < self._looked + LOOK:
            return None
        self._looked = now
        if self._least is not None:
            trim()  # what a connection had may have been freed since, and is not the scheduler's own
        if self._memory is not None and self._is_too_much(self._memory, used := self.used(), now, kept):
            self._rest_until, self._least = now + _REST, used
            found = cut(addresses)
            return f"{format_bytes(used)} of memory in use: all connections were cut, {_told(found)}"
        if now < self._rest_until:
            return None
        if (files := count_files()) > self._files:
            found = count(addresses)
            there = found.total()
            self._files = files - there + self._connections  # slices have files, too
            if there > self._connections:
                whose, _ = found.most_common(1)[0]
                return f"{there} connections: some were cut, {_told(cut(addresses, whose))}"
        return None

    def _is_too_much(self, memory: int, used: int, now: float, kept: int) -> bool:
        if self._least is not None:
            self._least = min(self._least, used)
            if now < self._rest_until:
                return False
        if self._own is None or self._least is not None:
            self._own, self._kept = used if self._least is None else self._least, kept
            self._least = None
        own = self._own + kept - self._kept
        return used > own + (memory - own) * _MARK

    def used(self) -> int:
        """Bytes that are this process's own, without files and what it shares (proc(5), statm)."""
        self._statm.seek(0)
        _, resident, shared, *_ = self._statm.read(256).split()
        return (int(resident) - int(shared)) * _PAGE


def _told(found: Counter[str]) -> str:
    shown = [f"{number} of {who}" for who, number in found.most_common(3)]
    return ", ".join(shown) + (" and others" if len(found) > 3 else "")


def count_files() -> int:
    """That this process has open. Since Linux 6.2 the kernel says it as the directory's size (proc(5))."""
    return os.stat("/proc/self/fd").st_size or len(_open_files())  # noqa: PTH116 - each quarter of a second


def _open_files() -> list[str]:
    try:
        return os.listdir("/proc/self/fd")  # noqa: PTH208 - names only, and quickly
    except OSError:  # no file is left to look with: the next look will have one
        return []


_PAGE = os.sysconf("SC_PAGE_SIZE")


def trim() -> None:
    """Give freed memory back to the kernel, where the C library can (glibc)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:
        return


def cut(addresses: Collection[str], whose: str | None = None) -> Counter[str]:
    """Shut down the connections that were accepted at these endpoints, all or one peer's; how many of whom.

    Found among this process's files: ZeroMQ names no connection. Its own thread sees the end, and cleans up.
    """
    found = Counter[str]()
    for own, who in _accepted(addresses):
        if whose is None or who == whose:
            with contextlib.suppress(OSError):  # it has ended by itself
                own.shutdown(socket.SHUT_RDWR)
                found[who] += 1
    return found


def count(addresses: Collection[str]) -> Counter[str]:
    """How many connections each peer has: a local user, or a host."""
    return Counter(who for _, who in _accepted(addresses))


def _accepted(addresses: Collection[str]) -> Iterator[tuple[socket.socket, str]]:
    """One after the other: each is open for as long as it is looked at."""
    for entry in _open_files():
        try:
            if not stat.S_ISSOCK(os.fstat(int(entry)).st_mode):
                continue  # no socket takes it over, and closes it
            own = socket.socket(fileno=os.dup(int(entry)))
        except OSError:
            continue
        with own:
            try:
                name, other = own.getsockname(), own.getpeername()
                if own.family == socket.AF_UNIX:
                    at = f"ipc://{name}"
                    _, uid, _ = struct.unpack(
                        "iII", own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                    )
                    who = f"uid:{uid}"
                else:
                    at, who = f"tcp:{name[1]}", str(other[0])
            except OSError:  # not connected, or not any more
                continue
            if at in addresses:
                yield own, who

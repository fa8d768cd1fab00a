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
import struct
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import zmq

from hal.scheduler import wire
from hal.units import format_bytes

__all__ = ["Pressure", "bounded", "cap_memory", "count", "count_files", "cut", "raise_files", "uncap_memory"]

_FILES = 65_536
_ROOM = 4  # files for each connection that is meant to be
_QUEUED = 128  # messages in each direction of a connection: requests, or replies
_HANDSHAKE_MS = 5_000  # to say who one is
_BEAT_MS, _SILENT_MS = 10_000, 30_000  # ZeroMQ's own heartbeats: a host that has gone is noticed
_MARK = 0.5  # of the cap: connections are cut
_LOOK = 0.25  # seconds between two looks when nothing happens: an unfinished message wakes nobody
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
    call ``uncap_memory``.

    RLIMIT_DATA and not RLIMIT_AS: vendors' libraries and allocators reserve address space that they never
    use, and mapped files are not this process's memory. Not a cgroup: that would count the jobs, too, and
    needs a delegated tree; the systemd unit may set MemoryMax beside this.
    """
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
    or None; ``connections``: how many there may be."""

    def __init__(self, memory: int | None, connections: int) -> None:
        self._mark = None if memory is None else round(memory * _MARK)
        self._connections = connections
        self._files = connections  # with more files open, connections are counted
        self._looked = self._rest_until = float("-inf")
        # Held open: when connections have used up all files, this is still to be known.
        self._statm = Path("/proc/self/statm").open("rb", buffering=0)  # noqa: SIM115

    def close(self) -> None:
        self._statm.close()

    def look(self, now: float, addresses: Collection[str]) -> str | None:
        """With too much memory in use, cut all connections to these addresses; with too many connections,
        those of the peer that has the most. A sentence about it, or None. ``now``: seconds on a clock that
        never goes back."""
        if now < max(self._looked + _LOOK, self._rest_until):
            return None
        self._looked = now
        if self._mark is not None and (used := self.used()) > self._mark:
            self._rest_until = now + _REST
            found = cut(addresses)
            trim()
            return f"{format_bytes(used)} of memory in use: all connections were cut, {_told(found)}"
        if (files := count_files()) > self._files:
            found = count(addresses)
            there = found.total()
            self._files = files - there + self._connections  # slices have files, too
            if there > self._connections:
                whose, _ = found.most_common(1)[0]
                return f"{there} connections: some were cut, {_told(cut(addresses, whose))}"
        return None

    def patience(self, now: float) -> float:
        """Seconds until it should look again, when nothing else happens."""
        return max(self._rest_until - now, _LOOK)

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

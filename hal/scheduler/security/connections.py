"""The daemon's sockets against clients that say nothing, read slowly or never end a message.

ZeroMQ bounds a frame, and by the high-water marks the messages in each queue. It does not bound one
message of many frames that never ends: that is kept, outside every queue, until the last frame comes. So
the daemon looks at its own memory, and cuts the connections when there is too much of it; ZeroMQ then drops
what was unfinished, and who has done nothing wrong connects again. What comes faster than the daemon looks
meets the hard limit (RLIMIT_DATA): the process ends, and its successor takes over what is on disk.
"""

from __future__ import annotations

import ctypes
import os
import resource
import socket
from collections.abc import Collection
from pathlib import Path

import zmq

from hal.scheduler import wire

__all__ = ["Memory", "bounded", "cap_memory", "cut", "raise_files", "uncap_memory"]

_FILES = 65_536
_QUEUED = 128  # messages in each direction of a connection: requests of 64 KiB, or replies
_HANDSHAKE_MS = 5_000  # to say who one is
_BEAT_MS, _SILENT_MS = 10_000, 30_000  # ZeroMQ's own heartbeats: a host that has gone is noticed
_MARK = 0.5  # of the cap: connections are cut
_LOOK = 0.25  # seconds between two looks when nothing happens: an unfinished message wakes nobody
_REST = 5.0  # seconds after a cut in which its effect is waited for


def bounded(router: zmq.Socket[bytes], *, queued: int = _QUEUED) -> None:
    """Set before the first bind: so many messages for each connection, and none for who says nothing."""
    router.set(zmq.MAXMSGSIZE, wire.MAX_FRAME_BYTES)
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


def raise_files() -> int:
    """Open files for each connection, as far as this process may have them; how many it can have now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft


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


class Memory:
    """Looks at what this process has, once a turn. ``cap`` in bytes, as of ``cap_memory``."""

    def __init__(self, cap: int) -> None:
        self.mark = round(cap * _MARK)  # bytes
        self.cuts = 0
        self._rest_until = float("-inf")

    def look(self, now: float, addresses: Collection[str]) -> int:
        """Cut the connections to these addresses if there is too much; how many were. ``now``: seconds."""
        if now < self._rest_until or used() < self.mark:
            return 0
        self._rest_until = now + _REST
        self.cuts += 1
        number = cut(addresses)
        trim()
        return number

    def patience(self, now: float) -> float:
        """Seconds until it should look again, when nothing else happens."""
        return max(self._rest_until - now, _LOOK)


def used() -> int:
    """Bytes of memory that are this process's own, without files and what it shares (proc(5), statm)."""
    _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    return (int(resident) - int(shared)) * _PAGE


_PAGE = os.sysconf("SC_PAGE_SIZE")


def trim() -> None:
    """Give freed memory back to the kernel, where the C library can (glibc)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:
        return


def cut(addresses: Collection[str]) -> int:
    """Shut down every connection that was accepted at one of these endpoints; how many were.

    Found among this process's files: ZeroMQ names no connection. Its own thread sees the end, and cleans up.
    """
    number = 0
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names only, and quickly
        try:
            own = socket.socket(fileno=os.dup(int(entry)))
        except OSError:
            continue
        with own:
            try:
                own.getpeername()
                if _endpoint(own) in addresses:
                    own.shutdown(socket.SHUT_RDWR)
                    number += 1
            except OSError:  # not connected, or not any more
                continue
    return number


def _endpoint(own: socket.socket) -> str:
    name = own.getsockname()
    if own.family == socket.AF_UNIX:
        return f"ipc://{name}"
    return f"tcp:{name[1]}"

"""Who has a file mapped, as the kernel says: the programs of a slice whose file says nothing of them."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["Mapped"]


class Mapped:
    """The processes that have a file mapped, which is not read and may have been removed.

    Only this user's own, for root anybody's; never this process. For one thread.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        self._known: dict[int, int] = {}  # by pid, their pidfds: those that have not ended
        # proc_pid_maps(5). By name, too: on some file systems `maps` has another device than stat(2).
        name = b" " + os.fsencode(path)
        self._marks = [name + b"\n", name + b" (deleted)\n"]
        with suppress(OSError):
            self._file = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)  # its number stays its own
            status = os.fstat(self._file)
            device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
            self._marks.append(f" {device} {status.st_ino} ".encode())

    def signal(self, number: int) -> list[int]:
        """Signal each (0: none), and say which they are."""
        for pid, pidfd in list(self._known.items()):
            if select.select([pidfd], [], [], 0)[0]:
                os.close(self._known.pop(pid))
        if number or not self._known:
            self._look()
        for pidfd in self._known.values() if number else ():
            with suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(pidfd, number)
        return list(self._known)

    def close(self) -> None:
        for file in [*self._known.values(), *([] if self._file is None else [self._file])]:
            os.close(file)
        self._known, self._file = {}, None

    def _look(self) -> None:
        for pid in self._others():
            if pid not in self._known and self._has(pid):
                with suppress(OSError):
                    pidfd = os.pidfd_open(pid)
                    if self._has(pid):  # still, and the descriptor is of it
                        self._known[pid] = pidfd
                    else:
                        os.close(pidfd)

    def _others(self) -> Iterator[int]:
        me = os.geteuid()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with suppress(OSError):
                    if me in (0, entry.stat().st_uid):
                        yield int(entry.name)

    def _has(self, pid: int) -> bool:
        try:
            maps = Path(f"/proc/{pid}/maps").read_bytes()
        except OSError:  # it has ended, or is not ours to look at
            return False
        return any(mark in maps for mark in self._marks)

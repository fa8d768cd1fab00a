"""Until when what a node has lent may run: a promise that is kept without the agent, too.

It is the time at which the file was changed last, in seconds since the boot: setting it needs no room on a
disk, and is whole or not at all. Supervisors of jobs look at it (hal/scheduler/jobs/supervisor.py), and so
does the next agent, for which the count goes on. The file says of which boot it is.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

__all__ = ["Until", "boot", "clock"]


def clock() -> float:
    """Seconds since the boot; it goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Until:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: float | None = None

    def read(self) -> float | None:
        """None when nothing was promised since the boot."""
        try:
            return self.path.stat().st_mtime if self.path.read_text() == boot() else None
        except (OSError, ValueError):
            return None

    def write(self, until: float) -> None:
        """Raises OSError."""
        if until == self._written:
            return
        at = (round(until * 1e9),) * 2
        try:
            if self._written is None:
                raise FileNotFoundError
            os.utime(self.path, ns=at)
        except FileNotFoundError:
            new = self.path.with_name(f"{self.path.name}.new")
            new.write_text(boot())
            os.utime(new, ns=at)
            new.replace(self.path)
        self._written = until

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        self._written = None

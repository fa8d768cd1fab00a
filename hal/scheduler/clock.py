"""Where the scheduler's clock begins: that of the day is looked at once, and may be set at any time after.

Leases, deadlines and places in a queue outlive a restart of the scheduler, and are not to be cut short or
made longer because somebody set the clock meanwhile. So a successor goes on with its predecessor's clock
while this machine runs (``CLOCK_MONOTONIC``, clock_gettime(2)), and after that begins with that of the day.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

__all__ = ["handed_on", "keep", "zero_today"]


def zero_today() -> int:
    """Milliseconds from 1970 to the zero of the monotonic clock, as the clock of the day says."""
    return (time.time_ns() - time.monotonic_ns()) // 1_000_000


def keep(file: Path, zero: int) -> None:
    """Hand it on. Where that cannot be written, a successor begins with the clock of the day."""
    new = file.with_name(f"{file.name}.new")
    with suppress(OSError):
        new.write_text(f"{_run()} {zero}\n")
        new.replace(file)


def handed_on(file: Path) -> int | None:
    """What a predecessor kept while this machine was running, or None."""
    try:
        run, _, zero = file.read_text().rpartition(" ")
        return int(zero) if run == _run() else None
    except (OSError, ValueError):
        return None


def _run() -> str:
    """Which monotonic clock it is: a time namespace may have one of its own (time_namespaces(7))."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    try:
        return f"{boot} {os.stat('/proc/self/ns/time').st_ino}"  # noqa: PTH116
    except OSError:
        return boot

"""Who uses it: the host's processes, the largest first."""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Sequence
from pathlib import Path

from hal.model import Process, Status
from hal_cpu import device, errors

__all__ = ["processes"]

_MOST = 32


def processes(root: Path, ids: Sequence[str], deadline: float) -> list[Process]:
    """The 32 processes with the most resident memory, of those that were reached before the deadline."""
    device.check(ids)
    found: list[Process] = []
    for folder in (root / "proc").glob("[0-9]*") if ids else ():
        if time.monotonic() >= deadline:
            break
        process = _process(folder)
        if process is not None:
            found.append(process)
    return heapq.nlargest(_MOST, found, key=lambda process: process.memory_bytes or 0)


def _process(folder: Path) -> Process | None:
    """None when it has ended meanwhile."""
    memory, status = None, Status.OK
    try:
        pages = (folder / "statm").read_text().split()[1]
        memory = int(pages) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, IndexError) as failure:
        status = errors.status(failure)
    try:
        name = (folder / "comm").read_text(errors="replace").strip() or None
    except OSError:
        name = None
    return Process(device.ID, int(folder.name), name, memory, status)

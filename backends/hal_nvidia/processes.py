"""Who uses it: NVML's compute and graphics processes, merged by pid."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hal.backend import TemporaryError, Value
from hal.model import Process, Status
from hal_nvidia import conv, device, errors

__all__ = ["processes"]


def processes(nvml: Any, root: Path, ids: Sequence[str], deadline: float) -> list[Process]:
    """Every process on the devices named. Raises TemporaryError when the deadline passes before the last."""
    found: list[Process] = []
    for subject in ids:
        gpu = device.handle(nvml, subject)
        memory: dict[int, Value] = {}
        for kind in ("Compute", "Graphics"):
            if time.monotonic() >= deadline:
                raise TemporaryError(f"processes of {subject}: not reached before the deadline")
            for entry in _running(nvml, kind, gpu, subject):
                used = conv.count(entry.usedGpuMemory)
                # A process that computes and draws is in both lists with the same figure.
                if entry.pid not in memory or memory[entry.pid].value is None:
                    memory[entry.pid] = used
        found.extend(_process(root, subject, pid, used) for pid, used in sorted(memory.items()))
    return found


def _running(nvml: Any, kind: str, gpu: Any, subject: str) -> list[Any]:
    """By the newest call that driver and pynvml both have; empty when the device has no such list."""
    for version in ("_v3", "_v2"):
        try:
            return list(getattr(nvml, f"nvmlDeviceGet{kind}RunningProcesses{version}")(gpu))
        except AttributeError:
            continue
        except nvml.NVMLError as failure:
            if errors.status(failure) is not Status.UNSUPPORTED:
                raise errors.error(failure, subject) from failure
    return []


def _process(root: Path, subject: str, pid: int, used: Value) -> Process:
    try:
        name = (root / "proc" / str(pid) / "comm").read_text(errors="replace").strip() or None
    except OSError:  # ended, or in a pid namespace that is not ours
        name = None
    return Process(subject, pid, name, None if used.value is None else int(used.value), used.status)

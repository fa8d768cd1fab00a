"""Who uses it: NVML's compute and graphics processes, merged by pid."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hal.backend import Answer, TemporaryError, Value
from hal.model import Process, Status
from hal_nvidia import conv, errors
from hal_nvidia.handles import Gpu, Handles, either

__all__ = ["processes"]

_INSUFFICIENT_SIZE = 7


class _ProcessV1(ctypes.Structure):
    """nvmlProcessInfo_v1_t, which pynvml no longer has."""

    _fields_ = (("pid", ctypes.c_uint), ("usedGpuMemory", ctypes.c_ulonglong))


def processes(handles: Handles, root: Path, ids: Sequence[str], deadline: float) -> list[Process]:
    """Every process on the devices named. Raises TemporaryError when the deadline passes before the last."""
    found: list[Process] = []
    for subject in ids:
        gpu = handles.find(subject)
        memory: dict[int, Answer] = {}
        for running in (_compute, _graphics):
            if time.monotonic() >= deadline:
                raise TemporaryError(f"processes of {subject}: not reached before the deadline")
            for entry in _ask(handles, running, gpu, subject):
                used = conv.count(entry.usedGpuMemory)
                # A process that computes and draws is in both lists with the same figure.
                if isinstance(memory.get(entry.pid, Value(None)), Value):
                    memory[entry.pid] = used
        found.extend(_process(root, subject, pid, used) for pid, used in sorted(memory.items()))
    return found


def _version(kind: str, version: str) -> Callable[[Any, Gpu], list[Any]]:
    return lambda nvml, gpu: list(getattr(nvml, f"nvmlDeviceGet{kind}RunningProcesses{version}")(gpu.handle))


def _version_1(kind: str) -> Callable[[Any, Gpu], list[Any]]:
    """By hand: pynvml gives this name to the newest version."""

    def ask(nvml: Any, gpu: Gpu) -> list[Any]:
        call = getattr(nvml.nvmlLib, f"nvmlDeviceGet{kind}RunningProcesses")
        count, room = ctypes.c_uint(0), 0
        for _ in range(8):  # more may come while we ask
            entries = (_ProcessV1 * room)()
            count.value = room
            status = call(gpu.handle, ctypes.byref(count), entries if room else None)
            if status == 0:
                return list(entries[: min(count.value, room)])
            if status != _INSUFFICIENT_SIZE:
                break
            room = min(count.value, 1 << 16) * 2 + 5
        raise nvml.NVMLError(status)

    return ask


_compute = either(_version("Compute", "_v3"), _version("Compute", "_v2"), _version_1("Compute"))
_graphics = either(_version("Graphics", "_v3"), _version("Graphics", "_v2"), _version_1("Graphics"))


def _ask(handles: Handles, running: Callable[[Any, Gpu], list[Any]], gpu: Gpu, subject: str) -> list[Any]:
    """Empty when the device has no such list."""
    try:
        return running(handles.nvml, gpu)
    except AttributeError:
        return []
    except handles.nvml.NVMLError as failure:
        if gpu.failed(failure).status is Status.UNSUPPORTED:
            return []
        if gpu.doubtful:
            handles.forget(subject)
        raise errors.error(failure, subject) from failure


def _process(root: Path, subject: str, pid: int, used: Answer) -> Process:
    try:
        name = (root / "proc" / str(pid) / "comm").read_text(errors="replace").strip() or None
    except OSError:  # ended, or in a pid namespace that is not ours
        name = None
    if isinstance(used, Value):
        return Process(subject, pid, name, None, used.status)
    return Process(subject, pid, name, int(used))

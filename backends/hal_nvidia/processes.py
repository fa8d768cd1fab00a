"""Who uses it: NVML's compute and graphics processes, merged by pid, and how busy each keeps the GPU.

Lists are asked for past pynvml, which trusts the driver with how much memory they need.
"""

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
_MOST_ENTRIES = 1 << 16
_MOST_PID = 1 << 22  # of Linux
_WINDOW = 1_000_000  # microseconds that the first look at what processes did goes back
_RATIOS = ("smUtil", "memUtil", "encUtil", "decUtil")  # as the ratios of hal.model.Process


class _ProcessV1(ctypes.Structure):
    """nvmlProcessInfo_v1_t, which pynvml no longer has."""

    _fields_ = (("pid", ctypes.c_uint), ("usedGpuMemory", ctypes.c_ulonglong))


class _ProcessV2(ctypes.Structure):
    """nvmlProcessInfo_v2_t, which version 3 of the calls has as well."""

    _fields_ = (
        *_ProcessV1._fields_,
        ("gpuInstanceId", ctypes.c_uint),
        ("computeInstanceId", ctypes.c_uint),
    )


class _Sample(ctypes.Structure):
    """nvmlProcessUtilizationSample_t."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("timeStamp", ctypes.c_ulonglong),
        *((ratio, ctypes.c_uint) for ratio in _RATIOS),
    )


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
                if not 0 < entry.pid <= _MOST_PID:
                    continue
                used = conv.size(entry.usedGpuMemory)
                # A process that computes and draws is in both lists with the same figure.
                if isinstance(memory.get(entry.pid, Value(None)), Value):
                    memory[entry.pid] = used
        busy = _busy(handles, gpu, subject) if memory else {}
        found.extend(_process(root, subject, pid, used, busy) for pid, used in sorted(memory.items()))
    return found


def _list(nvml: Any, entry: type[Any], call: Callable[[Any, Any], int]) -> list[Any]:
    """All entries; ``call`` is given their count and the room for them. Raises NVML's error."""
    count, room, status = ctypes.c_uint(0), 0, _INSUFFICIENT_SIZE
    for _ in range(8):  # more may come while we ask
        entries = (entry * room)()
        count.value = room
        status = call(ctypes.byref(count), entries if room else None)
        if status == 0:
            return list(entries[: min(count.value, room)])
        if status != _INSUFFICIENT_SIZE:
            break
        room = min(count.value, _MOST_ENTRIES) * 2 + 5
    raise nvml.NVMLError(status)


def _running(kind: str, version: str, entry: type[Any]) -> Callable[[Any, Gpu], list[Any]]:
    def ask(nvml: Any, gpu: Gpu) -> list[Any]:
        function = getattr(nvml.nvmlLib, f"nvmlDeviceGet{kind}RunningProcesses{version}")
        return _list(nvml, entry, lambda count, entries: function(gpu.handle, count, entries))

    return ask


def _newest_first(kind: str) -> Callable[[Any, Any], list[Any]]:
    versions = (("_v3", _ProcessV2), ("_v2", _ProcessV2), ("", _ProcessV1))
    return either(*(_running(kind, version, entry) for version, entry in versions))


_compute, _graphics = _newest_first("Compute"), _newest_first("Graphics")


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


def _busy(handles: Handles, gpu: Gpu, subject: str) -> dict[int, Any] | Status:
    """The newest sample of each process that did something since the last look, or why there are none."""
    nvml, since = handles.nvml, gpu.known.get("processes seen", int(time.time() * 1e6) - _WINDOW)

    def call(count: Any, entries: Any) -> int:
        function = nvml.nvmlLib.nvmlDeviceGetProcessUtilization
        return int(function(gpu.handle, entries, count, ctypes.c_ulonglong(since)))

    try:
        samples = _list(nvml, _Sample, call)
    except Exception as failure:  # a driver without the call, or NVML's own error
        if errors.code_of(failure) == errors.NOT_FOUND:  # nobody did anything
            return {}
        status = gpu.failed(failure).status
        if gpu.doubtful:
            handles.forget(subject)
        return status
    newest: dict[int, Any] = {}
    for sample in samples:
        if sample.pid not in newest or sample.timeStamp > newest[sample.pid].timeStamp:
            newest[sample.pid] = sample
    gpu.known["processes seen"] = max((sample.timeStamp for sample in newest.values()), default=since)
    return newest


def _process(root: Path, subject: str, pid: int, used: Answer, busy: dict[int, Any] | Status) -> Process:
    try:
        name = (root / "proc" / str(pid) / "comm").read_text(errors="replace").strip() or None
    except OSError:  # ended, or in a pid namespace that is not ours
        name = None
    memory = used if isinstance(used, Value) else Value(used)
    compute, bandwidth, encoder, decoder, status = _ratios(pid, busy)
    return Process(
        subject,
        pid,
        name,
        None if memory.value is None else int(memory.value),
        memory.status,
        compute_busy_ratio=compute,
        memory_bandwidth_busy_ratio=bandwidth,
        encoder_busy_ratio=encoder,
        decoder_busy_ratio=decoder,
        busy_status=status,
    )


def _ratios(pid: int, busy: dict[int, Any] | Status) -> tuple[Any, Any, Any, Any, Status]:
    """In the order of _RATIOS, all of them or none."""
    if isinstance(busy, Status):
        return None, None, None, None, busy
    if pid not in busy:  # it did nothing, or did it too lately
        return None, None, None, None, Status.STALE
    answers = [conv.ratio(getattr(busy[pid], ratio)) for ratio in _RATIOS]
    if any(isinstance(answer, Value) for answer in answers):
        return None, None, None, None, Status.ERROR
    compute, bandwidth, encoder, decoder = answers
    return compute, bandwidth, encoder, decoder, Status.OK

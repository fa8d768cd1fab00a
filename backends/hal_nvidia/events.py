"""What happens to the GPUs: XIDs and the like, through an event set of NVML. Nothing here waits."""

from __future__ import annotations

import contextlib
import ctypes
import time
from typing import Any, NamedTuple

from hal.model import Event, EventKind
from hal_nvidia import conv, errors

__all__ = ["Watch"]

_MOST = 256  # of one call: a GPU in trouble must not keep the caller here
_SOURCE = "nvmlEventSetWait_v2"
_OFF_THE_BUS = 79  # the XID

_XID, _PARTITIONS, _UNAVAILABLE, _RECOVERY = 0x8, 0x100, 0x4000, 0x8000
# nvmlEventType...; what is left out is no fault (clocks, performance, power source) or counted (ECC).
_TYPES = {
    _XID: "Xid",
    _PARTITIONS: "the MIG configuration changed",
    0x200: "a storm of corrected memory errors",
    0x400: "memory is to be retired",
    0x800: "memory could not be retired",
    0x1000: "poison was contained",
    0x2000: "poison was not contained",
    _UNAVAILABLE: "the GPU is unavailable",
    _RECOVERY: "the driver wants recovery action",
}


class _Watched(NamedTuple):
    subject: str
    handle: Any


class Watch:
    """The event set of one session of NVML."""

    def __init__(self, nvml: Any) -> None:
        """Raises NVML's error when there are no events here."""
        self._nvml = nvml
        self._watched: dict[int, _Watched] = {}  # by address of the handle
        self._lost: set[str] = set()  # told of
        self._set = nvml.nvmlEventSetCreate()
        try:
            self._register()
        except nvml.NVMLError:
            self.close()
            raise

    def poll(self) -> list[Event]:
        """What has happened since the last call. Raises NVML's error when it cannot be told."""
        self._find_again()
        events: list[Event] = []
        for _ in range(_MOST):
            try:
                data = self._nvml.nvmlEventSetWait_v2(self._set, 0)
            except self._nvml.NVMLError as failure:
                code = errors.code_of(failure)
                if code == errors.GPU_IS_LOST:
                    events += self._without_the_lost()
                elif code != errors.TIMEOUT and not events:
                    raise
                break
            watched = self._watched.get(_address(data.device))
            kind = int(data.eventType)
            if watched is None or kind not in _TYPES:
                continue
            event = _event(watched.subject, kind, int(data.eventData))
            if event.kind is EventKind.LOST:
                if watched.subject in self._lost:
                    continue
                self._lost.add(watched.subject)
            events.append(event)
        return events

    def close(self) -> None:
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlEventSetFree(self._set)

    def _register(self) -> None:
        nvml = self._nvml
        for index in range(nvml.nvmlDeviceGetCount()):
            with contextlib.suppress(nvml.NVMLError):  # lost, or a GPU without events
                gpu = nvml.nvmlDeviceGetHandleByIndex(index)
                self._add(gpu, f"nvidia:{conv.text(nvml.nvmlDeviceGetUUID(gpu))}")

    def _add(self, gpu: Any, subject: str) -> None:
        self._nvml.nvmlDeviceRegisterEvents(gpu, self._wanted(gpu), self._set)
        self._watched[_address(gpu)] = _Watched(subject, gpu)

    def _find_again(self) -> None:
        """A GPU that was lost and answers is watched as before, and can be lost another time."""
        nvml = self._nvml
        for subject in [*self._lost]:
            with contextlib.suppress(nvml.NVMLError):
                gpu = nvml.nvmlDeviceGetHandleByUUID(subject.removeprefix("nvidia:"))
                if self._is_lost(gpu):
                    continue
                if _address(gpu) not in self._watched:
                    self._add(gpu, subject)
                self._lost.discard(subject)

    def _wanted(self, gpu: Any) -> int:
        try:
            offered = int(self._nvml.nvmlDeviceGetSupportedEventTypes(gpu))
        except self._nvml.NVMLError as failure:
            if not errors.is_unsupported(failure):
                raise
            return _XID
        return offered & sum(_TYPES) or _XID

    def _without_the_lost(self) -> list[Event]:
        """NVML says that one is lost, not which. Without it, the others are watched in a set of their own."""
        nvml, now = self._nvml, time.time()
        lost = [watched.subject for watched in self._watched.values() if self._is_lost(watched.handle)]
        new = [subject for subject in lost if subject not in self._lost]
        self._lost.update(new)
        fresh = nvml.nvmlEventSetCreate()
        self.close()
        self._set, self._watched = fresh, {}
        self._register()
        message = "NVML says that the GPU is lost"
        return [Event(one, EventKind.LOST, now, message=message, source=_SOURCE) for one in new]

    def _is_lost(self, gpu: Any) -> bool:
        try:
            self._nvml.nvmlDeviceGetMemoryInfo(gpu)  # which the library cannot answer by itself
        except self._nvml.NVMLError as failure:
            return errors.code_of(failure) == errors.GPU_IS_LOST
        return False


def _event(subject: str, kind: int, data: int) -> Event:
    """An XID by its own number; of the others the type is the number."""
    code_space, code = ("xid", data) if kind == _XID else ("nvml_event", kind)
    message = f"{_TYPES[kind]} {data}" if kind in (_XID, _RECOVERY) else _TYPES[kind]
    what = EventKind.ERROR
    if kind == _PARTITIONS:
        what = EventKind.PARTITION_CHANGED
    elif kind == _UNAVAILABLE or (kind, data) == (_XID, _OFF_THE_BUS):
        what = EventKind.LOST
    if (kind, data) == (_XID, _OFF_THE_BUS):
        message += ": the GPU has fallen off the bus"
    return Event(subject, what, time.time(), code_space, code, message, _SOURCE)


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0

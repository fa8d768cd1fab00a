"""What happens to the GPUs: XIDs, through an event set of NVML. Nothing here waits."""

from __future__ import annotations

import contextlib
import ctypes
import time
from typing import Any

from hal.model import Event, EventKind
from hal_nvidia import conv, errors

__all__ = ["Watch"]

_XID = 8  # nvmlEventTypeXidCriticalError
_MOST = 256  # of one call: a GPU in trouble must not keep the caller here


class Watch:
    """The event set of one session of NVML."""

    def __init__(self, nvml: Any) -> None:
        """Raises NVML's error when there are no events here."""
        self._nvml = nvml
        self._subjects: dict[int, str] = {}  # by handle
        self._set = nvml.nvmlEventSetCreate()
        for index in range(nvml.nvmlDeviceGetCount()):
            with contextlib.suppress(nvml.NVMLError):  # lost, or a GPU without events
                gpu = nvml.nvmlDeviceGetHandleByIndex(index)
                uuid = conv.text(nvml.nvmlDeviceGetUUID(gpu))
                nvml.nvmlDeviceRegisterEvents(gpu, _XID, self._set)
                self._subjects[_address(gpu)] = f"nvidia:{uuid}"

    def poll(self) -> list[Event]:
        """What has happened since the last call. Raises NVML's error when it cannot be told."""
        events: list[Event] = []
        while len(events) < _MOST:
            try:
                data = self._nvml.nvmlEventSetWait_v2(self._set, 0)
            except self._nvml.NVMLError as failure:
                if errors.code_of(failure) == errors.TIMEOUT or events:
                    break
                raise
            if data.eventType != _XID:
                continue
            subject = self._subjects.get(_address(data.device))
            if subject is None:
                continue
            events.append(_event(subject, int(data.eventData)))
        return events

    def close(self) -> None:
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlEventSetFree(self._set)


def _event(subject: str, code: int) -> Event:
    lost = code == 79  # "GPU has fallen off the bus"
    return Event(
        subject=subject,
        kind=EventKind.LOST if lost else EventKind.ERROR,
        time=time.time(),
        code_space="xid",
        code=code,
        message=f"Xid {code}" + (": the GPU has fallen off the bus" if lost else ""),
        source="nvmlEventSetWait_v2",
    )


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0

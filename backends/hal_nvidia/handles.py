"""NVML's handles by hal's ids, kept between samples, with what was learned about each device.

A handle is looked up again after an error that says that it may be no good, and after `enumerate`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from hal.backend import GoneError, Value
from hal_nvidia import errors

__all__ = ["Gpu", "Handles", "either"]

# After these a handle is looked up anew: the driver was restarted, or the device came and went.
_DOUBTFUL = {
    errors.UNINITIALIZED,
    errors.INVALID_ARGUMENT,
    errors.NOT_FOUND,
    errors.GPU_IS_LOST,
    errors.RESET_REQUIRED,
}

_NO_OTHER = -1  # of the ways to ask, none is there: only the first is still tried


class Gpu:
    """A GPU or MIG device as NVML knows it."""

    __slots__ = (
        "_closing", "doubtful", "fields", "gpm", "handle", "known", "partition", "plan", "plans",
        "ready", "ways",
    )  # fmt: skip

    def __init__(self, handle: Any, partition: bool) -> None:
        self.handle = handle
        self.partition = partition  # a MIG device
        self.doubtful = False
        self.known: dict[str, Any] = {}  # what does not change: how many links and fans
        self.ways: dict[object, int] = {}  # which of several calls this driver has, by `either`
        self.ready: dict[object, Any] = {}  # direct's: functions with what they are called with
        self.plans: dict[Any, Any] = {}  # telemetry's, by what it was asked for
        self.plan: Any = None  # the one that is being read
        self.fields: list[Any] | None = None  # what nvmlDeviceGetFieldValues gave for it
        self.gpm: Any = None  # gpm's samples of it, or why there are none
        self._closing: list[Callable[[Any], None]] = []

    def at_close(self, free: Callable[[Any], None]) -> None:
        """What NVML gave for this handle, and has to be given back when the handle is forgotten."""
        self._closing.append(free)

    def close(self, nvml: Any) -> None:
        for free in self._closing:
            with contextlib.suppress(nvml.NVMLError):
                free(nvml)
        self._closing.clear()

    def failed(self, failure: Exception) -> Value:
        """Why there is no figure; and the handle is doubted when that could be the reason."""
        if errors.code_of(failure) in _DOUBTFUL:
            self.doubtful = True
        return Value(None, errors.status(failure), str(failure))


def either(*ways: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """The first of several calls that driver and pynvml have, remembered for each device.

    Only an answer that means "there is no such call, or not in this version" leads to the next one.
    """
    key = object()

    def ask(nvml: Any, gpu: Gpu) -> Any:
        known = gpu.ways.get(key)
        if known is not None:
            return ways[max(known, 0)](nvml, gpu)
        first: Exception | None = None
        for number, way in enumerate(ways):
            try:
                answer = way(nvml, gpu)
            except Exception as failure:  # whatever it is, errors.py knows what it means
                if not errors.is_unsupported(failure):
                    raise
                first = first or failure
            else:
                gpu.ways[key] = number
                return answer
        assert first is not None
        gpu.ways[key] = _NO_OTHER
        raise first

    return ask


class Handles:
    """The handles of one session of NVML, from nvmlInit to nvmlShutdown."""

    def __init__(self, nvml: Any) -> None:
        self.nvml = nvml
        self._gpus: dict[str, Gpu] = {}

    def find(self, subject: str) -> Gpu:
        """The device or MIG device with this id. Raises GoneError when there is none."""
        gpu = self._gpus.get(subject)
        if gpu is None:
            gpu = self._gpus[subject] = self._look_up(subject)
        return gpu

    def forget(self, subject: str | None = None) -> None:
        """This one, or all."""
        for one in [*self._gpus] if subject is None else [subject]:
            gpu = self._gpus.pop(one, None)
            if gpu is not None:
                gpu.close(self.nvml)

    def _look_up(self, subject: str) -> Gpu:
        vendor, _, uuid = subject.removesuffix("/whole").partition(":")
        if vendor != "nvidia" or not uuid:
            raise GoneError(f"{subject} is not an NVIDIA device")
        try:
            handle = self.nvml.nvmlDeviceGetHandleByUUID(uuid)
        except self.nvml.NVMLError as failure:
            if errors.code_of(failure) == errors.INVALID_ARGUMENT:  # what NVML says of a malformed uuid
                raise GoneError(f"{subject}: {failure}", vendor_code=errors.INVALID_ARGUMENT) from failure
            raise errors.error(failure, subject) from failure
        return Gpu(handle, uuid.startswith("MIG-"))

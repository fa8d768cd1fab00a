"""NVML's functions of the fast rows, through pynvml's library but without its Python around each call.

pynvml makes new C objects and looks the function up each time, which takes as long as the driver does.
Here they are made once for each device; an error is pynvml's own NVMLError as ever. A pynvml that does not
give its functions away is asked in its own way.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import byref, c_uint, c_ulonglong
from typing import Any

from hal_nvidia.handles import Gpu

__all__ = ["field_values", "mask", "number", "structure"]


def number(
    call: str, *arguments: int, kind: type[Any] = c_uint, spare: bool = False
) -> Callable[[Any, Gpu], int]:
    """Asks for one number; `spare` is of the functions that give a second one, which nobody wants."""
    key = object()

    def ask(nvml: Any, gpu: Gpu) -> int:
        ready = gpu.ready.get(key)
        if ready is None:
            if not hasattr(nvml, _POINTER):
                said = getattr(nvml, call)(gpu.handle, *arguments)
                return said[0] if spare else said  # type: ignore[no-any-return]
            out = kind()
            places = (byref(out), byref(c_uint())) if spare else (byref(out),)
            ready = gpu.ready[key] = (_function(nvml, call), (gpu.handle, *arguments, *places), out)
        function, everything, out = ready
        status = function(*everything)
        if status != 0:
            raise nvml.NVMLError(status)
        answer: int = out.value
        return answer

    return ask


def mask(call: str) -> Callable[[Any, Gpu], int]:
    """Asks for 64 bits."""
    return number(call, kind=c_ulonglong)


def structure(
    call: str, kind: str, version: str, otherwise: Callable[[Any, Gpu], Any]
) -> Callable[[Any, Gpu], Any]:
    """Asks for a structure of pynvml's, which is the same object each time."""
    key = object()

    def ask(nvml: Any, gpu: Gpu) -> Any:
        ready = gpu.ready.get(key)
        if ready is None:
            if not hasattr(nvml, _POINTER):
                return otherwise(nvml, gpu)
            out = getattr(nvml, kind)()
            if version:
                out.version = getattr(nvml, version)
            ready = gpu.ready[key] = (_function(nvml, call), (gpu.handle, byref(out)), out)
        function, everything, out = ready
        status = function(*everything)
        if status != 0:
            raise nvml.NVMLError(status)
        return out

    return ask


def field_values(nvml: Any, gpu: Gpu) -> memoryview:
    """The bytes of the nvmlFieldValue_t of all fields of the plan that is being read."""
    plan = gpu.plan
    if plan.ready is None:
        if not hasattr(nvml, _POINTER):
            return memoryview(nvml.nvmlDeviceGetFieldValues(gpu.handle, plan.fields)).cast("B")
        out = (nvml.c_nvmlFieldValue_t * len(plan.fields))()
        for entry, (field, scope) in zip(out, plan.fields, strict=True):
            entry.fieldId, entry.scopeId = field, scope
        plan.ready = (_function(nvml, "nvmlDeviceGetFieldValues"), (gpu.handle, len(out), out),
                      memoryview(out).cast("B"))  # fmt: skip
    function, everything, view = plan.ready
    status = function(*everything)
    if status != 0:
        raise nvml.NVMLError(status)
    answer: memoryview = view
    return answer


_POINTER = "_nvmlGetFunctionPointer"


def _function(nvml: Any, call: str) -> Any:
    """Raises pynvml's NVMLError where the driver has no such function."""
    return getattr(nvml, _POINTER)(call)

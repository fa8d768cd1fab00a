"""What the driver itself can hold: since NVML 615 the memory of a control group's programs (NVML change log,
v615; the structure is pynvml's c_nvmlSetMemoryLimits_v1_t)."""

from __future__ import annotations

import os

from hal.model import Hold, Rung
from hal_nvidia import errors
from hal_nvidia.handles import Handles

__all__ = ["hold_memory"]


def hold_memory(handles: Handles, device: str, group: str, limit_bytes: int) -> Hold:
    """Soft and hard limit are the same: the driver refuses what would pass it. Removing the group ends it."""
    nvml = handles.nvml
    try:
        limits = nvml.c_nvmlSetMemoryLimits_v1_t()
        limits.nameSpace = os.fsencode(group)
        limits.softLimit = limits.hardLimit = limit_bytes
        nvml.nvmlDeviceSetMemoryLimits_v1(handles.find(device).handle, limits)
    except AttributeError:
        return Hold(Rung.NONE, "this pynvml is older than 13.615, which brought memory limits")
    except nvml.NVMLError as failure:
        code = errors.code_of(failure)
        if code == errors.NO_PERMISSION:
            return Hold(Rung.NONE, "the driver sets memory limits for root only")
        if errors.is_unsupported(failure) or code == errors.FUNCTION_NOT_FOUND:
            return Hold(Rung.NONE, "the driver is older than 615, or the device is MIG: it sets no limits")
        return Hold(Rung.NONE, f"the driver did not take the limit: {failure}")
    return Hold(Rung.DRIVER)

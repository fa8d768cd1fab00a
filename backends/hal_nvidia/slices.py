"""Slices: each GPU as a whole and, where MIG is on, its MIG devices."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from hal.backend import Value
from hal.model import Device, Enforcement, Memory, MemoryMode, Rung, Slice, SliceKind, whole
from hal_nvidia import conv, errors

__all__ = ["slices"]

_MIG_ON = 1
_log = logging.getLogger(__name__)


def slices(nvml: Any, handle: Any, device: Device) -> Iterator[Slice]:
    """The whole GPU first. A MIG device that does not answer is left out, and the log says so."""
    yield whole(device)
    try:
        if nvml.nvmlDeviceGetMigMode(handle)[0] != _MIG_ON:
            return
        most = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except (AttributeError, nvml.NVMLError):  # cannot be partitioned, or is too old to say so
        return
    for index in range(min(most, 64)):
        try:
            yield _partition(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index), device)
        except nvml.NVMLError as failure:
            if errors.code_of(failure) not in (errors.NOT_FOUND, errors.INVALID_ARGUMENT):
                _log.warning("left out: MIG device %d of %s: %s", index, device.id, failure)


def _partition(nvml: Any, mig: Any, device: Device) -> Slice:
    uuid = conv.text(nvml.nvmlDeviceGetUUID(mig))
    if uuid is None:
        raise nvml.NVMLError(errors.UNKNOWN)
    shape = nvml.nvmlDeviceGetAttributes(mig)
    memory = conv.count(nvml.nvmlDeviceGetMemoryInfo(mig).total)
    units = conv.count(shape.multiprocessorCount)
    count = None if isinstance(units, Value) else int(units)
    # "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    _, _, profile = (conv.text(nvml.nvmlDeviceGetName(mig)) or "").rpartition(" MIG ")
    size = None if isinstance(memory, Value) else int(memory)
    # "1c.3g.40gb": compute instances of one GPU instance draw from its memory.
    pool = f"{device.id}/gi-{nvml.nvmlDeviceGetGpuInstanceId(mig)}" if "c." in profile else None
    return Slice(
        id=f"nvidia:{uuid}",
        device=device.id,
        kind=SliceKind.PARTITION,
        parent=f"{device.id}/whole",
        memory=Memory(size, MemoryMode.POOL, pool) if pool else Memory(size),
        enforcement=Enforcement(Rung.HARDWARE, Rung.HARDWARE),
        compute_ratio=count / device.compute_units if count and device.compute_units else None,
        profile=profile if shape.gpuInstanceSliceCount else None,
        uuid=uuid,
        compute_units=count,
        attributes={
            "nvidia.gpu_instance": str(nvml.nvmlDeviceGetGpuInstanceId(mig)),
            "nvidia.compute_instance": str(nvml.nvmlDeviceGetComputeInstanceId(mig)),
        },
    )

"""What is here: NVML's devices as the model's."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from hal.backend import HalError, Value
from hal.model import Device, DeviceKind, Heap, Inventory, Pci, Slice
from hal_nvidia import conv, errors
from hal_nvidia.handles import Gpu
from hal_nvidia.links import Ends, ends, links
from hal_nvidia.slices import slices

__all__ = ["enumerate_devices"]

_log = logging.getLogger(__name__)


def enumerate_devices(nvml: Any, root: Path) -> Inventory:
    """Every GPU that answers. Raises HalError when NVML fails, or when it has GPUs and none answers."""
    try:
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as failure:
        raise errors.error(failure, "nvmlDeviceGetCount") from failure
    devices: list[Device] = []
    parts: list[Slice] = []
    joined: list[Ends] = []
    silent: list[HalError] = []
    for index in range(count):
        try:
            gpu = nvml.nvmlDeviceGetHandleByIndex(index)
            device = _device(nvml, root, index, gpu)
            parts.extend(slices(nvml, gpu, device))
            joined.append(ends(nvml, device.id, device.pci.bdf if device.pci else None, Gpu(gpu, False)))
            devices.append(device)
        except nvml.NVMLError as failure:
            silent.append(errors.error(failure, f"NVML device {index}"))
            _log.warning("left out: %s", silent[-1])
    if silent and not devices:
        raise silent[0]
    return Inventory(tuple(devices), tuple(parts), tuple(links(nvml, joined)))


def _device(nvml: Any, root: Path, index: int, gpu: Any) -> Device:
    uuid = conv.text(nvml.nvmlDeviceGetUUID(gpu))
    if uuid is None:
        raise nvml.NVMLError(nvml.NVML_ERROR_UNKNOWN)
    pci = _ask(nvml, "nvmlDeviceGetPciInfo", gpu)
    capability = _ask(nvml, "nvmlDeviceGetCudaComputeCapability", gpu)
    memory = _ask(nvml, "nvmlDeviceGetMemoryInfo", gpu)  # `total` is the same in v1 and v2
    minor = _ask(nvml, "nvmlDeviceGetMinorNumber", gpu)
    total = conv.count(memory.total) if memory else Value(None)
    bdf = conv.bdf(pci) if pci else None
    return Device(
        id=f"nvidia:{uuid}",
        vendor="nvidia",
        kind=DeviceKind.GPU,
        model=conv.text(_ask(nvml, "nvmlDeviceGetName", gpu)) or "NVIDIA GPU",
        heaps=(Heap("vram", None if isinstance(total, Value) else int(total)),),
        pci=Pci(bdf, *conv.pci_ids(pci)) if bdf else None,
        uuid=uuid,
        serial=conv.text(_ask(nvml, "nvmlDeviceGetSerial", gpu)),
        architecture="{}.{}".format(*capability) if capability else None,
        compute_units=conv.multiprocessors(_ask(nvml, "nvmlDeviceGetNumGpuCores", gpu), capability),
        numa_node=_numa_node(nvml, gpu, root, bdf),
        driver=conv.text(_ask(nvml, "nvmlSystemGetDriverVersion")),
        indices={"nvml": index} | ({} if minor is None else {"nvidia_minor": minor}),
    )


def _numa_node(nvml: Any, gpu: Any, root: Path, bdf: str | None) -> int | None:
    """The node of the host that the GPU hangs on. NVML's own NumaNodeId is the GPU's memory as a node."""
    try:
        node = int((root / "sys/bus/pci/devices" / str(bdf) / "numa_node").read_text())
    except (OSError, ValueError):
        affinity = _ask(nvml, "nvmlDeviceGetMemoryAffinity", gpu, 1, 0)  # 64 nodes; NVML_AFFINITY_SCOPE_NODE
        nodes = int(affinity[0]) if affinity else 0
        return nodes.bit_length() - 1 if nodes.bit_count() == 1 else None
    return node if node >= 0 else None


def _ask(nvml: Any, call: str, *arguments: Any) -> Any:
    """One field, or None when this device, driver or pynvml has no such answer. A lost GPU is raised."""
    try:
        return getattr(nvml, call)(*arguments)
    except AttributeError:
        return None
    except nvml.NVMLError as failure:
        if errors.code_of(failure) == errors.GPU_IS_LOST:
            raise
        return None

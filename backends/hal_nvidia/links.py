"""What joins two GPUs: NVLink, directly or through NVSwitches, else PCIe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from hal.backend import Value
from hal.model import Link, Status
from hal_nvidia import conv, errors, levels, parts
from hal_nvidia.handles import Gpu

__all__ = ["Ends", "ends", "links"]

_GPU, _SWITCH = 0, 2  # NVML_NVLINK_DEVICE_TYPE_...
_UP, _SPEED, _COMMON_SPEED = 165, 164, 90  # NVML_FI_DEV_NVLINK_GET_STATE, _GET_SPEED, _SPEED_MBPS_COMMON


class Ends(NamedTuple):
    """Where the NVLinks of a GPU that are up lead: bus addresses, and how many links to each."""

    id: str
    bdf: str | None
    gpu: Gpu
    peers: dict[str, int]
    switches: dict[str, int]
    link_bytes_per_second: int | None


def ends(nvml: Any, subject: str, bdf: str | None, gpu: Gpu) -> Ends:
    """Asks NVML; what it does not say is left out."""
    peers: dict[str, int] = {}
    switches: dict[str, int] = {}
    speed: int | None = None
    try:
        for link in range(parts.link_count(nvml, gpu)):
            try:
                if nvml.nvmlDeviceGetNvLinkState(gpu.handle, link) != 1:
                    continue
                remote = conv.bdf(nvml.nvmlDeviceGetNvLinkRemotePciInfo(gpu.handle, link))
                kind = _remote_type(nvml, gpu, link)
            except nvml.NVMLError as failure:
                if errors.code_of(failure) == errors.GPU_IS_LOST:
                    raise
                continue
            if kind in (_GPU, _SWITCH):
                found = peers if kind == _GPU else switches
                found[remote] = found.get(remote, 0) + 1
                speed = speed or _speed(nvml, gpu, link)
    except (AttributeError, nvml.NVMLError):  # a pynvml without the call, or NVML's own error
        pass
    return Ends(subject, bdf, gpu, peers, switches, speed)


def _remote_type(nvml: Any, gpu: Gpu, link: int) -> int:
    """A driver without the call is older than NVSwitch."""
    try:
        return int(nvml.nvmlDeviceGetNvLinkRemoteDeviceType(gpu.handle, link))
    except AttributeError:
        return _GPU
    except nvml.NVMLError as failure:
        if errors.code_of(failure) == errors.FUNCTION_NOT_FOUND:
            return _GPU
        raise


def _speed(nvml: Any, gpu: Gpu, link: int) -> int | None:
    for field in nvml.nvmlDeviceGetFieldValues(gpu.handle, [(_SPEED, link), _COMMON_SPEED]):
        speed = conv.megabytes(field.value.uiVal) if field.nvmlReturn == 0 else None
        if speed and not isinstance(speed, Value):
            return int(speed)
    return None


def links(nvml: Any, gpus: Sequence[Ends]) -> Iterator[Link]:
    """An edge for each pair of which NVML knows the way; bandwidth in one direction."""
    for a, b in combinations(gpus, 2):
        count = a.peers.get(b.bdf or "", 0)
        if not count and a.switches.keys() & b.switches.keys():
            count = min(sum(a.switches.values()), sum(b.switches.values()))
        joined, level = levels.level(nvml, a.gpu.handle, b.gpu.handle)
        if count and a.link_bytes_per_second:
            bandwidth = count * a.link_bytes_per_second
            yield Link(a.id, b.id, "nvlink", bandwidth, Status.OK, count=count, level=level)
        elif count:
            yield Link(a.id, b.id, "nvlink", count=count, level=level)
        elif joined:
            yield Link(a.id, b.id, "pcie", level=level)

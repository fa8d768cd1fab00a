"""What is here: the host."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

from hal.backend import GoneError
from hal.model import Device, DeviceKind, Heap, Inventory, whole
from hal_cpu import conv, errors

__all__ = ["ID", "check", "enumerate_devices"]

ID = "cpu:host"


def enumerate_devices(root: Path) -> Inventory:
    """The host, always one. Raises HalError when /proc cannot be read."""
    try:
        memory = conv.meminfo((root / "proc/meminfo").read_text())
        cpuinfo = (root / "proc/cpuinfo").read_text()
    except OSError as failure:
        raise errors.error(failure, "cpu:host") from failure
    host = Device(
        id=ID,
        vendor="cpu",
        kind=DeviceKind.CPU,
        model=conv.model_name(cpuinfo) or platform.machine(),
        heaps=(Heap("sysmem", memory.get("MemTotal")),),
        architecture=platform.machine(),
        compute_units=_online(root),
    )
    return Inventory((host,), (whole(host),))


def check(ids: Sequence[str]) -> None:
    """Raises GoneError for an id that is not the host's."""
    for subject in ids:
        if subject != ID:
            raise GoneError(f"{subject}: the CPU backend has {ID} only")


def _online(root: Path) -> int | None:
    """Logical CPUs that are online."""
    try:
        return conv.cpu_list((root / "sys/devices/system/cpu/online").read_text())
    except (OSError, ValueError):
        return None

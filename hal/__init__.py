"""hal: one interface to every accelerator.

    import hal

    hal.devices()                          # what is here
    hal.sample(groups=["memory", "power"]) # how it is doing
    async for sample in hal.stream(interval=1.0): ...
    with hal.Machine() as machine: ...     # the same, kept open
    with hal.lease(memory_bytes=20 << 30) as lease: ...

Names are loaded when they are first used, so that a command that needs few of them starts fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hal.api import devices, sample, stream
    from hal.async_client import AsyncClient, AsyncLease
    from hal.backend import (
        GoneError,
        Group,
        HalError,
        StateError,
        TemporaryError,
        UnsupportedError,
    )
    from hal.client import Client, Lease
    from hal.inventory import Machine
    from hal.model import Device, DeviceKind, Reading, Status
    from hal.scheduler.lease import HeldLease, lease
    from hal.telemetry.sampler import Sample

__all__ = [
    "AsyncClient",
    "AsyncLease",
    "Client",
    "Device",
    "DeviceKind",
    "GoneError",
    "Group",
    "HalError",
    "HeldLease",
    "Lease",
    "Machine",
    "Reading",
    "Sample",
    "StateError",
    "Status",
    "TemporaryError",
    "UnsupportedError",
    "__version__",
    "devices",
    "lease",
    "sample",
    "stream",
]

_HOMES = {
    "hal.api": ("devices", "sample", "stream"),
    "hal.async_client": ("AsyncClient", "AsyncLease"),
    "hal.backend": (
        "GoneError",
        "Group",
        "HalError",
        "StateError",
        "TemporaryError",
        "UnsupportedError",
    ),
    "hal.client": ("Client", "Lease"),
    "hal.inventory": ("Machine",),
    "hal.model": ("Device", "DeviceKind", "Reading", "Status"),
    "hal.scheduler.lease": ("HeldLease", "lease"),
    "hal.telemetry.sampler": ("Sample",),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("gpu-hal")
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'hal' has no attribute '{name}'")

"""hal: one interface to every accelerator.

    import hal

    with hal.Machine() as machine:
        for device in machine.inventory().devices: ...

Names are loaded when they are first used, so that a command that needs few of them starts fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hal.backend import (
        GoneError,
        Group,
        HalError,
        StateError,
        TemporaryError,
        UnsupportedError,
    )
    from hal.inventory import Machine
    from hal.scheduler.lease import HeldLease, lease

__all__ = [
    "GoneError",
    "Group",
    "HalError",
    "HeldLease",
    "Machine",
    "StateError",
    "TemporaryError",
    "UnsupportedError",
    "__version__",
    "lease",
]

_HOMES = {
    "hal.backend": (
        "GoneError",
        "Group",
        "HalError",
        "StateError",
        "TemporaryError",
        "UnsupportedError",
    ),
    "hal.inventory": ("Machine",),
    "hal.scheduler.lease": ("HeldLease", "lease"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("gpu-hal")
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'hal' has no attribute '{name}'")

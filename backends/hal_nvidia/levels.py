"""How far up the PCIe tree two GPUs meet, as NVML tells it."""

from __future__ import annotations

from typing import Any

from hal.model import Level

__all__ = ["level"]

# NVML_TOPOLOGY_...: internal is two GPUs of one board, behind the board's own switch.
_LEVELS = {0: Level.PIX, 10: Level.PIX, 20: Level.PXB, 30: Level.PHB, 40: Level.NODE, 50: Level.SYS}


def level(nvml: Any, a: Any, b: Any) -> tuple[bool, Level | None]:
    """Whether NVML knows a way between two handles, and where it leads."""
    try:
        said = nvml.nvmlDeviceGetTopologyCommonAncestor(a, b)
    except (AttributeError, nvml.NVMLError):  # a pynvml without the call, or NVML's own error
        return False, None
    return True, _LEVELS.get(said)

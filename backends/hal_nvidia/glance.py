"""The first look, at files only: whether it is worth a process to load NVML in."""

from __future__ import annotations

from pathlib import Path

from hal.backend.loader import may_load
from hal.model import Probe, ProbeState

__all__ = ["LIBRARY", "absent", "glance", "on_bus"]

LIBRARY = "libnvidia-ml.so.1"
# Of the kernel driver, or of Windows' below WSL.
_SIGNS = ("dev/nvidiactl", "dev/nvidia0", "dev/dxg", "proc/driver/nvidia", "sys/module/nvidia")


def glance(root: Path) -> Probe | None:
    """That there is nothing here; None where NVML may load, or has reason to be missed."""
    if may_load(LIBRARY, root) or any((root / sign).exists() for sign in _SIGNS) or on_bus(root):
        return None
    return absent(LIBRARY)


def absent(library: str) -> Probe:
    return Probe(
        ProbeState.ABSENT,
        f"no NVIDIA driver library ({library})",
        "install the NVIDIA driver if this machine has an NVIDIA GPU",
    )


def on_bus(root: Path) -> bool:
    """Whether the PCI bus has an NVIDIA display controller (class 0x03...)."""
    for vendor in root.glob("sys/bus/pci/devices/*/vendor"):
        try:
            if vendor.read_text().strip() != "0x10de":
                continue
            if vendor.with_name("class").read_text().startswith("0x03"):
                return True
        except OSError:  # unplugged between the two looks
            continue
    return False

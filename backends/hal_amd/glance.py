"""The first look, at files only: whether it is worth a process to load AMD SMI in."""

from __future__ import annotations

import os
from pathlib import Path

from hal.backend.loader import may_load
from hal.model import Probe, ProbeState

__all__ = ["LIBRARY", "absent", "glance", "on_bus", "places"]

LIBRARY = "libamd_smi.so"
_SIGNS = ("dev/kfd", "sys/class/kfd", "sys/module/amdgpu", "sys/bus/pci/drivers/amdgpu")


def glance(root: Path) -> Probe | None:
    """That there is nothing here; None where AMD SMI may load, or the kernel's files may do instead, or
    one of both has reason to be missed."""
    if (
        may_load(LIBRARY, root)
        or any(os.path.lexists(place) for place in places(root))
        or any((root / sign).exists() for sign in _SIGNS)
        or on_bus(root)
    ):
        return None
    return absent(LIBRARY)


def places(root: Path) -> list[str]:
    """Where ROCm puts the library, beside where the dynamic loader looks."""
    prefixes = (os.environ.get("ROCM_HOME"), os.environ.get("ROCM_PATH"), root / "opt/rocm")
    return [str(Path(prefix, "lib", LIBRARY)) for prefix in prefixes if prefix]


def absent(library: str) -> Probe:
    return Probe(
        ProbeState.ABSENT,
        f"no AMD SMI library ({library})",
        "install amd-smi-lib (ROCm) if this machine has an AMD GPU",
    )


def on_bus(root: Path) -> bool:
    """Whether the PCI bus has an AMD display controller (0x03...) or accelerator (0x12...)."""
    for vendor in root.glob("sys/bus/pci/devices/*/vendor"):
        try:
            if vendor.read_text().strip() != "0x1002":
                continue
            if vendor.with_name("class").read_text().startswith(("0x03", "0x12")):
                return True
        except OSError:  # unplugged between the two looks
            continue
    return False

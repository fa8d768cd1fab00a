"""The PCI tree, from the kernel's files: how far up two devices meet, whoever made them.

A device's real path below /sys/devices names the bridges above it, the host bridge first:
``pci0000:14/0000:14:01.0/0000:15:00.0/0000:16:00.0/0000:17:00.0``. A switch is two bridges deep, a port up
and a port down.
"""

from __future__ import annotations

import os
from pathlib import Path

from hal.model import Level

__all__ = ["bridges", "level", "numa_node", "root"]


def root() -> Path:
    """Where the file system begins: ``HAL_ROOT``, as on an emulated machine, or ``/``."""
    return Path(os.environ.get("HAL_ROOT", "/"))


def bridges(bdf: str, under: Path | None = None) -> tuple[str, ...]:
    """What is above a device, the host bridge first; empty when the kernel does not show it."""
    folder = (root() if under is None else under) / "sys/bus/pci/devices" / bdf
    try:
        parts = folder.resolve(strict=True).parts
    except (OSError, RuntimeError):  # not there, or links in a circle
        return ()
    begin = next((n for n, part in enumerate(parts) if part.startswith("pci") and ":" in part), None)
    return () if begin is None else parts[begin:-1]


def numa_node(bdf: str, under: Path | None = None) -> int | None:
    """The NUMA node that the kernel puts a device on; None when it does not say (-1)."""
    try:
        file = (root() if under is None else under) / "sys/bus/pci/devices" / bdf / "numa_node"
        node = int(file.read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def level(
    a: tuple[str, ...], b: tuple[str, ...], numa_a: int | None = None, numa_b: int | None = None
) -> Level | None:
    """Where two devices with these bridges above them meet; None when nothing says so.

    The words are NVIDIA's: pix is at most one switch between the two, pxb several, phb a host bridge.
    """
    common = 0
    for left, right in zip(a, b, strict=False):
        if left != right:
            break
        common += 1
    if common == 1:
        return Level.PHB
    if common > 1:
        return Level.PIX if max(len(a), len(b)) - common <= 1 else Level.PXB
    if numa_a is None or numa_b is None:
        return None
    return Level.NODE if numa_a == numa_b else Level.SYS

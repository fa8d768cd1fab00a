"""The machine's PCI devices as Linux would show them below /sys, as far as its description tells."""

from __future__ import annotations

from pathlib import Path

from hal.emulation.description import Description

__all__ = ["write_tree"]


def write_tree(description: Description, root: Path) -> None:
    """Make the files: a device whose place in the PCI tree is not told is not in it."""
    flat = root / "sys/bus/pci/devices"
    flat.mkdir(parents=True)
    for figures in description.devices:
        if not figures.get("pci_path"):
            continue
        domain, bus, device, function = (figures[f"pci_{part}"] for part in
                                         ("domain", "bus", "device", "function"))  # fmt: skip
        bdf = f"{domain:04x}:{bus:02x}:{device:02x}.{function}"
        folder = root / "sys/devices" / figures["pci_path"] / bdf
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "numa_node").write_text(f"{figures.get('numa_node', -1)}\n")
        (flat / bdf).symlink_to(folder)

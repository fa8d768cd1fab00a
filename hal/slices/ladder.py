"""Who holds a slice's memory: the strongest rung that is there and permitted (docs/enforcement.md).

The driver and the kernel hold a control group's programs, whatever they do to their environment; the guard
stays for an early refusal in the vendor's own words and for the figures.
"""

from __future__ import annotations

import contextlib

from msgspec import Struct

from hal.backend import StateError
from hal.enforce.cgroup import Tree
from hal.inventory import Machine
from hal.model import Rung

__all__ = ["Climbed", "climb"]


class Climbed(Struct, frozen=True):
    """The rung that holds, and why the higher ones do not: one sentence each."""

    rung: Rung
    group: str | None  # the control group that a program has to be in for that, if any
    reasons: tuple[str, ...] = ()


def climb(machine: Machine, tree: Tree, device: str, name: str, memory_bytes: int) -> Climbed:
    """Make the slice's control group and have the driver, or else the kernel, hold it. No group is left
    when neither does."""
    offered = machine.limits(device).memory
    try:
        group = tree.make(name)
    except StateError as error:
        return Climbed(offered, None, (str(error),))
    held = machine.hold_memory(device, str(group.path), memory_bytes)
    if held.rung is not Rung.NONE:
        return Climbed(held.rung, str(group.path))
    reasons = [f"driver: {held.reason}"]
    pci = machine.find(device).pci
    region = None if pci is None else tree.region_of(pci.bdf)
    if region is None:
        reasons.append("kernel: it knows no region of device memory (dmem) for this device")
    else:
        try:
            group.limit_region(region, memory_bytes)
            return Climbed(Rung.KERNEL, str(group.path), tuple(reasons))
        except StateError as error:
            reasons.append(f"kernel: {error}")
    with contextlib.suppress(StateError):
        group.remove()
    return Climbed(offered, None, tuple(reasons))

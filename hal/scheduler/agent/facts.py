"""This machine as placement sees it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from hal.backend import Group
from hal.inventory import Machine
from hal.model import Device, Inventory, Rung
from hal.scheduler.core.facts import Attribute, DeviceFacts, NodeFacts
from hal.slices.claims import Claim

__all__ = ["node_facts"]

_DIRECT = frozenset({"nvlink", "xgmi"})  # kinds of links over which devices reach one another directly


def node_facts(
    node: str, machine: Machine, inside: Mapping[str, int], claims: Sequence[Claim] = ()
) -> NodeFacts:
    """The devices, and of each how much programs outside our slices use or others have claimed.

    ``inside``: bytes used in our slices; ``claims``: those of others in the node's book.

    A device whose size nobody knows is left out: nothing can be promised of it.
    """
    inventory = machine.inventory(refresh=True)
    figures: dict[str, dict[str, int]] = {}
    for reading in machine.sample([Group.MEMORY]):
        if reading.value is not None:
            figures.setdefault(reading.subject, {}).setdefault(reading.name, int(reading.value))
    fabrics = _fabrics(inventory)
    found = []
    for device in inventory.devices:
        figure = figures.get(device.id, {})
        total = device.memory_bytes or figure.get("memory_total_bytes")
        if total is None:
            continue
        used = figure.get("memory_used_bytes")
        outside = None if used is None else max(used - inside.get(device.id, 0), 0)
        here = [claim for claim in claims if claim.device == device.id]
        if here:
            claimed = total if any(claim.whole for claim in here) else sum(c.memory_bytes for c in here)
            outside = max(outside or 0, min(claimed, total))  # anybody can write any number into the book
        limits = machine.limits(device.id)
        found.append(
            DeviceFacts(
                id=device.id,
                vendor=device.vendor,
                model=device.model,
                memory_bytes=total - figure.get("memory_reserved_bytes", 0),
                outside_bytes=outside,
                holds_slices=limits.memory is not Rung.NONE,
                attributes=_attributes(device)
                | {"memory_held_by": limits.memory.value, "compute_held_by": limits.compute.value},
                fabric=fabrics.get(device.id),
                numa_node=device.numa_node,
            )
        )
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return NodeFacts(node, 1000 * (os.cpu_count() or 1), pages, tuple(found))


def _attributes(device: Device) -> dict[str, Attribute]:
    own: dict[str, Attribute | None] = {
        "kind": device.kind.value,
        "architecture": device.architecture,
        "compute_units": device.compute_units,
        "driver_version": device.driver,
    }
    return {**device.attributes, **{name: value for name, value in own.items() if value is not None}}


def _fabrics(inventory: Inventory) -> dict[str, str]:
    """For devices with a direct link, the first device of those that it reaches, as the name of all."""
    group = {device.id: device.id for device in inventory.devices}
    linked = [link for link in inventory.links if link.kind in _DIRECT]
    linked = [link for link in linked if link.a in group and link.b in group]
    for link in linked:
        low, high = sorted((group[link.a], group[link.b]))
        group = {id: low if name == high else name for id, name in group.items()}
    reached = {id for link in linked for id in (link.a, link.b)}
    order = sorted({group[id] for id in reached})
    return {id: f"fabric-{order.index(group[id])}" for id in sorted(reached)}

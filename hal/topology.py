"""How devices are connected: functions over an inventory's links, and the kernel's PCI tree.

What a vendor's driver says of two of its devices comes first; where no driver says how far apart two are
over PCIe (never for devices of different vendors), the PCI tree does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from hal import pci
from hal.model import Device, Level, Link

__all__ = ["KINDS", "LEVELS", "Branch", "best", "by_node", "matrix", "pairs", "tree"]

# Kinds of links, the closest first; what each means.
KINDS = {
    "nvlink": "NVLink between the two",
    "xgmi": "XGMI (Infinity Fabric) between the two",
    "xgmi_hops": "XGMI through other devices",
    "pcie": "PCIe; nothing says how far",
}
LEVELS = {
    Level.PIX: "one PCIe switch",
    Level.PXB: "several PCIe switches below one root port",
    Level.PHB: "the host bridge of one CPU",
    Level.NODE: "host bridges of one NUMA node",
    Level.SYS: "the link between NUMA nodes",
}
_NEAREST = list(LEVELS)


def best(links: Iterable[Link], a: str, b: str) -> Link | None:
    """The closest link between two devices that any driver told of; None: nobody said."""
    order = list(KINDS)

    def distance(link: Link) -> tuple[int, int]:
        kind = order.index(link.kind) if link.kind in order else len(order)
        return kind, len(_NEAREST) if link.level is None else _NEAREST.index(link.level)

    return min((link for link in links if {link.a, link.b} == {a, b}), key=distance, default=None)


def matrix(
    devices: Iterable[Device], links: Iterable[Link], root: Path | None = None
) -> list[list[Link | None]]:
    """The closest link for each pair, in the order of the devices; None on the diagonal and where unknown.

    The level of a link that its driver does not give is that of the PCI tree below ``root`` (by default
    ``HAL_ROOT`` or /), or of the devices' NUMA nodes, when those are known.
    """
    rows, known = [_placed(device, root) for device in devices], list(links)
    above = {d.id: pci.bridges(d.pci.bdf, root) if d.pci else () for d in rows}
    return [[None if a is b else _between(a, b, known, above) for b in rows] for a in rows]


def _placed(device: Device, root: Path | None) -> Device:
    """With the kernel's word for its NUMA node, where its backend has none."""
    if device.numa_node is not None or device.pci is None:
        return device
    return replace(device, numa_node=pci.numa_node(device.pci.bdf, root))


def _between(a: Device, b: Device, links: list[Link], above: Mapping[str, tuple[str, ...]]) -> Link | None:
    told = best(links, a.id, b.id)
    found = pci.level(above[a.id], above[b.id], a.numa_node, b.numa_node)
    if told is None:
        return None if found is None else Link(a.id, b.id, "pcie", level=found)
    if told.level is not None and (found is None or told.level not in (Level.NODE, Level.SYS)):
        return told
    return told if found is None else replace(told, level=found)


def pairs(table: list[list[Link | None]]) -> list[Link]:
    """Each link of a matrix once."""
    return [link for n, row in enumerate(table) for link in row[n + 1 :] if link is not None]


class Branch(Struct, frozen=True):
    """A NUMA node, or a PCIe bridge, with what is below it."""

    name: str
    branches: tuple[Branch, ...] = ()
    devices: tuple[str, ...] = ()  # ids


def tree(devices: Iterable[Device], root: Path | None = None) -> list[Branch]:
    """Devices by NUMA node and in it by the PCIe bridges at which they part."""
    return [
        _branch(
            "NUMA node unknown" if node is None else f"NUMA node {node}",
            [(pci.bridges(d.pci.bdf, root) if d.pci else (), d.id) for d in on_node],
        )
        for node, on_node in by_node(devices, root).items()
    ]


def by_node(devices: Iterable[Device], root: Path | None = None) -> dict[int | None, list[Device]]:
    """Devices by NUMA node, the unknown last."""
    nodes: dict[int | None, list[Device]] = {}
    for device in (_placed(device, root) for device in devices):
        nodes.setdefault(device.numa_node, []).append(device)
    return dict(sorted(nodes.items(), key=lambda pair: (pair[0] is None, pair[0] or 0)))


def _branch(name: str, below: list[tuple[tuple[str, ...], str]]) -> Branch:
    """Bridges that lead to one device, or to one more bridge, only make a tree longer: they are left out."""
    groups: dict[str, list[tuple[tuple[str, ...], str]]] = {}
    single: list[str] = []
    for path, device in below:
        if path:
            groups.setdefault(path[0], []).append((path[1:], device))
        else:
            single.append(device)
    branches: list[Branch] = []
    for bridge, members in groups.items():
        if len(members) == 1:
            single.append(members[0][1])
            continue
        while all(path and path[0] == members[0][0][0] for path, _ in members):
            bridge, members = members[0][0][0], [(path[1:], device) for path, device in members]
        branches.append(_branch(bridge, members))
    order = [device for _, device in below]
    return Branch(name, tuple(branches), tuple(sorted(single, key=order.index)))

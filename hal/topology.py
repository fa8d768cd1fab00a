"""How devices are connected: pure functions over an inventory's links."""

from __future__ import annotations

from collections.abc import Iterable

from hal.model import Device, Link

__all__ = ["LEVELS", "best", "matrix", "tree"]

# Kinds of links, the closest first; what each means.
LEVELS = {
    "nvlink": "NVLink between the two",
    "xgmi": "XGMI (Infinity Fabric) between the two",
    "xgmi_hops": "XGMI through other devices",
    "pix": "one PCIe switch",
    "pxb": "several PCIe switches, one root port",
    "phb": "the host bridge of one CPU",
    "node": "host bridges of one NUMA node",
    "sys": "the link between CPUs",
    "pcie": "PCIe; the driver does not say how far",
}


def best(links: Iterable[Link], a: str, b: str) -> Link | None:
    """The closest link between two devices that any driver told of; None: nobody said."""
    order = list(LEVELS)
    between = [link for link in links if {link.a, link.b} == {a, b}]
    return min(between, key=lambda x: order.index(x.kind) if x.kind in order else len(order), default=None)


def matrix(devices: Iterable[Device], links: Iterable[Link]) -> list[list[Link | None]]:
    """The closest link for each pair, in the order of the devices; None on the diagonal and where unknown.

    Devices of different vendors, of which no driver tells, are ``sys`` apart when their NUMA nodes are
    known and differ, and unknown otherwise.
    """
    rows, known = list(devices), list(links)
    return [[None if a is b else best(known, a.id, b.id) or _by_numa(a, b) for b in rows] for a in rows]


def _by_numa(a: Device, b: Device) -> Link | None:
    if a.numa_node is None or b.numa_node is None:
        return None
    return Link(a.id, b.id, "sys" if a.numa_node != b.numa_node else "node")


def tree(devices: Iterable[Device]) -> dict[int | None, list[Device]]:
    """Devices by NUMA node, the unknown last."""
    nodes: dict[int | None, list[Device]] = {}
    for device in devices:
        nodes.setdefault(device.numa_node, []).append(device)
    return dict(sorted(nodes.items(), key=lambda pair: (pair[0] is None, pair[0] or 0)))

"""What placement knows of nodes and devices: frozen facts, in whole bytes and thousandths."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["WHOLE_MILLI", "Attribute", "DeviceFacts", "NodeFacts", "check_facts"]

WHOLE_MILLI = 1000  # the compute of one device, whatever its size: a share is a share of this device

# Of one node: small enough that sums over a cluster can be counted with and written.
_MOST_MEMORY, _MOST_RAM, _MOST_MILLI, _MOST_MICROS = 1 << 46, 1 << 50, 1 << 40, 1 << 50
_MOST_OUTSIDE = 1 << 62

Attribute = str | int | float | bool


class DeviceFacts(Struct, frozen=True):
    """What placement needs to know of a device."""

    id: str
    vendor: str
    model: str
    memory_bytes: int  # that programs can have
    outside_bytes: int | None = 0  # in use by programs that hold no lease; None: not known, so none is lent
    holds_slices: bool = True  # something can hold a part of it to its limit
    attributes: dict[str, Attribute] = {}
    fabric: str | None = None  # devices of one node with the same name here reach one another directly
    micros_per_hour: int = 0  # millionths of the currency that the price list is in
    numa_node: int | None = None


class NodeFacts(Struct, frozen=True):
    """A node, and the devices that it has."""

    id: str
    cpu_milli: int  # thousandths of a core
    ram_bytes: int
    devices: tuple[DeviceFacts, ...] = ()
    labels: dict[str, str] = {}


def check_facts(node: NodeFacts) -> None:
    """A driver that does not know may say so with all bits set: that is no amount. Raises ValueError."""
    _between(f"cpu_milli of '{node.id:.64}'", node.cpu_milli, _MOST_MILLI)
    _between(f"ram_bytes of '{node.id:.64}'", node.ram_bytes, _MOST_RAM)
    for device in node.devices:
        _between(f"memory_bytes of '{device.id:.64}'", device.memory_bytes, _MOST_MEMORY)
        _between(f"outside_bytes of '{device.id:.64}'", device.outside_bytes or 0, _MOST_OUTSIDE)
        _between(f"micros_per_hour of '{device.id:.64}'", device.micros_per_hour, _MOST_MICROS)


def _between(what: str, value: int, most: int) -> None:
    if not 0 <= value <= most:
        raise ValueError(f"{what} is between 0 and {most}, not {value}")

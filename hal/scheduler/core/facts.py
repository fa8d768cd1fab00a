"""What placement knows of nodes and devices: frozen facts, in whole bytes and thousandths."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["WHOLE_MILLI", "Attribute", "DeviceFacts", "NodeFacts"]

WHOLE_MILLI = 1000  # the compute of one device, whatever its size: a share is a share of this device

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

"""The words of the house as frozen values: devices, slices, heaps, links, readings, processes.

Base units everywhere: bytes, seconds, watts, degrees Celsius, hertz, ratios from 0 to 1. A value that
the hardware did not give is ``None`` with a status that says why; zero is always a measurement.
This module knows nothing else of hal.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from msgspec import Struct, field

__all__ = [
    "Device",
    "DeviceKind",
    "Enforcement",
    "Event",
    "EventKind",
    "Exposure",
    "Heap",
    "Hold",
    "Inventory",
    "Level",
    "Link",
    "Memory",
    "MemoryMode",
    "Pci",
    "Portrait",
    "Probe",
    "ProbeState",
    "Process",
    "Reading",
    "Rung",
    "Scope",
    "Slice",
    "SliceKind",
    "Status",
]


class Status(StrEnum):
    """Why a value is there, or why it is not."""

    OK = "ok"
    UNSUPPORTED = "unsupported"  # this device or driver has no such figure
    DENIED = "denied"  # it has, but not for this user
    STALE = "stale"  # an earlier value; the source did not answer in time
    ERROR = "error"  # the source failed, or said something absurd
    SATURATED = "saturated"  # the counter is at its end
    ESTIMATED = "estimated"  # derived, not measured


class Scope(StrEnum):
    """What a reading is about."""

    PACKAGE = "package"  # the physical package, all partitions together
    DEVICE = "device"
    SLICE = "slice"
    PARENT = "parent"  # only the parent has it; it is not this slice's own


class DeviceKind(StrEnum):
    GPU = "gpu"
    NPU = "npu"
    TPU = "tpu"
    CPU = "cpu"


class Heap(Struct, frozen=True):
    """A kind of memory that a device has."""

    name: str  # vram, gtt, sysmem
    total_bytes: int | None  # None: the driver did not say


class Pci(Struct, frozen=True):
    """Where a device sits on the PCI bus, and what it says it is."""

    bdf: str  # the physical function, "0000:41:00.0", lower case
    vendor_id: int | None = None
    device_id: int | None = None


class Device(Struct, frozen=True):
    """A physical package."""

    id: str  # "vendor:uuid" or "vendor:pci-<physical bdf>"; never an index
    vendor: str
    kind: DeviceKind
    model: str  # as the vendor's library prints it
    heaps: tuple[Heap, ...] = ()
    pci: Pci | None = None
    uuid: str | None = None
    serial: str | None = None
    architecture: str | None = None  # "9.0" (CUDA capability), "gfx942", "x86_64"
    compute_units: int | None = None  # SM, CU or logical CPUs
    numa_node: int | None = None
    driver: str | None = None
    indices: dict[str, int] = field(default_factory=dict)  # how other tools number it
    attributes: dict[str, str] = field(default_factory=dict)  # vendor words, "vendor.name"

    @property
    def memory_bytes(self) -> int | None:
        """Size of the first heap: the memory that slices are cut from."""
        return self.heaps[0].total_bytes if self.heaps else None


class SliceKind(StrEnum):
    WHOLE = "whole"
    PARTITION = "partition"  # made by the hardware
    SOFT = "soft"  # a share that something has to hold to its limit


class MemoryMode(StrEnum):
    EXCLUSIVE = "exclusive"
    POOL = "pool"  # drawn from a pool shared with sibling slices


class Memory(Struct, frozen=True):
    bytes: int | None
    mode: MemoryMode = MemoryMode.EXCLUSIVE
    pool: str | None = None


class Rung(StrEnum):
    """Who holds a slice to its limit, the strongest first."""

    HARDWARE = "hardware"
    DRIVER = "driver"
    KERNEL = "kernel"
    RUNTIME = "runtime"
    GUARD = "guard"
    NONE = "none"


class Enforcement(Struct, frozen=True):
    memory: Rung
    compute: Rung


class Hold(Struct, frozen=True):
    """Whether something holds a slice's memory, and if not (NONE) why."""

    rung: Rung
    reason: str = ""


class Slice(Struct, frozen=True):
    """What is handed to a workload: a device, a partition, or a share of either."""

    id: str
    device: str
    kind: SliceKind
    memory: Memory
    enforcement: Enforcement
    parent: str | None = None  # None: a root of the tree; every device has one root, `whole`
    compute_ratio: float | None = None  # None: no limit
    profile: str | None = None  # the vendor's name of the partition's shape: "1g.10gb", "CPX"
    uuid: str | None = None  # what a visibility variable or another tool calls it
    compute_units: int | None = None
    attributes: dict[str, str] = field(default_factory=dict)  # vendor words, "vendor.name"


class Level(StrEnum):
    """How far up the PCIe tree two devices meet, the closest first."""

    PIX = "pix"  # at one PCIe switch
    PXB = "pxb"  # at several PCIe switches, below one root port
    PHB = "phb"  # at the host bridge of one CPU
    NODE = "node"  # beyond it, within one NUMA node
    SYS = "sys"  # at the link between CPUs


class Link(Struct, frozen=True):
    """A connection between two devices."""

    a: str
    b: str
    kind: str  # nvlink, xgmi, xgmi_hops (through other devices), pcie
    bandwidth_bytes_per_second: int | None = None  # in one direction, all links between the two together
    status: Status = Status.UNSUPPORTED  # of the bandwidth
    count: int | None = None  # of links side by side; None: not told
    level: Level | None = None  # where they meet over PCIe, whatever else joins them; None: not told


class Reading(Struct, frozen=True):
    """One measured value, or the reason why there is none."""

    subject: str  # id of a device or slice
    name: str  # in hal.telemetry.catalogue
    value: float | int | None
    unit: str
    status: Status = Status.OK
    scope: Scope = Scope.DEVICE
    labels: dict[str, str] = field(default_factory=dict)  # heap, sensor
    window_seconds: float | None = None  # None: instantaneous, or the source does not say
    time: float | None = None  # seconds since 1970
    source: str = ""  # the call or the file
    detail: str = ""  # the vendor's own word when the status is not ok


class EventKind(StrEnum):
    ERROR = "error"  # the device reported a fault; `code_space` and `code` say which
    LOST = "lost"  # it no longer answers
    RESET = "reset"
    THERMAL = "thermal"
    PARTITION_CHANGED = "partition_changed"
    HOTPLUG = "hotplug"
    PAGING = "paging"  # memory moved to or from it, or it touched memory that was not there


class Event(Struct, frozen=True):
    """Something that happened to a device or slice."""

    subject: str
    kind: EventKind
    time: float  # seconds since 1970, when it was noticed
    code_space: str = ""  # whose numbers `code` is one of: xid, kfd, ras, afid
    code: int | None = None
    message: str = ""
    source: str = ""


class Process(Struct, frozen=True):
    """A process that uses a device."""

    device: str
    pid: int
    name: str | None  # None: its /proc entry cannot be read
    memory_bytes: int | None
    status: Status = Status.OK  # of memory_bytes
    compute_busy_ratio: float | None = None  # share of the driver's last window for it
    memory_bandwidth_busy_ratio: float | None = None
    encoder_busy_ratio: float | None = None
    decoder_busy_ratio: float | None = None
    busy_status: Status = Status.UNSUPPORTED  # of the ratios; stale: it has done nothing that was counted yet


class ProbeState(StrEnum):
    READY = "ready"
    ABSENT = "absent"  # this machine has no such hardware, or no driver for it
    BLOCKED = "blocked"  # it is there, but something that the user can fix is in the way
    BROKEN = "broken"  # a library or driver that fails


class Probe(Struct, frozen=True):
    """What a backend found when it looked, before it opened anything."""

    state: ProbeState
    reason: str = ""
    fix: str = ""  # what to tell the user; empty when there is nothing to do


class Exposure(Struct, frozen=True):
    """What a program needs in order to see some devices and no other of the same vendor."""

    env: dict[str, str] = field(default_factory=dict)


class Inventory(Struct, frozen=True):
    """What is here."""

    devices: tuple[Device, ...] = ()
    slices: tuple[Slice, ...] = ()
    links: tuple[Link, ...] = ()


class Portrait(Struct, frozen=True):
    """What a stand-in has to be told to answer as these devices do: fields of a machine description."""

    drivers: dict[str, int | str] = field(default_factory=dict)
    devices: dict[str, dict[str, Any]] = field(default_factory=dict)  # by id


def whole(device: Device) -> Slice:
    """The root slice of a device, which every device has."""
    return Slice(
        id=f"{device.id}/whole",
        device=device.id,
        kind=SliceKind.WHOLE,
        memory=Memory(device.memory_bytes),
        enforcement=Enforcement(Rung.HARDWARE, Rung.HARDWARE),
    )


def jsonable(value: Any) -> Any:
    """A model value as plain dictionaries, lists and strings."""
    import msgspec

    return msgspec.to_builtins(value)

"""The metric catalogue: every name that a reading may carry, as data."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from hal.backend import Group

__all__ = ["CATALOGUE", "Cost", "Metric", "MetricKind"]


class MetricKind(StrEnum):
    GAUGE = "gauge"
    COUNTER = "counter"


class Cost(StrEnum):
    """How often a metric is worth asking for."""

    STATIC = "static"  # once
    FAST = "fast"  # every tick
    SLOW = "slow"  # one tick in some


class Metric(Struct, frozen=True):
    name: str
    group: Group
    unit: str
    kind: MetricKind
    cost: Cost
    labels: tuple[str, ...]
    meaning: str


_ROWS = (
    Metric("memory_total_bytes", Group.MEMORY, "bytes", MetricKind.GAUGE, Cost.FAST, ("heap",),
           "Size of a heap, what the driver keeps for itself included."),
    Metric("memory_used_bytes", Group.MEMORY, "bytes", MetricKind.GAUGE, Cost.FAST, ("heap",),
           "Bytes of a heap in use by programs, as the vendor's library counts them."),
    Metric("memory_free_bytes", Group.MEMORY, "bytes", MetricKind.GAUGE, Cost.FAST, ("heap",),
           "Bytes of a heap that can still be allocated."),
    Metric("memory_reserved_bytes", Group.MEMORY, "bytes", MetricKind.GAUGE, Cost.FAST, ("heap",),
           "Bytes of a heap that the driver or firmware keeps."),
    Metric("compute_busy_ratio", Group.ACTIVITY, "ratio", MetricKind.GAUGE, Cost.FAST, (),
           "Share of the window in which the device ran at least one program's work."),
    Metric("memory_bandwidth_busy_ratio", Group.ACTIVITY, "ratio", MetricKind.GAUGE, Cost.FAST, (),
           "Share of the window in which device memory was read or written."),
    Metric("power_watts", Group.POWER, "watts", MetricKind.GAUGE, Cost.FAST, (),
           "Power that the package draws."),
    Metric("power_limit_watts", Group.POWER, "watts", MetricKind.GAUGE, Cost.FAST, (),
           "Power that the package is held to."),
    Metric("temperature_celsius", Group.TEMPERATURE, "celsius", MetricKind.GAUGE, Cost.FAST, ("sensor",),
           "Temperature at a sensor: core, hotspot, memory."),
)  # fmt: skip

CATALOGUE: dict[str, Metric] = {metric.name: metric for metric in _ROWS}

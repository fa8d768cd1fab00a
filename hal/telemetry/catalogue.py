"""The metric catalogue: every name that a reading may carry, as data.

Names are Prometheus-shaped in base units. The same name means the same thing whoever the vendor is;
what only one vendor has would keep a vendor namespace. A figure that is one of several words is a set of
states: one reading a word, 1 for the word that holds. ``hal metrics`` prints this table and docs/metrics.md
is made from it.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from hal.backend import Cost, Group
from hal.model import Scope

__all__ = ["CATALOGUE", "Metric", "MetricKind", "Section"]


class MetricKind(StrEnum):
    GAUGE = "gauge"
    COUNTER = "counter"  # since the driver was loaded; only grows
    STATE = "state"  # 1 or 0
    EVENT = "event"  # has no value: it happens


class Section(StrEnum):
    """What does not come with a sample, and so belongs to no group of it."""

    PROCESSES = "processes"  # of the figures of a process, `processes` gives one each
    EVENTS = "events"  # by the name of the model's EventKind
    HEALTH = "health"  # what is made of figures and events


class Metric(Struct, frozen=True):
    name: str
    group: Group | Section
    unit: str
    kind: MetricKind
    scope: Scope  # what it is about where the hardware can tell; a reading's own scope may be wider
    cost: Cost
    labels: tuple[str, ...]
    meaning: str


def _rows() -> list[Metric]:
    gauge, counter, state, event = MetricKind.GAUGE, MetricKind.COUNTER, MetricKind.STATE, MetricKind.EVENT
    static, fast, slow = Cost.STATIC, Cost.FAST, Cost.SLOW
    package, device, slice_ = Scope.PACKAGE, Scope.DEVICE, Scope.SLICE
    rows: list[Metric] = []

    def group(
        of: Group | Section, *table: tuple[str, str, MetricKind, Scope, Cost, tuple[str, ...], str]
    ) -> None:
        for name, unit, kind, scope, cost, labels, meaning in table:
            rows.append(Metric(name, of, unit, kind, scope, cost, labels, meaning))

    group(
        Group.MEMORY,
        ("memory_total_bytes", "bytes", gauge, slice_, fast, ("heap",),
         "Size of a heap, what the driver keeps for itself included: vram; gtt (memory of the host that the "
         "device can map); sysmem (memory of the host); bar1 (what of the device the host can map)."),
        ("memory_used_bytes", "bytes", gauge, slice_, fast, ("heap",),
         "Bytes of a heap in use by programs, as the vendor's library counts them."),
        ("memory_free_bytes", "bytes", gauge, slice_, fast, ("heap",),
         "Bytes of a heap that can still be allocated."),
        ("memory_reserved_bytes", "bytes", gauge, slice_, fast, ("heap",),
         "Bytes of a heap that the driver or firmware keeps."),
    )  # fmt: skip
    group(
        Group.ACTIVITY,
        ("compute_busy_ratio", "ratio", gauge, slice_, fast, (),
         "Share of the window in which at least one program's work ran."),
        ("memory_bandwidth_busy_ratio", "ratio", gauge, slice_, fast, (),
         "Share of the window in which device memory was read or written."),
        ("encoder_busy_ratio", "ratio", gauge, device, fast, (),
         "Share of the window in which the video encoder worked."),
        ("decoder_busy_ratio", "ratio", gauge, device, fast, (),
         "Share of the window in which the video decoder worked."),
        ("jpeg_busy_ratio", "ratio", gauge, device, fast, (),
         "Share of the window in which the JPEG engine worked."),
        ("media_busy_ratio", "ratio", gauge, device, fast, (),
         "Share of the window in which the video and JPEG engines worked, where they are not told apart "
         "(AMD's mm activity)."),
        ("optical_flow_busy_ratio", "ratio", gauge, device, fast, (),
         "Share of the window in which the optical flow engine worked."),
        ("engine_active_ratio", "ratio", gauge, slice_, slow, (),
         "Mean share of the compute units that had work."),
        ("engine_occupancy_ratio", "ratio", gauge, slice_, slow, (),
         "Mean share of the wave or warp slots in use on the compute units."),
        ("tensor_active_ratio", "ratio", gauge, slice_, slow, (),
         "Mean share of the cycles in which the matrix engines worked."),
        ("pipe_active_ratio", "ratio", gauge, slice_, slow, ("pipe",),
         "Mean share of the cycles in which a pipe of the compute units worked: fp64, fp32, fp16, integer."),
        ("memory_bandwidth_active_ratio", "ratio", gauge, slice_, slow, (),
         "Mean share of the greatest memory bandwidth that was used."),
    )  # fmt: skip
    group(
        Group.POWER,
        ("power_watts", "watts", gauge, package, fast, ("window",),
         "Power that the package draws: over the sensor's own window (average) or now (instant)."),
        ("power_rail_watts", "watts", gauge, package, slow, ("rail",),
         "Power that a part of the package draws, or what it is a part of: memory, module."),
        ("power_limit_watts", "watts", gauge, package, fast, (),
         "Power that the package is held to."),
        ("power_limit_min_watts", "watts", gauge, package, static, (),
         "The lowest limit that can be set."),
        ("power_limit_max_watts", "watts", gauge, package, static, (),
         "The highest limit that can be set."),
        ("power_limit_default_watts", "watts", gauge, package, static, (),
         "The limit after a reset."),
        ("energy_joules_total", "joules", counter, package, fast, (),
         "Energy that the package has used."),
    )  # fmt: skip
    group(
        Group.TEMPERATURE,
        ("temperature_celsius", "celsius", gauge, package, fast, ("sensor",),
         "Temperature at a sensor: core, hotspot, memory, hbm0 and so on, vr (voltage regulator), inlet, "
         "board."),
        ("temperature_limit_celsius", "celsius", gauge, package, static, ("limit",),
         "Where the package slows itself down, or shuts itself off: slowdown, shutdown, memory_max."),
        ("fan_ratio", "ratio", gauge, package, fast, ("fan",),
         "Fan speed as a share of its greatest."),
        ("fan_rpm", "rpm", gauge, package, fast, ("fan",),
         "Turns of a fan in a minute."),
    )  # fmt: skip
    group(
        Group.CLOCKS,
        ("clock_hertz", "hertz", gauge, device, fast, ("domain",),
         "Clock of a domain now: compute (or compute0 and so on, one for each die), memory, video, soc."),
        ("clock_max_hertz", "hertz", gauge, device, static, ("domain",),
         "The highest clock of a domain."),
    )  # fmt: skip
    group(
        Group.THROTTLE,
        ("throttle_active", "bool", state, package, fast, ("reason",),
         "1 while clocks are held down for this reason: power, thermal, hbm (the memory is hot), vr (the "
         "voltage regulator is), hardware_brake, sync (with other devices), reliability (of the voltage), "
         "board (its limit), idle, other."),
        ("throttle_seconds_total", "seconds", counter, package, slow, ("reason",),
         "Time for which clocks were held down for this reason; the reasons are those of throttle_active."),
    )  # fmt: skip
    group(
        Group.PCIE,
        ("pcie_generation", "count", gauge, device, fast, (), "PCIe generation of the link now."),
        ("pcie_generation_max", "count", gauge, device, static, (), "The highest that is possible here."),
        ("pcie_width", "count", gauge, device, fast, (), "PCIe lanes in use."),
        ("pcie_width_max", "count", gauge, device, static, (), "The most lanes possible here."),
        ("pcie_rx_bytes_per_second", "bytes_per_second", gauge, device, slow, (),
         "Bytes received over PCIe, over the driver's own window."),
        ("pcie_tx_bytes_per_second", "bytes_per_second", gauge, device, slow, (),
         "Bytes sent over PCIe, over the driver's own window."),
        ("pcie_rx_bytes_total", "bytes", counter, device, slow, (), "Bytes received over PCIe."),
        ("pcie_tx_bytes_total", "bytes", counter, device, slow, (), "Bytes sent over PCIe."),
        ("pcie_naks_total", "count", counter, device, slow, ("direction",),
         "PCIe packets that were refused as damaged, by where the refusals went: sent, received."),
        ("pcie_replays_total", "count", counter, device, slow, (),
         "PCIe packets that had to be sent again."),
    )  # fmt: skip
    group(
        Group.LINKS,
        ("link_up", "bool", state, device, fast, ("link",),
         "1 while a link to another device is up."),
        ("link_speed_bytes_per_second", "bytes_per_second", gauge, device, static, ("link",),
         "What a link can carry in one direction."),
        ("link_rx_bytes_total", "bytes", counter, device, slow, ("link",), "Bytes received over a link."),
        ("link_tx_bytes_total", "bytes", counter, device, slow, ("link",), "Bytes sent over a link."),
        ("link_errors_total", "count", counter, device, slow, ("link", "kind"),
         "Errors on a link: crc, replay, recovery."),
    )  # fmt: skip
    group(
        Group.ERRORS,
        ("ecc_errors_total", "count", counter, device, slow, ("severity", "lifetime", "block"),
         "Memory errors: corrected, uncorrected or deferred; since the driver was loaded (volatile) or ever "
         "(aggregate); by block of the device where it tells, else all."),
        ("pages_retired", "count", gauge, device, slow, ("cause",),
         "Memory pages taken out of use: single_bit, double_bit, all."),
        ("pages_retirement_pending", "bool", state, device, slow, (),
         "1 when pages wait for a reset."),
        ("rows_remapped", "count", gauge, device, slow, ("cause",),
         "Memory rows replaced by spare ones: corrected, uncorrected."),
        ("rows_remap_pending", "bool", state, device, slow, (), "1 when rows wait for a reset."),
        ("rows_remap_failed", "bool", state, device, slow, (), "1 when a row could not be replaced."),
    )  # fmt: skip
    group(
        Group.STATE,
        ("performance_state", "count", gauge, device, fast, (),
         "The vendor's performance level: 0 is the highest."),
        ("ecc_enabled", "bool", state, device, static, (), "1 when error correction of the memory is on."),
        ("persistence_enabled", "bool", state, device, static, (),
         "1 when the driver stays loaded without programs."),
        ("compute_mode", "bool", state, device, slow, ("mode",),
         "1 for what the device lets programs do: default (any number of them), exclusive_thread, "
         "exclusive_process, prohibited (none)."),
        ("partition_mode", "bool", state, device, slow, ("kind", "mode"),
         "1 for how the hardware is cut: kind is compute, memory or both, mode the vendor's word "
         "(off: not at all)."),
    )  # fmt: skip
    group(
        Section.PROCESSES,
        ("process_memory_bytes", "bytes", gauge, slice_, fast, ("pid", "heap"),
         "Bytes of a heap that a process holds."),
        ("process_compute_busy_ratio", "ratio", gauge, slice_, fast, ("pid",),
         "Share of the window in which a process kept the device's compute units at work."),
        ("process_memory_bandwidth_busy_ratio", "ratio", gauge, slice_, fast, ("pid",),
         "Share of the window in which a process read or wrote device memory."),
        ("process_encoder_busy_ratio", "ratio", gauge, slice_, fast, ("pid",),
         "Share of the window in which a process used the video encoder."),
        ("process_decoder_busy_ratio", "ratio", gauge, slice_, fast, ("pid",),
         "Share of the window in which a process used the video decoder."),
        ("process_engine_seconds_total", "seconds", counter, slice_, fast, ("pid", "engine"),
         "Time for which a process kept an engine at work: compute, copy, encoder, decoder."),
        ("process_start_seconds", "seconds", gauge, slice_, static, ("pid",),
         "When a process began, since 1970: with the pid, which process it is."),
    )  # fmt: skip
    group(
        Section.EVENTS,
        ("error", "none", event, slice_, fast, ("code_space", "code"),
         "The device reported a fault: code_space says whose numbers the code is one of, such as xid, kfd, "
         "afid, ras."),
        ("lost", "none", event, device, fast, (), "The device no longer answers."),
        ("reset", "none", event, device, fast, (), "The device was reset."),
        ("thermal", "none", event, package, fast, (), "The device is too hot, or no longer so."),
        ("partition_changed", "none", event, device, fast, (), "The device was cut in another way."),
        ("hotplug", "none", event, device, fast, (), "A device came or went."),
        ("paging", "none", event, slice_, fast, ("code_space", "code"),
         "Memory moved to or from the device, or it touched memory that was not there."),
    )  # fmt: skip
    group(
        Section.HEALTH,
        ("health_state", "bool", state, device, fast, ("state",),
         "1 for how well the device is by hal's policy: ok, predicted (to fail), degraded, failed, unknown."),
    )  # fmt: skip
    return rows


CATALOGUE: dict[str, Metric] = {metric.name: metric for metric in _rows()}

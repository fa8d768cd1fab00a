"""The table of figures: one row per AMD SMI call, one reading per figure.

Each row is read from a `Subject`. What the card as a whole says is `card_says`; a partition's own
processor is `own`, which for a whole card is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from hal.backend import Call, Cost, Figure, Group, Value
from hal.model import Scope, Status
from hal_amd import conv, faults, throttle
from hal_amd.ask import Answers

if TYPE_CHECKING:
    from hal_amd.device import Card, Shape

__all__ = ["Subject", "of_card", "of_partition"]

_METRICS = "amdsmi_get_gpu_metrics_info"
_CAP = "amdsmi_get_power_cap_info"
_PCIE = "amdsmi_get_pcie_info"
_Values = tuple[Value, ...]


class Subject(NamedTuple):
    card: Card
    card_says: Answers
    own: Answers
    part: int


def none(reason: str, count: int = 1) -> Callable[[Any, Subject], _Values]:
    """A row without a call: why there are no such figures on AMD."""
    values = (Value(None, Status.UNSUPPORTED, reason),) * count
    return lambda library, subject: values


# ---- memory ----------------------------------------------------------------------------------


def _memory(_: Any, subject: Subject) -> _Values:
    """Total, used, free, reserved in bytes; from the call in MiB where the ones in bytes do not answer."""
    ask = subject.own
    vram = ask.smi.AmdSmiMemoryType.VRAM
    total = conv.size(ask.maybe("amdsmi_get_gpu_memory_total", vram))
    used = conv.size(ask.maybe("amdsmi_get_gpu_memory_usage", vram))
    if Status.UNSUPPORTED in (total.status, used.status):  # this one says why
        usage = ask("amdsmi_get_gpu_vram_usage")
        total, used = conv.mebibytes(usage.get("vram_total")), conv.mebibytes(usage.get("vram_used"))
    reserved = Value(None, Status.UNSUPPORTED, "amdsmi has no such figure")
    return total, used, conv.remainder(total, used), reserved


def _other_heap(kind: str) -> Callable[[Any, Subject], _Values]:
    """GTT is the host's memory that the card can use; visible is the part of its own that the host sees."""

    def read(_: Any, subject: Subject) -> _Values:
        ask = subject.own
        which = getattr(ask.smi.AmdSmiMemoryType, kind)
        total = conv.size(ask("amdsmi_get_gpu_memory_total", which))
        return total, conv.size(ask("amdsmi_get_gpu_memory_usage", which))

    return read


def _heap(heap: str, *names: str) -> tuple[Figure, ...]:
    return tuple(Figure(f"memory_{name}_bytes", "bytes", {"heap": heap}) for name in names)


def _memory_rows(scope: Scope) -> tuple[Call, ...]:
    return (
        Call(Group.MEMORY, "amdsmi_get_gpu_memory_usage", scope,
             _heap("vram", "total", "used", "free", "reserved"), _memory),
        Call(Group.MEMORY, "amdsmi_get_gpu_memory_usage", scope, _heap("gtt", "total", "used"),
             _other_heap("GTT")),
        Call(Group.MEMORY, "amdsmi_get_gpu_memory_usage", scope, _heap("bar1", "total", "used"),
             _other_heap("VIS_VRAM")),
    )  # fmt: skip


# ---- activity --------------------------------------------------------------------------------


def _busy(_: Any, subject: Subject) -> _Values:
    """Ratios over the firmware's own window, whose length AMD SMI does not say."""
    activity = subject.card_says("amdsmi_get_gpu_activity")
    return tuple(conv.ratio(activity.get(f"{word}_activity")) for word in ("gfx", "umc", "mm"))


def _engines(_: Any, subject: Subject) -> _Values:
    """The decoders and the JPEG engines, each the mean of all."""
    metrics = subject.card_says(_METRICS)
    return conv.mean_ratio(metrics.get("vcn_activity")), conv.mean_ratio(metrics.get("jpeg_activity"))


def _partition_busy(_: Any, subject: Subject) -> _Values:
    metrics = subject.card_says(_METRICS)
    words = ("gfx_busy_inst", "vcn_busy", "jpeg_busy")
    return tuple(conv.mean_ratio(metrics[f"xcp_stats.{word}"][subject.part]) for word in words)


def _ratios(*names: str) -> tuple[Figure, ...]:
    return tuple(Figure(f"{name}_ratio", "ratio") for name in names)


# ---- power and temperature -------------------------------------------------------------------


def _power(_: Any, subject: Subject) -> _Values:
    """MI300 and later say what is drawn now, MI200 and Navi an average, and some versions only a sum."""
    power = subject.card_says("amdsmi_get_power_info")
    now, average = power.get("current_socket_power"), power.get("average_socket_power")
    only = "N/A" if conv.number(now) is not None else power.get("socket_power")
    return conv.first_watts(now), conv.first_watts(average, only)


def _limit(_: Any, subject: Subject) -> _Values:
    return (conv.microwatts(subject.card_says(_CAP).get("power_cap")),)


def _limits(_: Any, subject: Subject) -> _Values:
    """Lowest, highest, default. The range is read at once: where it has an end, 0 is its beginning."""
    cap = subject.card_says(_CAP)
    highest = conv.microwatts(cap.get("max_power_cap"))
    lowest = conv.microwatts(cap.get("min_power_cap"))
    if highest.value is not None and cap.get("min_power_cap") == 0:
        lowest = Value(0)
    return lowest, highest, conv.microwatts(cap.get("default_power_cap"))


def _energy(_: Any, subject: Subject) -> _Values:
    said = subject.card_says("amdsmi_get_energy_count")
    return (conv.joules(said.get("energy_accumulator"), said.get("counter_resolution")),)


def _temperature(sensor: str, metric: str = "CURRENT") -> Callable[[Any, Subject], _Values]:
    def read(_: Any, subject: Subject) -> _Values:
        ask = subject.card_says
        kind = getattr(ask.smi.AmdSmiTemperatureType, sensor)
        what = getattr(ask.smi.AmdSmiTemperatureMetric, metric)
        value = conv.celsius(ask("amdsmi_get_temp_metric", kind, what))
        if metric != "CURRENT" and value.value == 0:  # of a limit, nothing was set
            value = Value(None, Status.UNSUPPORTED, "amdsmi said 0")
        return (value,)

    return read


def _turns(_: Any, subject: Subject) -> _Values:
    return (conv.turns(subject.card_says("amdsmi_get_gpu_fan_rpms", 0)),)


def _fan(_: Any, subject: Subject) -> _Values:
    speed = conv.number(subject.card_says("amdsmi_get_gpu_fan_speed", 0))
    most = conv.number(subject.card_says("amdsmi_get_gpu_fan_speed_max", 0))
    if speed is None or not most:
        return (Value(None, Status.UNSUPPORTED, f"amdsmi said {speed} of {most}"),)
    return (conv.ratio(100 * speed / most),)


# ---- clocks and PCIe -------------------------------------------------------------------------


def _clock(domain: str, word: str) -> Callable[[Any, Subject], _Values]:
    def read(_: Any, subject: Subject) -> _Values:
        ask = subject.card_says
        clocks = ask("amdsmi_get_clock_info", getattr(ask.smi.AmdSmiClkType, domain))
        return (conv.megahertz(clocks.get(word)),)

    return read


def _dies(first: int, last: int) -> Callable[[Any, Subject], _Values]:
    def read(_: Any, subject: Subject) -> _Values:
        clocks = subject.card_says(_METRICS)["current_gfxclks"]
        return tuple(conv.megahertz(clocks[die]) for die in range(first, last))

    return read


def _pcie(section: str, speed: str, width: str) -> Callable[[Any, Subject], _Values]:
    def read(_: Any, subject: Subject) -> _Values:
        said = subject.card_says(_PCIE)[section]
        return conv.generation(said.get(speed)), conv.lanes(said.get(width))

    return read


def _replays(_: Any, subject: Subject) -> _Values:
    said = subject.card_says.maybe(_PCIE) or {}
    value = conv.counted((said.get("pcie_metric") or {}).get("pcie_replay_count"))
    if value.value is None:
        value = conv.counted(subject.card_says("amdsmi_get_gpu_pci_replay_counter"))
    return (value,)


def _naks(_: Any, subject: Subject) -> _Values:
    """Packets that one end or the other found damaged and asked for again."""
    said = subject.card_says(_PCIE)["pcie_metric"]
    sent, received = (conv.counted(said.get(f"pcie_nak_{way}_count")) for way in ("sent", "received"))
    if sent.value is None or received.value is None:
        return (sent if sent.value is None else received,)
    return (Value(sent.value + received.value),)


def _throughput(_: Any, subject: Subject) -> _Values:
    """Packets in the last second times the largest payload: not more than that went over the bus."""
    said = subject.card_says("amdsmi_get_gpu_pci_throughput")
    size = conv.number(said.get("max_pkt_sz"))
    values = []
    for word in ("received", "sent"):
        packets = conv.number(said.get(word))
        if packets is None or not size:
            values.append(Value(None, Status.UNSUPPORTED, f"amdsmi said {said.get(word)}"))
        else:
            values.append(Value(packets * size, Status.ESTIMATED, "packets times the largest payload"))
    return tuple(values)


# ---- how the card is divided ------------------------------------------------------------------

_MODES = {"compute": ("SPX", "DPX", "TPX", "QPX", "CPX"), "memory": ("NPS1", "NPS2", "NPS4", "NPS8")}


def _mode(kind: str) -> Callable[[Any, Subject], _Values]:
    def read(_: Any, subject: Subject) -> _Values:
        now = conv.text(subject.card_says(f"amdsmi_get_gpu_{kind}_partition"))
        if now not in _MODES[kind]:
            return (Value(None, Status.UNSUPPORTED, f"amdsmi said {now}"),) * len(_MODES[kind])
        return tuple(Value(int(mode == now)) for mode in _MODES[kind])

    return read


def _mode_row(kind: str) -> Call:
    labels = ({"kind": kind, "mode": mode} for mode in _MODES[kind])
    figures = tuple(Figure("partition_mode", "bool", each) for each in labels)
    source = f"amdsmi_get_gpu_{kind}_partition"
    return Call(Group.STATE, source, Scope.DEVICE, figures, _mode(kind), Cost.SLOW)


# ---- the rows --------------------------------------------------------------------------------

_CLOCKS = (("memory", "MEM"), ("soc", "SOC"), ("video", "VCLK0"))
_TEMPERATURES = (("core", "EDGE"), ("hotspot", "HOTSPOT"), ("memory", "VRAM"))
_LIMITS = (("slowdown", "HOTSPOT", "CRITICAL"), ("shutdown", "HOTSPOT", "EMERGENCY"),
           ("memory_max", "VRAM", "CRITICAL"))  # fmt: skip


def _hertz(domain: str, name: str = "clock_hertz") -> Figure:
    return Figure(name, "hertz", {"domain": domain})


def _clock_rows(shape: Shape) -> tuple[Call, ...]:
    source = "amdsmi_get_clock_info"
    rows = [
        Call(Group.CLOCKS, source, Scope.DEVICE, (_hertz(word),), _clock(domain, "clk"))
        for word, domain in (*_CLOCKS, *((("compute", "GFX"),) if shape.dies < 2 else ()))
    ]
    if shape.dies > 1:
        figures = tuple(_hertz(f"compute{die}") for die in range(shape.dies))
        rows.append(Call(Group.CLOCKS, _METRICS, Scope.DEVICE, figures, _dies(0, shape.dies)))
    rows += [
        Call(Group.CLOCKS, source, Scope.DEVICE, (_hertz(word, "clock_max_hertz"),),
             _clock(domain, "max_clk"), Cost.STATIC)
        for word, domain in (("compute", "GFX"), *_CLOCKS)
    ]  # fmt: skip
    return tuple(rows)


def _temperature_rows(shape: Shape) -> tuple[Call, ...]:
    source = "amdsmi_get_temp_metric"
    sensors = (*_TEMPERATURES, *((f"hbm{stack}", f"HBM_{stack}") for stack in shape.hbm))
    return (
        *(Call(Group.TEMPERATURE, source, Scope.PACKAGE,
               (Figure("temperature_celsius", "celsius", {"sensor": word}),), _temperature(sensor))
          for word, sensor in sensors),
        *(Call(Group.TEMPERATURE, source, Scope.PACKAGE,
               (Figure("temperature_limit_celsius", "celsius", {"limit": word}),),
               _temperature(sensor, metric), Cost.STATIC)
          for word, sensor, metric in _LIMITS),
        Call(Group.TEMPERATURE, "amdsmi_get_gpu_fan_speed", Scope.PACKAGE,
             (Figure("fan_ratio", "ratio", {"fan": "0"}),), _fan),
        Call(Group.TEMPERATURE, "amdsmi_get_gpu_fan_rpms", Scope.PACKAGE,
             (Figure("fan_rpm", "rpm", {"fan": "0"}),), _turns),
    )  # fmt: skip


def _watts(name: str, **labels: str) -> Figure:
    return Figure(f"power_{name}watts", "watts", labels)


_FIXED = (
    Call(Group.ACTIVITY, "amdsmi_get_gpu_activity", Scope.DEVICE,
         _ratios("compute_busy", "memory_bandwidth_busy", "media_busy"), _busy),
    Call(Group.ACTIVITY, _METRICS, Scope.DEVICE, _ratios("decoder_busy", "jpeg_busy"), _engines),
    Call(Group.ACTIVITY, _METRICS, Scope.DEVICE, _ratios("encoder_busy"),
         none("AMD SMI does not tell encoding from decoding")),
    Call(Group.ACTIVITY, "amdsmi", Scope.DEVICE,
         _ratios("engine_active", "engine_occupancy", "tensor_active"),
         none("AMD SMI does not profile", 3), Cost.SLOW),
    Call(Group.POWER, "amdsmi_get_power_info", Scope.PACKAGE,
         (_watts("", window="instant"), _watts("", window="average")), _power),
    Call(Group.POWER, _CAP, Scope.PACKAGE, (_watts("limit_"),), _limit),
    Call(Group.POWER, _CAP, Scope.PACKAGE,
         (_watts("limit_min_"), _watts("limit_max_"), _watts("limit_default_")), _limits, Cost.STATIC),
    Call(Group.POWER, "amdsmi_get_energy_count", Scope.PACKAGE,
         (Figure("energy_joules_total", "joules"),), _energy),
    Call(Group.PCIE, _PCIE, Scope.DEVICE,
         (Figure("pcie_generation", "count"), Figure("pcie_width", "count")),
         _pcie("pcie_metric", "pcie_speed", "pcie_width")),
    Call(Group.PCIE, _PCIE, Scope.DEVICE,
         (Figure("pcie_generation_max", "count"), Figure("pcie_width_max", "count")),
         _pcie("pcie_static", "max_pcie_speed", "max_pcie_width"), Cost.STATIC),
    Call(Group.PCIE, "amdsmi_get_gpu_pci_throughput", Scope.DEVICE,
         (Figure("pcie_rx_bytes_per_second", "bytes_per_second"),
          Figure("pcie_tx_bytes_per_second", "bytes_per_second")), _throughput, Cost.SLOW),
    Call(Group.PCIE, _PCIE, Scope.DEVICE, (Figure("pcie_replays_total", "count"),), _replays, Cost.SLOW),
    Call(Group.PCIE, _PCIE, Scope.DEVICE, (Figure("pcie_naks_total", "count"),), _naks, Cost.SLOW),
    Call(Group.STATE, "amdsmi_get_gpu_perf_level", Scope.DEVICE, (Figure("performance_state", "count"),),
         none("AMD's performance level is a policy, not a state")),
    Call(Group.STATE, "amdsmi", Scope.DEVICE, (Figure("persistence_enabled", "bool"),),
         none("AMD's driver always stays loaded"), Cost.STATIC),
    _mode_row("compute"),
    _mode_row("memory"),
)  # fmt: skip


@lru_cache(maxsize=64)
def of_card(shape: Shape) -> tuple[Call, ...]:
    return (
        *_memory_rows(Scope.DEVICE), *_FIXED, *_temperature_rows(shape), *_clock_rows(shape),
        *throttle.ROWS, *faults.link_rows(shape.links), *faults.error_rows(shape.blocks),
    )  # fmt: skip


@lru_cache(maxsize=256)
def of_partition(shape: Shape, part: int) -> tuple[Call, ...]:
    """What a partition has of its own. The first one's memory is the whole card's, so it is not."""
    dies = shape.dies // shape.partitions
    first = part * dies
    rows = [
        *_memory_rows(Scope.SLICE if part > 0 else Scope.PARENT),
        Call(Group.ACTIVITY, _METRICS, Scope.SLICE,
             _ratios("compute_busy", "decoder_busy", "jpeg_busy"), _partition_busy),
    ]  # fmt: skip
    if dies > 0 and shape.dies > 1:
        figures = tuple(_hertz(f"compute{die}") for die in range(first, first + dies))
        rows.append(Call(Group.CLOCKS, _METRICS, Scope.SLICE, figures, _dies(first, first + dies)))
    return tuple(rows)

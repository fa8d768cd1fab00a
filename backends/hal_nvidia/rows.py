"""The table: which call of NVML gives which figures of the catalogue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from hal.backend import Answer, Call, Cost, Figure, Group, Value
from hal.model import Scope, Status
from hal_nvidia import conv, direct, gpm
from hal_nvidia.fields import Field
from hal_nvidia.handles import Gpu, either

__all__ = ["CALLS", "FIELDS", "PARTITION_CALLS", "FieldRow"]


class FieldRow(NamedTuple):
    """Figures that come with nvmlDeviceGetFieldValues."""

    group: Group
    scope: Scope
    cost: Cost
    fields: tuple[Field, ...]


def vram(name: str) -> Figure:
    return Figure(f"memory_{name}_bytes", "bytes", {"heap": "vram"})


# ---- memory ------------------------------------------------------------------------------------------


_info_v2 = direct.structure(
    "nvmlDeviceGetMemoryInfo_v2", "c_nvmlMemory_v2_t", "nvmlMemory_v2",
    lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu.handle, nvml.nvmlMemory_v2),
)  # fmt: skip
_utilization = direct.structure(
    "nvmlDeviceGetUtilizationRates", "c_nvmlUtilization_t", "",
    lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu.handle),
)  # fmt: skip


def _memory_v2(nvml: Any, gpu: Gpu) -> tuple[Answer, ...]:
    size = conv.size
    info = _info_v2(nvml, gpu)
    total, used, free, reserved = info.total, info.used, info.free, info.reserved
    if used > total or free > total or reserved > total:
        return _more_than_all(total, used, free, reserved)
    return size(total), size(used), size(free), size(reserved)


def _memory_v1(nvml: Any, gpu: Gpu) -> tuple[Answer, ...]:
    info = nvml.nvmlDeviceGetMemoryInfo(gpu.handle)
    total, used, free = info.total, info.used, info.free
    if used > total or free > total:
        return _more_than_all(total, used, free, None)
    answer = conv.size(used)
    return (
        conv.size(total),
        answer
        if isinstance(answer, Value)
        else Value(answer, Status.OK, "v1: what the driver reserves is counted as used"),
        conv.size(free),
        Value(None, Status.UNSUPPORTED, "the driver has no nvmlDeviceGetMemoryInfo_v2"),
    )


def _more_than_all(total: int, *parts: int | None) -> tuple[Answer, ...]:
    """Sentinels where they are sentinels, and errors where a part is more than the whole."""
    answers: list[Answer] = [conv.size(total)]
    for part in parts:
        answer = conv.size(part)
        if not isinstance(answer, Value) and not isinstance(answers[0], Value) and answer > total:
            answer = Value(None, Status.ERROR, f"NVML said {part} of {total} bytes")
        answers.append(answer)
    return tuple(answers)


_MEMORY = (vram("total"), vram("used"), vram("free"), vram("reserved"))
_memory = either(_memory_v2, _memory_v1)


def _aperture(nvml: Any, gpu: Gpu) -> tuple[Answer, ...]:
    info = nvml.nvmlDeviceGetBAR1MemoryInfo(gpu.handle)
    if info.bar1Used > info.bar1Total or info.bar1Free > info.bar1Total:
        return _more_than_all(info.bar1Total, info.bar1Used, info.bar1Free)
    return conv.size(info.bar1Total), conv.size(info.bar1Used), conv.size(info.bar1Free)


def _bar1(scope: Scope) -> Call:
    figures = tuple(
        Figure(f"memory_{name}_bytes", "bytes", {"heap": "bar1"}) for name in ("total", "used", "free")
    )
    return Call(Group.MEMORY, "nvmlDeviceGetBAR1MemoryInfo", scope, figures, _aperture)


# ---- one call, one figure or two ---------------------------------------------------------------------


def _busy(nvml: Any, gpu: Gpu) -> tuple[Answer, ...]:
    """Ratios over NVML's own last window, whose length (1/6 s to 1 s) it does not say."""
    rates = _utilization(nvml, gpu)
    return conv.ratio(rates.gpu), conv.ratio(rates.memory)


def _busy_by_gpm(nvml: Any, gpu: Gpu) -> tuple[Answer, ...]:
    """A MIG device has no rates; of its GPU instance GPM has the first, and nothing has the second."""
    return gpm.answers_of(nvml, gpu)[gpm.BUSY], Value(None, Status.UNSUPPORTED, "NVML has it of a whole GPU")


def _engine(call: str) -> Callable[[Any, Gpu], tuple[Answer, ...]]:
    ask = direct.number(call, spare=True)
    return lambda nvml, gpu: (conv.ratio(ask(nvml, gpu)),)


def _one(
    call: str, convert: Callable[[object], Answer], *arguments: int
) -> Callable[[Any, Gpu], tuple[Answer, ...]]:
    ask = direct.number(call, *arguments)
    return lambda nvml, gpu: (convert(ask(nvml, gpu)),)


def _answer(call: str, convert: Callable[[object], Answer], *arguments: Any) -> Callable[[Any, Gpu], Answer]:
    return lambda nvml, gpu: convert(getattr(nvml, call)(gpu.handle, *arguments))


def _limits(nvml: Any, gpu: Gpu) -> tuple[Answer, ...]:
    low, high = nvml.nvmlDeviceGetPowerManagementLimitConstraints(gpu.handle)
    return conv.watts(low), conv.watts(high)


def _reasons(call: str) -> Callable[[Any, Gpu], tuple[Answer, ...]]:
    ask = direct.mask(call)
    return lambda nvml, gpu: conv.reasons(ask(nvml, gpu))


def _choice(
    group: Group, name: str, labels: dict[str, str], words: tuple[str, ...], call: str,
    number: Callable[[Any], Any] = lambda raw: raw,
) -> Call:  # fmt: skip
    figures = tuple(Figure(name, "bool", {**labels, "mode": word}) for word in words)
    read = lambda nvml, gpu: conv.choice(number(getattr(nvml, call)(gpu.handle)), len(words))  # noqa: E731
    return Call(group, call, Scope.DEVICE, figures, read, Cost.SLOW)


def _ecc(nvml: Any, gpu: Gpu) -> tuple[Answer, ...]:
    return (conv.flag(nvml.nvmlDeviceGetEccMode(gpu.handle)[0]),)


_core_temperature = direct.number("nvmlDeviceGetTemperature", 0)


def _core_temperature_v1(nvml: Any, gpu: Gpu) -> tuple[Answer, ...]:
    return (conv.celsius(_core_temperature(nvml, gpu)),)


def _core_temperature_v2(nvml: Any, gpu: Gpu) -> tuple[Answer, ...]:
    return (conv.celsius(nvml.nvmlDeviceGetTemperatureV(gpu.handle, 0)),)


def _clock(domain: str) -> Figure:
    return Figure("clock_hertz", "hertz", {"domain": domain})


def _threshold(limit: str, number: int) -> Call:
    figure = Figure("temperature_limit_celsius", "celsius", {"limit": limit})
    call = "nvmlDeviceGetTemperatureThreshold"
    return Call(
        Group.TEMPERATURE, call, Scope.PACKAGE, (figure,), _one(call, conv.celsius, number), Cost.STATIC
    )


def _single(
    group: Group,
    name: str,
    unit: str,
    call: str,
    convert: Callable[[object], Answer],
    *arguments: int,
    scope: Scope = Scope.DEVICE,
    cost: Cost = Cost.FAST,
    **labels: str,
) -> Call:
    return Call(group, call, scope, (Figure(name, unit, labels),), _one(call, convert, *arguments), cost)


_SM, _MEM, _VIDEO = 1, 2, 3  # NVML_CLOCK_...
_TX, _RX = 0, 1  # NVML_PCIE_UTIL_...
_PACKAGE, _DEVICE = Scope.PACKAGE, Scope.DEVICE
_STATIC, _FAST, _SLOW = Cost.STATIC, Cost.FAST, Cost.SLOW
_RATES = "nvmlDeviceGetUtilizationRates"
_CLOCK, _CLOCK_MAX = "nvmlDeviceGetClockInfo", "nvmlDeviceGetMaxClockInfo"

CALLS = (
    Call(Group.MEMORY, "nvmlDeviceGetMemoryInfo", _DEVICE, _MEMORY, _memory),
    _bar1(_DEVICE),
    Call(Group.ACTIVITY, _RATES, _DEVICE,
         (Figure("compute_busy_ratio", "ratio"), Figure("memory_bandwidth_busy_ratio", "ratio")), _busy),
    Call(Group.ACTIVITY, "nvmlDeviceGetEncoderUtilization", _DEVICE,
         (Figure("encoder_busy_ratio", "ratio"),), _engine("nvmlDeviceGetEncoderUtilization")),
    Call(Group.ACTIVITY, "nvmlDeviceGetDecoderUtilization", _DEVICE,
         (Figure("decoder_busy_ratio", "ratio"),), _engine("nvmlDeviceGetDecoderUtilization")),
    Call(Group.ACTIVITY, "nvmlDeviceGetJpgUtilization", _DEVICE,
         (Figure("jpeg_busy_ratio", "ratio"),), _engine("nvmlDeviceGetJpgUtilization")),
    Call(Group.ACTIVITY, "nvmlDeviceGetOfaUtilization", _DEVICE,
         (Figure("optical_flow_busy_ratio", "ratio"),), _engine("nvmlDeviceGetOfaUtilization")),
    *gpm.rows(_DEVICE),
    _single(Group.POWER, "power_limit_watts", "watts", "nvmlDeviceGetEnforcedPowerLimit", conv.watts,
            scope=_PACKAGE),
    Call(Group.POWER, "nvmlDeviceGetPowerManagementLimitConstraints", _PACKAGE,
         (Figure("power_limit_min_watts", "watts"), Figure("power_limit_max_watts", "watts")),
         _limits, _STATIC),
    _single(Group.POWER, "power_limit_default_watts", "watts", "nvmlDeviceGetPowerManagementDefaultLimit",
            conv.watts, scope=_PACKAGE, cost=_STATIC),
    Call(Group.TEMPERATURE, "nvmlDeviceGetTemperature", _PACKAGE,
         (Figure("temperature_celsius", "celsius", {"sensor": "core"}),),
         either(_core_temperature_v1, _core_temperature_v2)),
    _threshold("shutdown", 0),
    _threshold("slowdown", 1),
    _threshold("memory_max", 2),
    _single(Group.CLOCKS, "clock_hertz", "hertz", _CLOCK, conv.hertz, _SM, domain="compute"),
    _single(Group.CLOCKS, "clock_hertz", "hertz", _CLOCK, conv.hertz, _MEM, domain="memory"),
    _single(Group.CLOCKS, "clock_hertz", "hertz", _CLOCK, conv.hertz, _VIDEO, domain="video"),
    _single(Group.CLOCKS, "clock_max_hertz", "hertz", _CLOCK_MAX, conv.hertz, _SM, cost=_STATIC,
            domain="compute"),
    _single(Group.CLOCKS, "clock_max_hertz", "hertz", _CLOCK_MAX, conv.hertz, _MEM, cost=_STATIC,
            domain="memory"),
    _single(Group.CLOCKS, "clock_max_hertz", "hertz", _CLOCK_MAX, conv.hertz, _VIDEO, cost=_STATIC,
            domain="video"),
    Call(Group.THROTTLE, "nvmlDeviceGetCurrentClocksEventReasons", _PACKAGE,
         tuple(Figure("throttle_active", "bool", {"reason": reason}) for reason in conv.CLOCK_REASONS),
         either(_reasons("nvmlDeviceGetCurrentClocksEventReasons"),
                _reasons("nvmlDeviceGetCurrentClocksThrottleReasons"))),
    _single(Group.PCIE, "pcie_generation", "count", "nvmlDeviceGetCurrPcieLinkGeneration", conv.count),
    _single(Group.PCIE, "pcie_width", "count", "nvmlDeviceGetCurrPcieLinkWidth", conv.count),
    _single(Group.PCIE, "pcie_generation_max", "count", "nvmlDeviceGetMaxPcieLinkGeneration", conv.count,
            cost=_STATIC),
    _single(Group.PCIE, "pcie_width_max", "count", "nvmlDeviceGetMaxPcieLinkWidth", conv.count, cost=_STATIC),
    _single(Group.PCIE, "pcie_rx_bytes_per_second", "bytes_per_second", "nvmlDeviceGetPcieThroughput",
            conv.kilobytes, _RX, cost=_SLOW),
    _single(Group.PCIE, "pcie_tx_bytes_per_second", "bytes_per_second", "nvmlDeviceGetPcieThroughput",
            conv.kilobytes, _TX, cost=_SLOW),
    _single(Group.STATE, "performance_state", "count", "nvmlDeviceGetPerformanceState", conv.performance),
    Call(Group.STATE, "nvmlDeviceGetEccMode", _DEVICE, (Figure("ecc_enabled", "bool"),), _ecc, _STATIC),
    _single(Group.STATE, "persistence_enabled", "bool", "nvmlDeviceGetPersistenceMode", conv.flag,
            cost=_STATIC),
    _choice(Group.STATE, "compute_mode", {}, conv.COMPUTE_MODES, "nvmlDeviceGetComputeMode"),
    _choice(Group.STATE, "partition_mode", {"kind": "both"}, conv.PARTITION_MODES, "nvmlDeviceGetMigMode",
            lambda modes: modes[0]),
)  # fmt: skip

# NVML has these of a MIG device; the others belong to the whole GPU.
PARTITION_CALLS = (
    Call(Group.MEMORY, "nvmlDeviceGetMemoryInfo", Scope.SLICE, _MEMORY, _memory),
    _bar1(Scope.SLICE),
    Call(Group.ACTIVITY, "nvmlGpmMetricsGet", Scope.SLICE,
         (Figure("compute_busy_ratio", "ratio"), Figure("memory_bandwidth_busy_ratio", "ratio")),
         either(_busy, _busy_by_gpm)),
    *gpm.rows(Scope.SLICE),
)  # fmt: skip


# ---- fields ------------------------------------------------------------------------------------------


def _power(window: str) -> Callable[[Any, Gpu], Answer]:
    """nvmlDeviceGetPowerUsage is an average since GA10x; GA100 and those before it give what is now."""

    def ask(nvml: Any, gpu: Gpu) -> Answer:
        capability = tuple(nvml.nvmlDeviceGetCudaComputeCapability(gpu.handle))
        if (window == "instant") == (capability <= (8, 0)):
            return conv.watts(nvml.nvmlDeviceGetPowerUsage(gpu.handle))
        return Value(None, Status.UNSUPPORTED, f"the driver has no NVML_FI_DEV_POWER_{window.upper()}")

    return ask


def _throttled(reason: str, field: int, policy: int | None) -> Field:
    def violation(nvml: Any, gpu: Gpu) -> Answer:
        return conv.seconds(nvml.nvmlDeviceGetViolationStatus(gpu.handle, policy).violationTime)

    figure = Figure("throttle_seconds_total", "seconds", {"reason": reason})
    return Field(figure, field, conv.seconds, otherwise=None if policy is None else violation)


def _ecc_total(severity: str, error: int, lifetime: str, counter: int, field: int) -> Field:
    labels = {"severity": severity, "lifetime": lifetime, "block": "all"}
    return Field(
        Figure("ecc_errors_total", "count", labels), field, conv.count,
        otherwise=_answer("nvmlDeviceGetTotalEccErrors", conv.count, error, counter),
    )  # fmt: skip


ECC_TOTALS = FieldRow(Group.ERRORS, _DEVICE, _SLOW, (
    _ecc_total("corrected", 0, "volatile", 0, 3),
    _ecc_total("uncorrected", 1, "volatile", 0, 4),
    _ecc_total("corrected", 0, "aggregate", 1, 5),
    _ecc_total("uncorrected", 1, "aggregate", 1, 6),
))  # fmt: skip


def _retired(cause: str, number: int, field: int) -> Field:
    def pages(nvml: Any, gpu: Gpu) -> Answer:
        return len(nvml.nvmlDeviceGetRetiredPages(gpu.handle, number))

    return Field(Figure("pages_retired", "count", {"cause": cause}), field, conv.count, otherwise=pages)


def _remapped(figure: Figure, place: int, field: int, convert: Callable[[object], Answer]) -> Field:
    def rows(nvml: Any, gpu: Gpu) -> Answer:
        return convert(nvml.nvmlDeviceGetRemappedRows(gpu.handle)[place])

    return Field(figure, field, convert, otherwise=rows)


# Numbers are NVML_FI_DEV_...: a pynvml that is too old for their names still passes them on.
FIELDS = (
    FieldRow(Group.POWER, _PACKAGE, _FAST, (
        Field(Figure("power_watts", "watts", {"window": "average"}), 185, conv.watts,
              otherwise=_power("average")),
        Field(Figure("power_watts", "watts", {"window": "instant"}), 186, conv.watts,
              otherwise=_power("instant")),
        Field(Figure("energy_joules_total", "joules"), 83, conv.joules,
              otherwise=_answer("nvmlDeviceGetTotalEnergyConsumption", conv.joules)),
    )),
    FieldRow(Group.POWER, _PACKAGE, _SLOW, (  # the scope is NVML_POWER_SCOPE_...
        Field(Figure("power_rail_watts", "watts", {"rail": "module"}), 185, conv.rail, 1),
        Field(Figure("power_rail_watts", "watts", {"rail": "memory"}), 185, conv.rail, 2),
    )),
    FieldRow(Group.TEMPERATURE, _PACKAGE, _FAST, (
        Field(Figure("temperature_celsius", "celsius", {"sensor": "memory"}), 82, conv.celsius),
    )),
    FieldRow(Group.THROTTLE, _PACKAGE, _SLOW, (
        _throttled("power", 74, 0),
        _throttled("thermal", 75, 1),
        _throttled("sync", 76, 2),
        _throttled("hardware_brake", 271, None),
        _throttled("board", 77, 3),
        _throttled("idle", 78, 4),
        _throttled("reliability", 79, 5),
    )),
    FieldRow(Group.PCIE, _DEVICE, _SLOW, (
        Field(Figure("pcie_replays_total", "count"), 94, conv.count,
              otherwise=_answer("nvmlDeviceGetPcieReplayCounter", conv.count)),
        Field(Figure("pcie_tx_bytes_total", "bytes"), 197, conv.count),
        Field(Figure("pcie_rx_bytes_total", "bytes"), 198, conv.count),
        Field(Figure("pcie_naks_total", "count", {"direction": "received"}), 174, conv.count),
        Field(Figure("pcie_naks_total", "count", {"direction": "sent"}), 177, conv.count),
    )),
    FieldRow(Group.ERRORS, _DEVICE, _SLOW, (
        _retired("single_bit", 0, 29),
        _retired("double_bit", 1, 30),
        Field(Figure("pages_retirement_pending", "bool"), 31, conv.flag,
              otherwise=_answer("nvmlDeviceGetRetiredPagesPendingStatus", conv.flag)),
        _remapped(Figure("rows_remapped", "count", {"cause": "corrected"}), 0, 142, conv.count),
        _remapped(Figure("rows_remapped", "count", {"cause": "uncorrected"}), 1, 143, conv.count),
        _remapped(Figure("rows_remap_pending", "bool"), 2, 144, conv.flag),
        _remapped(Figure("rows_remap_failed", "bool"), 3, 145, conv.flag),
    )),
)  # fmt: skip

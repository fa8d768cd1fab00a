"""How it is doing: one row of the table per NVML call, one reading per figure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from hal.backend import GoneError, Group
from hal.model import Reading, Scope, Status
from hal_nvidia import conv, device, errors
from hal_nvidia.conv import Value

__all__ = ["sample"]


class _Figure(NamedTuple):
    name: str
    unit: str
    labels: dict[str, str]


class _Call(NamedTuple):
    group: Group
    source: str
    scope: Scope
    figures: tuple[_Figure, ...]
    read: Callable[[Any, Any], tuple[Value, ...]]  # (pynvml, handle) -> one value per figure


def sample(nvml: Any, groups: Sequence[Group], ids: Sequence[str], deadline: float) -> list[Reading]:
    """Readings of each device in turn. Raises GoneError for an id that NVML does not know."""
    calls = [call for call in _CALLS if call.group in groups]
    readings: list[Reading] = []
    for subject in ids:
        lost: Value | None = None
        gpu: Any = None
        try:
            gpu = device.handle(nvml, subject)
        except GoneError as gone:
            if gone.vendor_code != errors.GPU_IS_LOST:
                raise
            lost = Value(None, Status.ERROR, str(gone))  # its neighbours still have to be read
        for call in calls:
            values = (lost,) * len(call.figures) if lost else _read(nvml, call, gpu, deadline)
            readings.extend(_readings(subject, call, values))
    return readings


def _read(nvml: Any, call: _Call, gpu: Any, deadline: float) -> tuple[Value, ...]:
    if time.monotonic() >= deadline:
        nothing = Value(None, Status.STALE, "not reached before the deadline")
    else:
        try:
            return call.read(nvml, gpu)
        except (nvml.NVMLError, AttributeError) as failure:
            nothing = Value(None, errors.status(failure), str(failure))
    return (nothing,) * len(call.figures)


def _readings(subject: str, call: _Call, values: Sequence[Value]) -> Iterator[Reading]:
    now = time.time()
    for figure, (value, status, detail) in zip(call.figures, values, strict=True):
        yield Reading(
            subject=subject,
            name=figure.name,
            value=value,
            unit=figure.unit,
            status=status,
            scope=call.scope,
            labels=figure.labels,
            time=now,
            source=call.source,
            detail=detail,
        )


def _memory(nvml: Any, gpu: Any) -> tuple[Value, ...]:
    """Total, used, free, reserved in bytes: v2 where driver and pynvml have it, else v1."""
    version = getattr(nvml, "nvmlMemory_v2", None)
    if version is not None:
        try:
            info = nvml.nvmlDeviceGetMemoryInfo(gpu, version)
            return tuple(conv.count(raw) for raw in (info.total, info.used, info.free, info.reserved))
        except nvml.NVMLError as failure:
            if errors.code_of(failure) not in (errors.FUNCTION_NOT_FOUND, errors.ARGUMENT_VERSION_MISMATCH):
                raise
    info = nvml.nvmlDeviceGetMemoryInfo(gpu)
    return (
        conv.count(info.total),
        conv.count(info.used, "v1: what the driver reserves is counted as used"),
        conv.count(info.free),
        Value(None, Status.UNSUPPORTED, "the driver has no nvmlDeviceGetMemoryInfo_v2"),
    )


def _busy(nvml: Any, gpu: Any) -> tuple[Value, ...]:
    """Ratios over NVML's own last window, whose length (1/6 s to 1 s) it does not say."""
    rates = nvml.nvmlDeviceGetUtilizationRates(gpu)
    return conv.ratio(rates.gpu), conv.ratio(rates.memory)


def _power(nvml: Any, gpu: Any) -> tuple[Value, ...]:
    return (conv.watts(nvml.nvmlDeviceGetPowerUsage(gpu)),)


def _power_limit(nvml: Any, gpu: Any) -> tuple[Value, ...]:
    return (conv.watts(nvml.nvmlDeviceGetEnforcedPowerLimit(gpu)),)


def _temperature(nvml: Any, gpu: Any) -> tuple[Value, ...]:
    return (conv.celsius(nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)),)


def _memory_temperature(nvml: Any, gpu: Any) -> tuple[Value, ...]:
    field = nvml.nvmlDeviceGetFieldValues(gpu, [nvml.NVML_FI_DEV_MEMORY_TEMP])[0]
    if field.nvmlReturn != nvml.NVML_SUCCESS:
        raise nvml.NVMLError(field.nvmlReturn)
    return (conv.celsius(field.value.uiVal),)


def _vram(name: str) -> _Figure:
    return _Figure(f"memory_{name}_bytes", "bytes", {"heap": "vram"})


def _sensor(name: str) -> _Figure:
    return _Figure("temperature_celsius", "celsius", {"sensor": name})


_CALLS = (
    _Call(Group.MEMORY, "nvmlDeviceGetMemoryInfo", Scope.DEVICE,
          (_vram("total"), _vram("used"), _vram("free"), _vram("reserved")), _memory),
    _Call(Group.ACTIVITY, "nvmlDeviceGetUtilizationRates", Scope.DEVICE,
          (_Figure("compute_busy_ratio", "ratio", {}), _Figure("memory_bandwidth_busy_ratio", "ratio", {})),
          _busy),
    _Call(Group.POWER, "nvmlDeviceGetPowerUsage", Scope.PACKAGE,
          (_Figure("power_watts", "watts", {}),), _power),
    _Call(Group.POWER, "nvmlDeviceGetEnforcedPowerLimit", Scope.PACKAGE,
          (_Figure("power_limit_watts", "watts", {}),), _power_limit),
    _Call(Group.TEMPERATURE, "nvmlDeviceGetTemperature", Scope.PACKAGE, (_sensor("core"),), _temperature),
    _Call(Group.TEMPERATURE, "nvmlDeviceGetFieldValues", Scope.PACKAGE, (_sensor("memory"),),
          _memory_temperature),
)  # fmt: skip

"""How it is doing: one row of the table per NVML call, one reading per figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hal.backend import Call, Figure, GoneError, Group, Value, read_table
from hal.model import Reading, Scope, Status
from hal_nvidia import conv, device, errors

__all__ = ["sample"]


def sample(nvml: Any, groups: Sequence[Group], ids: Sequence[str], deadline: float) -> list[Reading]:
    """Readings of each device in turn. Raises GoneError for an id that NVML does not know."""
    calls = [call for call in _CALLS if call.group in groups]
    readings: list[Reading] = []
    for subject in ids:
        try:
            gpu = device.handle(nvml, subject)
        except GoneError as gone:
            if gone.vendor_code != errors.GPU_IS_LOST:
                raise
            gpu = gone  # its neighbours still have to be read
        readings.extend(read_table(calls, nvml, gpu, subject, deadline, _failed))
    return readings


def _failed(failure: Exception) -> Value:
    return Value(None, errors.status(failure), str(failure))


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


def _vram(name: str) -> Figure:
    return Figure(f"memory_{name}_bytes", "bytes", {"heap": "vram"})


def _sensor(name: str) -> Figure:
    return Figure("temperature_celsius", "celsius", {"sensor": name})


_CALLS = (
    Call(Group.MEMORY, "nvmlDeviceGetMemoryInfo", Scope.DEVICE,
          (_vram("total"), _vram("used"), _vram("free"), _vram("reserved")), _memory),
    Call(Group.ACTIVITY, "nvmlDeviceGetUtilizationRates", Scope.DEVICE,
          (Figure("compute_busy_ratio", "ratio"), Figure("memory_bandwidth_busy_ratio", "ratio")),
          _busy),
    Call(Group.POWER, "nvmlDeviceGetPowerUsage", Scope.PACKAGE,
          (Figure("power_watts", "watts"),), _power),
    Call(Group.POWER, "nvmlDeviceGetEnforcedPowerLimit", Scope.PACKAGE,
          (Figure("power_limit_watts", "watts"),), _power_limit),
    Call(Group.TEMPERATURE, "nvmlDeviceGetTemperature", Scope.PACKAGE, (_sensor("core"),), _temperature),
    Call(Group.TEMPERATURE, "nvmlDeviceGetFieldValues", Scope.PACKAGE, (_sensor("memory"),),
          _memory_temperature),
)  # fmt: skip

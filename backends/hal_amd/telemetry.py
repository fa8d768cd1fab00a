"""How it is doing: one row of the table per AMD SMI call, one reading per figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hal.backend import Call, Figure, Group, Value, read_table
from hal.model import Reading, Scope, Status
from hal_amd import conv, errors
from hal_amd.device import ask, handles

__all__ = ["sample"]


def sample(smi: Any, groups: Sequence[Group], ids: Sequence[str], deadline: float) -> list[Reading]:
    """Readings of each device in turn. Raises GoneError for an id that AMD SMI does not know."""
    here = handles(smi)
    calls = [call for call in _CALLS if call.group in groups]
    gpus = [(subject, here[subject]) for subject in ids]
    return [
        reading
        for subject, gpu in gpus
        for reading in read_table(calls, smi, gpu, subject, deadline, _failed)
    ]


def _failed(failure: Exception) -> Value:
    return Value(None, *errors.status(failure))


def _memory(smi: Any, gpu: Any) -> tuple[Value, ...]:
    """Total, used, free, reserved in bytes; from the call in MiB where the ones in bytes do not answer."""
    vram = smi.AmdSmiMemoryType.VRAM
    total = conv.count(ask(smi, "amdsmi_get_gpu_memory_total", gpu, vram))
    used = conv.count(ask(smi, "amdsmi_get_gpu_memory_usage", gpu, vram))
    if total.value is None or used.value is None:  # this one says why
        usage = smi.amdsmi_get_gpu_vram_usage(gpu)
        total, used = conv.mebibytes(usage.get("vram_total")), conv.mebibytes(usage.get("vram_used"))
    free = Value(None, Status.UNSUPPORTED, "amdsmi has no such figure")
    reserved = free
    if total.value is not None and used.value is not None:
        free = Value(total.value - used.value, Status.ESTIMATED, "total - used")
    return total, used, free, reserved


def _busy(smi: Any, gpu: Any) -> tuple[Value, ...]:
    """Ratios over the firmware's own window, whose length AMD SMI does not say."""
    activity = smi.amdsmi_get_gpu_activity(gpu)
    return conv.ratio(activity.get("gfx_activity")), conv.ratio(activity.get("umc_activity"))


def _power(smi: Any, gpu: Any) -> tuple[Value, ...]:
    words = ("current_socket_power", "average_socket_power", "socket_power")  # MI300, MI200, a sum of both
    power = smi.amdsmi_get_power_info(gpu)
    return (conv.first_watts(*(power.get(word) for word in words)),)


def _power_limit(smi: Any, gpu: Any) -> tuple[Value, ...]:
    return (conv.microwatts(smi.amdsmi_get_power_cap_info(gpu).get("power_cap")),)


def _temperature(sensor: str) -> Callable[[Any, Any], tuple[Value, ...]]:
    def read(smi: Any, gpu: Any) -> tuple[Value, ...]:
        kind = getattr(smi.AmdSmiTemperatureType, sensor)
        return (conv.celsius(smi.amdsmi_get_temp_metric(gpu, kind, smi.AmdSmiTemperatureMetric.CURRENT)),)

    return read


def _vram(name: str) -> Figure:
    return Figure(f"memory_{name}_bytes", "bytes", {"heap": "vram"})


def _sensor(name: str) -> Figure:
    return Figure("temperature_celsius", "celsius", {"sensor": name})


_CALLS = (
    Call(Group.MEMORY, "amdsmi_get_gpu_memory_usage", Scope.DEVICE,
          (_vram("total"), _vram("used"), _vram("free"), _vram("reserved")), _memory),
    Call(Group.ACTIVITY, "amdsmi_get_gpu_activity", Scope.DEVICE,
          (Figure("compute_busy_ratio", "ratio"), Figure("memory_bandwidth_busy_ratio", "ratio")),
          _busy),
    Call(Group.POWER, "amdsmi_get_power_info", Scope.PACKAGE,
          (Figure("power_watts", "watts"),), _power),
    Call(Group.POWER, "amdsmi_get_power_cap_info", Scope.PACKAGE,
          (Figure("power_limit_watts", "watts"),), _power_limit),
    Call(Group.TEMPERATURE, "amdsmi_get_temp_metric", Scope.PACKAGE, (_sensor("core"),),
          _temperature("EDGE")),
    Call(Group.TEMPERATURE, "amdsmi_get_temp_metric", Scope.PACKAGE, (_sensor("hotspot"),),
          _temperature("HOTSPOT")),
    Call(Group.TEMPERATURE, "amdsmi_get_temp_metric", Scope.PACKAGE, (_sensor("memory"),),
          _temperature("VRAM")),
)  # fmt: skip

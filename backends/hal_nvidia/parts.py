"""Rows that depend on what a device has: its fans, its NVLinks, the blocks that count memory errors."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from hal.backend import Answer, Call, Cost, Figure, Group, Value
from hal.model import Scope, Status
from hal_nvidia import conv, errors
from hal_nvidia.fields import Field
from hal_nvidia.handles import Gpu
from hal_nvidia.rows import ECC_TOTALS, FieldRow

__all__ = ["ecc_rows", "fan_rows", "link_count", "link_rows"]

_MOST_LINKS = 36  # NVML_NVLINK_MAX_LINKS
_LINK_COUNT = 91  # NVML_FI_DEV_NVLINK_LINK_COUNT
_BLOCKS = ("l1", "l2", "dram", "register_file", "texture", "texture_shm", "cbu", "sram")  # by location
_SEVERITIES, _LIFETIMES = ("corrected", "uncorrected"), ("volatile", "aggregate")


def _raise(gpu: Gpu, failure: Exception) -> Callable[[Any, Gpu], tuple[Answer, ...]]:
    """What it has could not be told now: say why, and ask again the next time."""
    gpu.doubtful = True

    def read(nvml: Any, _: Gpu) -> tuple[Answer, ...]:
        raise failure

    return read


def fan_rows(nvml: Any, gpu: Gpu) -> list[Call]:
    """One row a fan; a device without one says so in one figure."""
    call, scope = "nvmlDeviceGetFanSpeed", Scope.PACKAGE

    def figure(fan: int) -> tuple[Figure]:
        return (Figure("fan_ratio", "ratio", {"fan": str(fan)}),)

    def turns(fan: int) -> Callable[[Any, Gpu], tuple[Answer, ...]]:
        return lambda nvml, gpu: (conv.count(turns_of(nvml, gpu, fan)),)

    def speed(fan: int) -> Callable[[Any, Gpu], tuple[Answer, ...]]:
        return lambda nvml, gpu: (conv.fan(nvml.nvmlDeviceGetFanSpeed_v2(gpu.handle, fan)),)

    try:
        count = nvml.nvmlDeviceGetNumFans(gpu.handle)
    except Exception as failure:  # a pynvml without the call, or NVML's own error
        if not errors.is_unsupported(failure):
            return [Call(Group.TEMPERATURE, call, scope, figure(0), _raise(gpu, failure))]
        return [
            Call(Group.TEMPERATURE, call, scope, figure(0),
                 lambda nvml, gpu: (conv.fan(nvml.nvmlDeviceGetFanSpeed(gpu.handle)),))
        ]  # fmt: skip
    if not 0 < count < 64:
        none = (Value(None, Status.UNSUPPORTED, "NVML counts no fan"),)
        return [Call(Group.TEMPERATURE, "nvmlDeviceGetNumFans", scope, figure(0), lambda nvml, gpu: none)]
    fans = range(count)
    return [
        *(Call(Group.TEMPERATURE, call, scope, figure(fan), speed(fan)) for fan in fans),
        *(Call(Group.TEMPERATURE, "nvmlDeviceGetFanSpeedRPM", scope,
               (Figure("fan_rpm", "rpm", {"fan": str(fan)}),), turns(fan)) for fan in fans),
    ]  # fmt: skip


def turns_of(nvml: Any, gpu: Gpu, fan: int) -> int:
    """Past pynvml, whose function asks for the first fan only."""
    info = nvml.c_nvmlFanSpeedInfo_t(version=nvml.nvmlFanSpeedInfo_v1, fan=fan)
    status = nvml.nvmlLib.nvmlDeviceGetFanSpeedRPM(gpu.handle, ctypes.byref(info))
    if status != 0:
        raise nvml.NVMLError(status)
    return int(info.speed)


def link_count(nvml: Any, gpu: Gpu) -> int:
    """How many NVLinks it has, up or not: 0 without any. Raises NVML's error when it cannot be told."""
    known = gpu.known.get("links")
    if known is not None:
        return int(known)
    count = 0
    try:
        (field,) = nvml.nvmlDeviceGetFieldValues(gpu.handle, [_LINK_COUNT])
        if field.nvmlReturn == 0:
            count = min(int(field.value.uiVal), _MOST_LINKS)
        elif not errors.is_unsupported(failure := nvml.NVMLError(field.nvmlReturn)):
            raise failure
        else:
            count = _count_one_by_one(nvml, gpu)
    except AttributeError:  # a pynvml without the call
        count = 0
    except nvml.NVMLError as failure:
        if not errors.is_unsupported(failure):
            raise
        count = _count_one_by_one(nvml, gpu)
    gpu.known["links"] = count
    return count


def _count_one_by_one(nvml: Any, gpu: Gpu) -> int:
    for link in range(_MOST_LINKS):
        try:
            nvml.nvmlDeviceGetNvLinkState(gpu.handle, link)
        except AttributeError:
            return 0
        except nvml.NVMLError as failure:
            past_the_last = link > 0 and errors.code_of(failure) == errors.INVALID_ARGUMENT
            if past_the_last or errors.is_unsupported(failure):
                return link
            raise
    return _MOST_LINKS


def _link(name: str, unit: str, link: int, **labels: str) -> Figure:
    return Figure(name, unit, {"link": str(link), **labels})


def _state(link: int) -> Callable[[Any, Gpu], Answer]:
    return lambda nvml, gpu: conv.link_up(nvml.nvmlDeviceGetNvLinkState(gpu.handle, link))


def _errors(link: int, counter: int) -> Callable[[Any, Gpu], Answer]:
    return lambda nvml, gpu: conv.count(nvml.nvmlDeviceGetNvLinkErrorCounter(gpu.handle, link, counter))


def _common_speed(nvml: Any, gpu: Gpu) -> Answer:
    (field,) = nvml.nvmlDeviceGetFieldValues(gpu.handle, [90])  # NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON
    if field.nvmlReturn != 0:
        raise nvml.NVMLError(field.nvmlReturn)
    return conv.megabytes(field.value.uiVal)


def link_rows(nvml: Any, gpu: Gpu) -> list[Call | FieldRow]:
    """A device without NVLink says so in one figure. Field numbers are NVML_FI_DEV_NVLINK_..."""
    figure = Figure("link_up", "bool", {"link": "all"})
    try:
        links = range(link_count(nvml, gpu))
    except nvml.NVMLError as failure:
        return [Call(Group.LINKS, "nvmlDeviceGetFieldValues", Scope.DEVICE, (figure,), _raise(gpu, failure))]
    if not links:
        none = (Value(None, Status.UNSUPPORTED, "NVML counts no NVLink"),)
        return [
            Call(Group.LINKS, "nvmlDeviceGetNvLinkState", Scope.DEVICE, (figure,), lambda nvml, gpu: none)
        ]
    up = [Field(_link("link_up", "bool", n), 165, conv.link_up, n, _state(n)) for n in links]
    speed = [
        Field(_link("link_speed_bytes_per_second", "bytes_per_second", n), 164, conv.megabytes, n,
              _common_speed)
        for n in links
    ]  # fmt: skip
    slow: list[Field] = []
    for n in links:
        slow += [
            Field(_link("link_rx_bytes_total", "bytes", n), 139, conv.bytes_of_kibibytes, n),
            Field(_link("link_tx_bytes_total", "bytes", n), 138, conv.bytes_of_kibibytes, n),
            Field(_link("link_errors_total", "count", n, kind="crc"), 163, conv.count, n, _errors(n, 2)),
            Field(_link("link_errors_total", "count", n, kind="replay"), 161, conv.count, n, _errors(n, 0)),
            Field(_link("link_errors_total", "count", n, kind="recovery"), 162, conv.count, n, _errors(n, 1)),
        ]
    return [
        FieldRow(Group.LINKS, Scope.DEVICE, cost, tuple(fields))
        for cost, fields in ((Cost.FAST, up), (Cost.STATIC, speed), (Cost.SLOW, slow))
    ]


def ecc_rows(nvml: Any, gpu: Gpu) -> list[Call | FieldRow]:
    """By block where the device tells them apart, else all together."""
    rows: list[Call | FieldRow] = []
    for location, block in enumerate(_BLOCKS):
        for severity, lifetime in ((s, t) for s in (0, 1) for t in (0, 1)):
            try:
                nvml.nvmlDeviceGetMemoryErrorCounter(gpu.handle, severity, lifetime, location)
            except Exception as failure:  # a pynvml without the call, or NVML's own error
                if errors.is_unsupported(failure) or errors.code_of(failure) == errors.INVALID_ARGUMENT:
                    continue
                gpu.doubtful = True  # it may tell more the next time
                return rows or [ECC_TOTALS]
            rows.append(_ecc_row(severity, lifetime, location, block))
    return rows or [ECC_TOTALS]


def _ecc_row(severity: int, lifetime: int, location: int, block: str) -> Call:
    call = "nvmlDeviceGetMemoryErrorCounter"
    labels = {"severity": _SEVERITIES[severity], "lifetime": _LIFETIMES[lifetime], "block": block}

    def read(nvml: Any, gpu: Gpu) -> tuple[Answer, ...]:
        raw = nvml.nvmlDeviceGetMemoryErrorCounter(gpu.handle, severity, lifetime, location)
        return (conv.count(raw),)

    figure = Figure("ecc_errors_total", "count", labels)
    return Call(Group.ERRORS, call, Scope.DEVICE, (figure,), read, Cost.SLOW)

"""A GPU in the words of hal's machine descriptions: what a stand-in NVML has to be told to answer like it.

What NVML does not say is left out. The fields are those of a device in native/include/hal_machine.h.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hal.model import Portrait
from hal_nvidia import conv, device, parts
from hal_nvidia.handles import Gpu
from hal_nvidia.parts import turns_of

__all__ = ["portrait"]

# Field: how NVML is asked for it. Sensors and counters, too: what is not told is "not supported" later.
_CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "model": lambda n, h: conv.text(n.nvmlDeviceGetName(h)),
    "uuid": lambda n, h: conv.text(n.nvmlDeviceGetUUID(h)),
    "serial": lambda n, h: conv.text(n.nvmlDeviceGetSerial(h)),
    "cores": lambda n, h: n.nvmlDeviceGetNumGpuCores(h),
    "power_milliwatts": lambda n, h: n.nvmlDeviceGetPowerUsage(h),
    "nvidia_power_instant_milliwatts": lambda n, h: _field(n, h, 186),
    "power_limit_milliwatts": lambda n, h: n.nvmlDeviceGetEnforcedPowerLimit(h),
    "nvidia_power_default_milliwatts": lambda n, h: n.nvmlDeviceGetPowerManagementDefaultLimit(h),
    "power_min_milliwatts": lambda n, h: n.nvmlDeviceGetPowerManagementLimitConstraints(h)[0],
    "power_max_milliwatts": lambda n, h: n.nvmlDeviceGetPowerManagementLimitConstraints(h)[1],
    "temperature_celsius": lambda n, h: n.nvmlDeviceGetTemperature(h, 0),
    "memory_temperature_celsius": lambda n, h: _field(n, h, 82),
    "temperature_shutdown_celsius": lambda n, h: n.nvmlDeviceGetTemperatureThreshold(h, 0),
    "temperature_slowdown_celsius": lambda n, h: n.nvmlDeviceGetTemperatureThreshold(h, 1),
    "nvidia_temperature_memory_max_celsius": lambda n, h: n.nvmlDeviceGetTemperatureThreshold(h, 2),
    "nvidia_temperature_gpu_max_celsius": lambda n, h: n.nvmlDeviceGetTemperatureThreshold(h, 3),
    "compute_busy_percent": lambda n, h: n.nvmlDeviceGetUtilizationRates(h).gpu,
    "memory_busy_percent": lambda n, h: n.nvmlDeviceGetUtilizationRates(h).memory,
    "nvidia_encoder_percent": lambda n, h: n.nvmlDeviceGetEncoderUtilization(h)[0],
    "nvidia_decoder_percent": lambda n, h: n.nvmlDeviceGetDecoderUtilization(h)[0],
    "nvidia_jpeg_percent": lambda n, h: n.nvmlDeviceGetJpgUtilization(h)[0],
    "nvidia_ofa_percent": lambda n, h: n.nvmlDeviceGetOfaUtilization(h)[0],
    "nvidia_bar1_bytes": lambda n, h: n.nvmlDeviceGetBAR1MemoryInfo(h).bar1Total,
    "nvidia_bar1_used_bytes": lambda n, h: n.nvmlDeviceGetBAR1MemoryInfo(h).bar1Used,
    "nvidia_module_power_milliwatts": lambda n, h: _rail(n, h, 1),
    "nvidia_memory_power_milliwatts": lambda n, h: _rail(n, h, 2),
    "nvidia_fan_rpm": lambda n, h: turns_of(n, Gpu(h, False), 0),
    "nvidia_fan_percent": lambda n, h: n.nvmlDeviceGetFanSpeed(h),
    "nvidia_graphics_megahertz": lambda n, h: n.nvmlDeviceGetClockInfo(h, 0),
    "nvidia_sm_megahertz": lambda n, h: n.nvmlDeviceGetClockInfo(h, 1),
    "nvidia_memory_megahertz": lambda n, h: n.nvmlDeviceGetClockInfo(h, 2),
    "nvidia_video_megahertz": lambda n, h: n.nvmlDeviceGetClockInfo(h, 3),
    "nvidia_graphics_max_megahertz": lambda n, h: n.nvmlDeviceGetMaxClockInfo(h, 0),
    "nvidia_sm_max_megahertz": lambda n, h: n.nvmlDeviceGetMaxClockInfo(h, 1),
    "nvidia_memory_max_megahertz": lambda n, h: n.nvmlDeviceGetMaxClockInfo(h, 2),
    "nvidia_video_max_megahertz": lambda n, h: n.nvmlDeviceGetMaxClockInfo(h, 3),
    "nvidia_clock_reasons": lambda n, h: n.nvmlDeviceGetCurrentClocksEventReasons(h),
    "nvidia_throttled_power_ns": lambda n, h: _field(n, h, 74),
    "nvidia_throttled_thermal_ns": lambda n, h: _field(n, h, 75),
    "nvidia_throttled_board_ns": lambda n, h: _field(n, h, 77),
    "nvidia_throttled_idle_ns": lambda n, h: _field(n, h, 78),
    "nvidia_throttled_reliability_ns": lambda n, h: _field(n, h, 79),
    "nvidia_throttled_sync_ns": lambda n, h: _field(n, h, 76),
    "nvidia_throttled_hardware_thermal_ns": lambda n, h: _field(n, h, 270),
    "nvidia_throttled_brake_ns": lambda n, h: _field(n, h, 271),
    "nvidia_pcie_generation": lambda n, h: n.nvmlDeviceGetCurrPcieLinkGeneration(h),
    "nvidia_pcie_generation_max": lambda n, h: n.nvmlDeviceGetMaxPcieLinkGeneration(h),
    "nvidia_pcie_width": lambda n, h: n.nvmlDeviceGetCurrPcieLinkWidth(h),
    "nvidia_pcie_width_max": lambda n, h: n.nvmlDeviceGetMaxPcieLinkWidth(h),
    "nvidia_pcie_replays": lambda n, h: n.nvmlDeviceGetPcieReplayCounter(h),
    "nvidia_pcie_naks_received": lambda n, h: _field(n, h, 174),
    "nvidia_pcie_naks_sent": lambda n, h: _field(n, h, 177),
    "nvidia_pcie_tx_bytes": lambda n, h: _field(n, h, 197),
    "nvidia_pcie_rx_bytes": lambda n, h: _field(n, h, 198),
    "nvidia_pcie_tx_kilobytes_per_second": lambda n, h: n.nvmlDeviceGetPcieThroughput(h, 0),
    "nvidia_pcie_rx_kilobytes_per_second": lambda n, h: n.nvmlDeviceGetPcieThroughput(h, 1),
    "nvidia_ecc": lambda n, h: n.nvmlDeviceGetEccMode(h)[0],
    "nvidia_dram_corrected": lambda n, h: n.nvmlDeviceGetMemoryErrorCounter(h, 0, 0, 2),
    "nvidia_dram_uncorrected": lambda n, h: n.nvmlDeviceGetMemoryErrorCounter(h, 1, 0, 2),
    "nvidia_dram_corrected_ever": lambda n, h: n.nvmlDeviceGetMemoryErrorCounter(h, 0, 1, 2),
    "nvidia_dram_uncorrected_ever": lambda n, h: n.nvmlDeviceGetMemoryErrorCounter(h, 1, 1, 2),
    "nvidia_sram_corrected": lambda n, h: n.nvmlDeviceGetMemoryErrorCounter(h, 0, 0, 7),
    "nvidia_sram_uncorrected": lambda n, h: n.nvmlDeviceGetMemoryErrorCounter(h, 1, 0, 7),
    "nvidia_sram_corrected_ever": lambda n, h: n.nvmlDeviceGetMemoryErrorCounter(h, 0, 1, 7),
    "nvidia_sram_uncorrected_ever": lambda n, h: n.nvmlDeviceGetMemoryErrorCounter(h, 1, 1, 7),
    "nvidia_pages_single_bit": lambda n, h: _field(n, h, 29),
    "nvidia_pages_double_bit": lambda n, h: _field(n, h, 30),
    "nvidia_pages_pending": lambda n, h: _field(n, h, 31),
    "nvidia_rows_corrected": lambda n, h: n.nvmlDeviceGetRemappedRows(h)[0],
    "nvidia_rows_uncorrected": lambda n, h: n.nvmlDeviceGetRemappedRows(h)[1],
    "nvidia_rows_pending": lambda n, h: n.nvmlDeviceGetRemappedRows(h)[2],
    "nvidia_rows_failed": lambda n, h: n.nvmlDeviceGetRemappedRows(h)[3],
    "nvidia_performance_state": lambda n, h: n.nvmlDeviceGetPerformanceState(h),
    "nvidia_persistence": lambda n, h: n.nvmlDeviceGetPersistenceMode(h),
    "nvidia_compute_mode": lambda n, h: n.nvmlDeviceGetComputeMode(h),
    "nvidia_mig": lambda n, h: n.nvmlDeviceGetMigMode(h)[0],
    "nvidia_mig_pending": lambda n, h: n.nvmlDeviceGetMigMode(h)[1],
}
# GPU instance profiles by NVML's id; the stand-in's rows of them are 0 (1g) to 6 (7g).
_SHAPES = {19: 0, 20: 1, 15: 2, 14: 3, 9: 4, 5: 5, 0: 6}


def portrait(nvml: Any, root: Path) -> Portrait:
    """Every GPU that answers, by its id, and the driver. Raises HalError when NVML fails as a whole."""
    drivers = {
        "nvidia_driver": conv.text(_call(nvml, "nvmlSystemGetDriverVersion")),
        "nvml_version": conv.text(_call(nvml, "nvmlSystemGetNVMLVersion")),
        "cuda_version": _call(nvml, "nvmlSystemGetCudaDriverVersion_v2"),
    }
    devices = {}
    for known in device.enumerate_devices(nvml, root).devices:
        handle = _call(nvml, "nvmlDeviceGetHandleByUUID", known.uuid)
        if handle is not None:
            devices[known.id] = _device(nvml, handle, known)
    return Portrait({key: value for key, value in drivers.items() if value is not None}, devices)


def _device(nvml: Any, handle: Any, known: Any) -> dict[str, Any]:
    figures = {field: _ask(nvml, call, handle) for field, call in _CALLS.items()}
    pci = _call(nvml, "nvmlDeviceGetPciInfo", handle)
    if pci is not None:
        vendor, part = conv.pci_ids(pci)
        subsystem = pci.pciSubSystemId
        figures |= {"pci_vendor_id": vendor, "pci_device_id": part}
        figures |= {"pci_subsystem_vendor_id": subsystem & 0xFFFF, "pci_subsystem_id": subsystem >> 16}
    memory = _call(nvml, "nvmlDeviceGetMemoryInfo", handle, nvml.nvmlMemory_v2)
    if memory is not None:
        figures["memory_reserved_bytes"] = memory.reserved
    if known.architecture is not None:
        figures["arch_major"], figures["arch_minor"] = (int(part) for part in known.architecture.split("."))
    figures |= _links(nvml, handle)
    if figures["nvidia_mig"]:
        figures["nvidia_partition"] = _partitions(nvml, handle)
    figures |= {
        "vendor": "nvidia",
        "memory_bytes": known.memory_bytes,
        "compute_units": known.compute_units,
        "numa_node": known.numa_node,
    }
    return {field: value for field, value in figures.items() if value is not None}


def _links(nvml: Any, handle: Any) -> dict[str, Any]:
    """NVLinks that end at NVSwitches. A stand-in knows no others, and is told of none."""
    try:
        count = parts.link_count(nvml, Gpu(handle, False))
    except nvml.NVMLError:
        return {}
    switches, down = set(), 0
    for link in range(count):
        remote = _call(nvml, "nvmlDeviceGetNvLinkRemotePciInfo", handle, link)
        if _call(nvml, "nvmlDeviceGetNvLinkState", handle, link) != 1:
            down |= 1 << link
        elif remote is not None:
            if _call(nvml, "nvmlDeviceGetNvLinkRemoteDeviceType", handle, link) != 2:
                return {}
            switches.add(remote.bus)
    if not switches:
        return {}
    figures = {
        "nvidia_link_version": _call(nvml, "nvmlDeviceGetNvLinkVersion", handle, 0),
        "nvidia_link_megabytes_per_second": _field(nvml, handle, 90),
        "nvidia_link_crc_errors": _field(nvml, handle, (163, 0)),
        "nvidia_link_replay_errors": _field(nvml, handle, (161, 0)),
        "nvidia_link_recovery_errors": _field(nvml, handle, (162, 0)),
        "nvidia_link_tx_kibibytes": _field(nvml, handle, (138, 0)),
        "nvidia_link_rx_kibibytes": _field(nvml, handle, (139, 0)),
    }
    return figures | {
        "nvidia_links": count,
        "nvidia_links_down": down,
        "nvidia_switches": len(switches),
        "nvidia_switch_bus": min(switches),
    }


def _partitions(nvml: Any, handle: Any) -> list[dict[str, Any]]:
    """The GPU instances with compute instances. One that this user may not look at is left out."""
    found: dict[int, dict[str, Any]] = {}
    for index in range(_call(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
        try:
            mig = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
            number = nvml.nvmlDeviceGetGpuInstanceId(mig)
            gpu = nvml.nvmlDeviceGetGpuInstanceById(handle, number)
            part = nvml.nvmlGpuInstanceGetInfo(gpu)
            one = nvml.nvmlGpuInstanceGetComputeInstanceById(gpu, nvml.nvmlDeviceGetComputeInstanceId(mig))
            compute = nvml.nvmlComputeInstanceGetInfo(one)
        except (AttributeError, nvml.NVMLError):
            continue
        if part.profileId not in _SHAPES:
            continue
        own = found.setdefault(number, {
            "profile": _SHAPES[part.profileId], "start": part.placement.start, "size": part.placement.size,
            "compute": [],
        })  # fmt: skip
        own["compute"].append({
            "profile": compute.profileId, "start": compute.placement.start, "slices": compute.placement.size,
        })  # fmt: skip
    return [found[number] for number in sorted(found)]


def _field(nvml: Any, handle: Any, field: int | tuple[int, int]) -> int | None:
    """One of nvmlDeviceGetFieldValues: a small unsigned number in every type that these have."""
    values = _call(nvml, "nvmlDeviceGetFieldValues", handle, [field])
    if values is None or values[0].nvmlReturn != 0:
        return None
    wide = values[0].valueType in (2, 3)  # unsigned long, unsigned long long
    return int(values[0].value.ullVal if wide else values[0].value.uiVal)


def _rail(nvml: Any, handle: Any, scope: int) -> int | None:
    """Power of the module or the memory; NVML says 0 where there is no such sensor."""
    return _field(nvml, handle, (185, scope)) or None


def _call(nvml: Any, name: str, *arguments: Any) -> Any:
    return _ask(nvml, lambda n, _: getattr(n, name)(*arguments))


def _ask(nvml: Any, call: Callable[[Any, Any], Any], handle: Any = None) -> Any:
    """An answer; None where this GPU, driver or pynvml has none."""
    try:
        return call(nvml, handle)
    except (AttributeError, nvml.NVMLError):
        return None

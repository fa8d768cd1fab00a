"""A card in the words of hal's machine descriptions: what a stand-in AMD SMI has to be told to be like it.

What AMD SMI does not say is left out. The fields are those of a device in native/include/hal_machine.h.
"""

from __future__ import annotations

import re
from typing import Any

from hal.backend import Value
from hal.model import Device, Portrait
from hal_amd import conv, device, links
from hal_amd.ask import ask
from hal_amd.device import Card, Cards

__all__ = ["portrait"]

_CLOCKS = {"GFX": "compute", "MEM": "memory", "SOC": "soc", "VCLK0": "video"}
_TEMPERATURES = {
    ("HOTSPOT", "CURRENT"): "temperature_celsius",
    ("HOTSPOT", "CRITICAL"): "temperature_slowdown_celsius",
    ("HOTSPOT", "EMERGENCY"): "temperature_shutdown_celsius",
    ("VRAM", "CURRENT"): "memory_temperature_celsius",
    ("VRAM", "CRITICAL"): "amd_memory_slowdown_celsius",
    ("VRAM", "EMERGENCY"): "amd_memory_shutdown_celsius",
    ("EDGE", "CURRENT"): "amd_edge_temperature_celsius",
    ("HBM_0", "CURRENT"): "amd_hbm_temperature_celsius",
}
_RESERVED, _PENDING = 0, 1  # AmdSmiMemoryPageStatus


def portrait(cards: Cards) -> Portrait:
    """Every card, by its id, and the driver. Raises HalError when AMD SMI fails as a whole."""
    smi = cards.smi
    known = {one.id: one for one in device.enumerate_devices(cards).devices}
    hives: dict[object, int] = {}
    devices = {id: _device(smi, card, known[id], hives) for id, card in cards.all().items()}
    for id, card in cards.all().items():
        hive = [other for key, other in cards.all().items() if _joins(devices[id], devices[key])]
        words = "".join(links.width(smi, card, other) for other in hive)
        if words.replace("-", "1", 1).strip("1"):  # else one link to each but itself, which needs no word
            devices[id]["amd_xgmi"] = words
        one = next(filter(None, (links.one_link(smi, card, other) for other in hive)), None)
        rate = devices[id].get("amd_xgmi_gigabits")
        if one is not None and rate:
            devices[id]["amd_xgmi_lanes"] = one * 8 // 1000 // rate
    version = ask(smi, "amdsmi_get_lib_version") or {}
    drivers: dict[str, Any] = {
        "amd_driver": next((one.driver for one in known.values() if one.driver), None),
        "amdsmi_major": conv.number(version.get("year", version.get("major"))),
        "amdsmi_minor": conv.number(version.get("minor")),
        "amdsmi_release": conv.number(version.get("release")),
    }
    return Portrait({key: value for key, value in drivers.items() if value is not None}, devices)


def _device(smi: Any, card: Card, known: Device, hives: dict[object, int]) -> dict[str, Any]:
    first = card.first
    asic = ask(smi, "amdsmi_get_gpu_asic_info", first) or {}
    heaps = {heap.name: heap.total_bytes for heap in known.heaps}
    figures = {
        "vendor": "amd",
        "model": known.model,
        "uuid": known.uuid,
        "serial": known.serial,
        "pci_vendor_id": conv.hexadecimal(asic.get("vendor_id")),
        "pci_device_id": conv.hexadecimal(asic.get("device_id")),
        "pci_subsystem_vendor_id": conv.hexadecimal(asic.get("subvendor_id")),
        "pci_subsystem_id": conv.hexadecimal(asic.get("subsystem_id")),
        "numa_node": known.numa_node,
        "memory_bytes": heaps.get("vram"),
        "amd_gtt_bytes": heaps.get("gtt"),
        "compute_units": known.compute_units,
        "amd_compute_partition": known.attributes.get("amd.compute_partition"),
        "amd_memory_partition": known.attributes.get("amd.memory_partition"),
        "amd_dies": card.shape.dies or None,
        "amd_hive": _hive(smi, first, hives),
        **_architecture(known.architecture),
        **_power(smi, first),
        **_clocks(smi, first),
        **_activity(smi, first),
        **_pcie(smi, first),
        **_errors(smi, first),
    }
    for (sensor, metric), field in _TEMPERATURES.items():
        kind = getattr(smi.AmdSmiTemperatureType, sensor, None)
        what = getattr(smi.AmdSmiTemperatureMetric, metric)
        figures[field] = (
            None if kind is None else _known(ask(smi, "amdsmi_get_temp_metric", first, kind, what))
        )
    return {field: value for field, value in figures.items() if value is not None}


def _joins(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return "amd_hive" in a and a["amd_hive"] == b.get("amd_hive")


def _known(raw: object) -> int | None:
    value = conv.number(raw)
    return None if value is None else int(value)


def _hive(smi: Any, first: Any, hives: dict[object, int]) -> int | None:
    """Which of this machine's hives, counted from 1: their own ids are larger than the field."""
    hive = (ask(smi, "amdsmi_get_xgmi_info", first) or {}).get("xgmi_hive_id")
    return hives.setdefault(hive, len(hives) + 1) if hive else None


def _architecture(name: str | None) -> dict[str, int]:
    """gfx942 is 9, 4, 2; gfx90a 9, 0, 10; gfx1100 11, 0, 0."""
    match = re.fullmatch(r"gfx(\d+)([0-9a-f])([0-9a-f])", name or "")
    if match is None:
        return {}
    return {"arch_major": int(match[1]), "arch_minor": int(match[2], 16), "arch_stepping": int(match[3], 16)}


def _power(smi: Any, first: Any) -> dict[str, int | None]:
    said = ask(smi, "amdsmi_get_power_info", first) or {}
    cap = ask(smi, "amdsmi_get_power_cap_info", first) or {}
    words = ("current_socket_power", "average_socket_power", "socket_power")
    watts = conv.first_watts(*(said.get(word) for word in words)).value

    def milliwatts(word: str) -> int | None:
        microwatts = _known(cap.get(word))
        return None if microwatts is None else microwatts // 1000

    return {
        "power_milliwatts": None if watts is None else int(watts * 1000),
        "power_limit_milliwatts": milliwatts("power_cap"),
        "power_min_milliwatts": milliwatts("min_power_cap"),
        "power_max_milliwatts": milliwatts("max_power_cap"),
        "amd_power_default_milliwatts": milliwatts("default_power_cap"),
    }


def _clocks(smi: Any, first: Any) -> dict[str, int | None]:
    figures = {}
    for domain, name in _CLOCKS.items():
        said = ask(smi, "amdsmi_get_clock_info", first, getattr(smi.AmdSmiClkType, domain, None)) or {}
        figures[f"amd_{name}_megahertz"] = _known(said.get("clk"))
        figures[f"amd_{name}_max_megahertz"] = _known(said.get("max_clk"))
    return figures


def _activity(smi: Any, first: Any) -> dict[str, int | None]:
    busy = ask(smi, "amdsmi_get_gpu_activity", first) or {}
    metrics = ask(smi, "amdsmi_get_gpu_metrics_info", first) or {}
    held = ask(smi, "amdsmi_get_violation_status", first) or {}
    figures = {
        "compute_busy_percent": _known(busy.get("gfx_activity")),
        "memory_busy_percent": _known(busy.get("umc_activity")),
        "amd_throttled_percent": _known(held.get("per_ppt_pwr")),
    }
    for word, name in (("vcn_activity", "video"), ("jpeg_activity", "jpeg")):
        engines = metrics.get(word)
        known = [e for e in map(_known, engines) if e is not None] if isinstance(engines, list) else []
        if known:
            figures |= {
                f"amd_{name}_engines": len(known),
                f"amd_{name}_busy_percent": sum(known) // len(known),
            }
    return figures


def _pcie(smi: Any, first: Any) -> dict[str, int | None]:
    said = ask(smi, "amdsmi_get_pcie_info", first) or {}
    most, now = said.get("pcie_static") or {}, said.get("pcie_metric") or {}
    joined = (ask(smi, "amdsmi_get_link_metrics", first) or {}).get("links") or [{}]
    rate = _known(joined[0].get("bit_rate"))

    def generation(speed: object) -> int | None:
        answer = conv.generation(speed)
        value = answer.value if isinstance(answer, Value) else answer
        return None if value is None else int(value)

    return {
        "amd_pcie_generation": generation(now.get("pcie_speed")),
        "amd_pcie_width": _known(now.get("pcie_width")),
        "amd_pcie_max_generation": generation(most.get("max_pcie_speed")),
        "amd_pcie_max_width": _known(most.get("max_pcie_width")),
        "amd_pcie_replays": _known(now.get("pcie_replay_count")),
        "amd_xgmi_gigabits": rate or None,
    }


def _errors(smi: Any, first: Any) -> dict[str, int | None]:
    count = ask(smi, "amdsmi_get_gpu_total_ecc_count", first) or {}
    pages = ask(smi, "amdsmi_get_gpu_bad_page_info", first)
    states = [conv.number(page.get("status")) for page in pages] if isinstance(pages, list) else None
    return {
        "amd_bad_pages": None if states is None else states.count(_RESERVED),
        "amd_bad_pages_pending": None if states is None else states.count(_PENDING),
        "amd_ecc_blocks": _known(ask(smi, "amdsmi_get_gpu_ecc_enabled", first)),
        "amd_ecc_corrected": _known(count.get("correctable_count")),
        "amd_ecc_uncorrected": _known(count.get("uncorrectable_count")),
        "amd_ecc_deferred": _known(count.get("deferred_count")),
    }

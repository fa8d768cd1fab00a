"""What is here: AMD SMI's processors as the model's devices, and ids back to its handles."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from typing import Any

from hal.backend import GoneError, StateError
from hal.model import Device, DeviceKind, Heap, Inventory, Pci, whole
from hal_amd import conv, errors

__all__ = ["ask", "enumerate_devices", "handles"]

_log = logging.getLogger(__name__)
_PREFIX = "amd:pci-"


def enumerate_devices(smi: Any) -> Inventory:
    """Every card, once, however it is partitioned. Raises HalError when AMD SMI fails, or has cards and
    none of them has an address."""
    devices = [_device(smi, index, gpu, bdf) for index, gpu, bdf in _cards(smi)]
    return Inventory(tuple(devices), tuple(map(whole, devices)))


def handles(smi: Any) -> dict[str, Any]:
    """AMD SMI's handles by id. Asked for each time: a change of partition makes the old ones invalid."""
    return _Handles((_PREFIX + bdf, gpu) for _, gpu, bdf in _cards(smi))


class _Handles(dict[str, Any]):
    def __missing__(self, subject: str) -> Any:
        raise GoneError(f"{subject}: no such AMD device")


def ask(smi: Any, call: str, *arguments: Any) -> Any:
    """One answer, or None when this card, driver or amdsmi has none."""
    try:
        return getattr(smi, call)(*arguments)
    except Exception as failure:  # amdsmi raises KeyError and ValueError on odd answers, too
        _log.debug("%s: %s", call, failure)
        return None


def _cards(smi: Any) -> Iterator[tuple[int, Any, str]]:
    """(AMD SMI's index, handle, physical bdf) of each card."""
    try:
        processors = smi.amdsmi_get_processor_handles()
    except Exception as failure:
        raise errors.error(failure, "amdsmi_get_processor_handles") from failure
    seen: set[str] = set()
    for index, gpu in enumerate(processors):
        raw = ask(smi, "amdsmi_get_gpu_device_bdf", gpu)
        bdf = conv.bdf(raw)
        if bdf is None:
            _left_out(index, str(raw))
            continue
        kfd = ask(smi, "amdsmi_get_gpu_kfd_info", gpu) or {}
        if conv.number(kfd.get("current_partition_id")) or bdf in seen:
            continue  # a later partition of a card that is listed
        seen.add(bdf)
        yield index, gpu, bdf
    if processors and not seen:
        raise StateError("AMD SMI gives no PCI address for any GPU; in a container, add --device /dev/dri")


@cache
def _left_out(index: int, raw: str) -> None:
    """Says it once: the cards are looked up for every sample."""
    _log.warning("left out AMD SMI device %d: %r is no PCI address (is /dev/dri there?)", index, raw)


def _device(smi: Any, index: int, gpu: Any, bdf: str) -> Device:
    asic = ask(smi, "amdsmi_get_gpu_asic_info", gpu) or {}
    driver = ask(smi, "amdsmi_get_gpu_driver_info", gpu) or {}
    units = conv.number(asic.get("num_compute_units"))
    node = conv.number(ask(smi, "amdsmi_topo_get_numa_node_number", gpu))
    serial = conv.unique_id(asic.get("asic_serial"))
    total = conv.number(ask(smi, "amdsmi_get_gpu_memory_total", gpu, smi.AmdSmiMemoryType.VRAM))
    return Device(
        id=_PREFIX + bdf,
        vendor="amd",
        kind=DeviceKind.GPU,
        model=conv.text(asic.get("market_name")) or "AMD GPU",
        heaps=(Heap("vram", None if total is None else int(total)),),
        pci=Pci(bdf, conv.hexadecimal(asic.get("vendor_id")), conv.hexadecimal(asic.get("device_id"))),
        uuid=conv.text(ask(smi, "amdsmi_get_gpu_device_uuid", gpu)),
        serial=serial,
        architecture=conv.gfx(asic.get("target_graphics_version")),
        compute_units=int(units) if units else None,
        numa_node=None if node is None else int(node),
        driver=conv.text(driver.get("driver_version")),
        indices={"amdsmi": index} | _indices(smi, gpu),
    )


def _indices(smi: Any, gpu: Any) -> dict[str, int]:
    """How HIP and the kernel number the card, as far as this amdsmi says."""
    info = ask(smi, "amdsmi_get_gpu_enumeration_info", gpu) or {}
    kfd = ask(smi, "amdsmi_get_gpu_kfd_info", gpu) or {}
    words = {"hip": info.get("hip_id"), "hsa": info.get("hsa_id"), "kfd": kfd.get("node_id"),
             "drm_card": info.get("drm_card"), "drm_render": info.get("drm_render")}  # fmt: skip
    numbers = {word: conv.number(raw) for word, raw in words.items()}
    return {word: int(number) for word, number in numbers.items() if number is not None}

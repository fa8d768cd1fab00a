"""NVML's words, sentinels and units in the model's. Nothing of NVML's passes this file."""

from __future__ import annotations

from typing import Any

from hal.backend import Value
from hal.model import Status

__all__ = ["bdf", "celsius", "count", "multiprocessors", "pci_ids", "ratio", "text", "watts"]

_NOT_AVAILABLE = {0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF}  # NVML_VALUE_NOT_AVAILABLE_uint, _ulonglong
# CUDA cores in a multiprocessor by compute capability: NVML counts the cores only.
_CORES = {(7, 0): 64, (7, 2): 64, (7, 5): 64, (8, 0): 64, (8, 6): 128, (8, 7): 128, (8, 9): 128, (9, 0): 128,
          (10, 0): 128, (10, 3): 128, (11, 0): 128, (12, 0): 128, (12, 1): 128}  # fmt: skip


def count(raw: object, detail: str = "") -> Value:
    """A whole number, such as bytes; NVML's NOT_AVAILABLE is unsupported."""
    if not isinstance(raw, int) or raw in _NOT_AVAILABLE:
        return Value(None, Status.UNSUPPORTED, "NVML_VALUE_NOT_AVAILABLE")
    return Value(raw, Status.OK, detail)


def watts(milliwatts: object) -> Value:
    raw = count(milliwatts)
    return raw if raw.value is None else Value(raw.value / 1000)


def ratio(percent: object) -> Value:
    raw = count(percent)
    if raw.value is None:
        return raw
    if not 0 <= raw.value <= 100:
        return Value(None, Status.ERROR, f"NVML said {raw.value} %")
    return Value(raw.value / 100)


def celsius(degrees: object) -> Value:
    raw = count(degrees)
    if raw.value is None:
        return raw
    if not -100 < raw.value < 300:
        return Value(None, Status.ERROR, f"NVML said {raw.value} degrees")
    return Value(raw.value)


def text(raw: object) -> str | None:
    """A string; older wrappers give bytes. Empty, "N/A" and the like are None."""
    if isinstance(raw, bytes):
        raw = raw.decode(errors="replace")
    if not isinstance(raw, str) or raw.strip() in ("", "N/A", "[N/A]", "Unknown"):
        return None
    return raw.strip()


def bdf(pci: Any) -> str:
    """The address in an nvmlPciInfo_t: NVML writes eight digits of domain and capitals, Linux neither."""
    function = (text(pci.busId) or "").rpartition(".")[2] or "0"
    return f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.{function}"


def pci_ids(pci: Any) -> tuple[int, int]:
    """(vendor id, device id); NVML packs the device id above the vendor id."""
    return pci.pciDeviceId & 0xFFFF, pci.pciDeviceId >> 16


def multiprocessors(cores: object, capability: object) -> int | None:
    """Multiprocessors (SM) from CUDA cores; None for a capability that is not in the table."""
    per_unit = _CORES.get(capability) if isinstance(capability, tuple) else None
    total = count(cores).value
    return None if per_unit is None or not total else int(total) // per_unit

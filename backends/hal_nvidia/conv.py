"""NVML's words, sentinels and units in the model's. Nothing of NVML's passes this file.

A figure that is there is a plain number; one that is not is a Value that says why.
"""

from __future__ import annotations

from typing import Any

from hal.backend import Answer, Value
from hal.model import Status

__all__ = [
    "CLOCK_REASONS",
    "COMPUTE_MODES",
    "PARTITION_MODES",
    "bdf",
    "bytes_of_kibibytes",
    "celsius",
    "choice",
    "count",
    "fan",
    "flag",
    "fraction",
    "hertz",
    "joules",
    "kilobytes",
    "link_up",
    "megabytes",
    "multiprocessors",
    "pci_ids",
    "performance",
    "rail",
    "ratio",
    "reasons",
    "seconds",
    "size",
    "text",
    "watts",
]

_UNAVAILABLE = {0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF}  # NVML_VALUE_NOT_AVAILABLE_uint, _ulonglong
_NOT_AVAILABLE = Value(None, Status.UNSUPPORTED, "NVML_VALUE_NOT_AVAILABLE")
_NO_LEVEL = 32  # NVML_PSTATE_UNKNOWN
# More than any device has: bytes of memory, milliwatts, megahertz.
_MOST_BYTES, _MOST_MILLIWATTS, _MOST_MEGAHERTZ = 1 << 50, 100_000_000, 100_000
_MOST = 1 << 62
# NVML_COMPUTEMODE_... and nvmlDeviceGetMigMode's in the catalogue's words, by number.
COMPUTE_MODES = ("default", "exclusive_thread", "prohibited", "exclusive_process")
PARTITION_MODES = ("off", "mig")
_LINK_STATES = {0: 0, 1: 1, 2: 1, 3: 0}  # NVML_NVLINK_STATE_...: 2 sleeps, 3 carries nothing
# CUDA cores in a multiprocessor by compute capability: NVML counts the cores only.
_CORES = {(7, 0): 64, (7, 2): 64, (7, 5): 64, (8, 0): 64, (8, 6): 128, (8, 7): 128, (8, 9): 128, (9, 0): 128,
          (10, 0): 128, (10, 3): 128, (11, 0): 128, (12, 0): 128, (12, 1): 128}  # fmt: skip

# nvmlClocksEventReason... bits by the catalogue's words. HwSlowdown (8) is the same as one of the two
# hardware reasons where those are told apart.
_HARDWARE_SLOWDOWN = 0x08
_REASON_BITS = {"power": 0x04, "thermal": 0x60, "hardware_brake": 0x80, "sync": 0x10, "idle": 0x01}
_TOLD = sum(_REASON_BITS.values()) | _HARDWARE_SLOWDOWN
_BITS = tuple(_REASON_BITS.values())
CLOCK_REASONS = (*_REASON_BITS, "other")


def count(raw: object) -> Answer:
    """A whole number, such as bytes; NVML's NOT_AVAILABLE is unsupported."""
    if type(raw) is not int or raw in _UNAVAILABLE:
        return _NOT_AVAILABLE
    return raw if 0 <= raw <= _MOST else _absurd(raw, "")


def size(raw: object) -> Answer:
    """Bytes of a memory, or of a part of one."""
    return _scaled(raw, 1, _MOST_BYTES, " bytes")


def watts(milliwatts: object) -> Answer:
    return _divided(milliwatts, 1000, _MOST_MILLIWATTS, " mW")


def rail(milliwatts: object) -> Answer:
    """Power of a part of the package. NVML says 0 of one that it does not measure, and succeeds."""
    if milliwatts == 0:
        return Value(None, Status.UNSUPPORTED, "NVML said 0 mW, as it does where there is no such sensor")
    return watts(milliwatts)


def joules(millijoules: object) -> Answer:
    return _divided(millijoules, 1000)


def seconds(nanoseconds: object) -> Answer:
    return _divided(nanoseconds, 1_000_000_000)


def hertz(megahertz: object) -> Answer:
    return _scaled(megahertz, 1_000_000, _MOST_MEGAHERTZ, " MHz")


def kilobytes(raw: object) -> Answer:
    return _scaled(raw, 1000)


def megabytes(raw: object) -> Answer:
    return _scaled(raw, 1_000_000)


def bytes_of_kibibytes(raw: object) -> Answer:
    return _scaled(raw, 1024)


def ratio(percent: object) -> Answer:
    if type(percent) is int and 0 <= percent <= 100:
        return percent / 100
    raw = count(percent)
    return raw if isinstance(raw, Value) else _absurd(raw, " %")


def fraction(percent: object) -> Answer:
    """A figure of GPM, whose rounding may be a little past the end; without a cycle it is no number."""
    if isinstance(percent, float) and 0 <= percent <= 101:
        return min(percent / 100, 1.0)
    return _absurd(percent, " %")


def fan(percent: object) -> Answer:
    """A fan may turn faster than what its maker calls its greatest speed."""
    raw = count(percent)
    if isinstance(raw, Value):
        return raw
    return raw / 100 if raw <= 200 else _absurd(raw, " %")


def celsius(degrees: object) -> Answer:
    if type(degrees) is int and -100 < degrees < 300:
        return degrees
    raw = count(degrees)
    return raw if isinstance(raw, Value) else _absurd(raw, " degrees")


def choice(raw: object, of: int) -> tuple[Answer, ...]:
    """1 for the one of so many that NVML's number means, 0 for the others."""
    answer = count(raw)
    if not isinstance(answer, Value) and answer >= of:
        answer = _absurd(raw, "")
    if isinstance(answer, Value):
        return (answer,) * of
    return tuple(int(number == answer) for number in range(of))


def flag(raw: object) -> Answer:
    """NVML's 0 and 1."""
    answer = count(raw)
    return answer if isinstance(answer, Value) or answer in (0, 1) else _absurd(answer, "")


def link_up(raw: Any) -> Answer:
    state = _LINK_STATES.get(raw)
    return _absurd(raw, "") if state is None else state


def performance(raw: object) -> Answer:
    if raw == _NO_LEVEL:
        return Value(None, Status.UNSUPPORTED, "NVML_PSTATE_UNKNOWN")
    answer = count(raw)
    return answer if isinstance(answer, Value) or answer < _NO_LEVEL else _absurd(answer, "")


def reasons(raw: object) -> tuple[Answer, ...]:
    """1 or 0 for each of CLOCK_REASONS."""
    if type(raw) is not int or raw < 0 or raw in _UNAVAILABLE:
        return (_NOT_AVAILABLE,) * len(CLOCK_REASONS)
    other = raw & ~_TOLD or (raw & _HARDWARE_SLOWDOWN and not raw & 0xC0)
    return (*[1 if raw & bits else 0 for bits in _BITS], 1 if other else 0)


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
    total = count(cores)
    return None if per_unit is None or isinstance(total, Value) or not total else int(total) // per_unit


def _scaled(raw: object, factor: int, most: int = _MOST, unit: str = "") -> Answer:
    if type(raw) is int and 0 <= raw <= most and raw not in _UNAVAILABLE:
        return raw * factor
    answer = count(raw)
    return answer if isinstance(answer, Value) else _absurd(raw, unit)


def _divided(raw: object, divisor: int, most: int = _MOST, unit: str = "") -> Answer:
    if type(raw) is int and 0 <= raw <= most and raw not in _UNAVAILABLE:
        return raw / divisor
    answer = count(raw)
    return answer if isinstance(answer, Value) else _absurd(raw, unit)


def _absurd(raw: object, unit: str) -> Value:
    return Value(None, Status.ERROR, f"NVML said {raw}{unit}")

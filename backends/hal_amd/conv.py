"""AMD SMI's words, sentinels and units in the model's. Nothing of AMD SMI's passes this file."""

from __future__ import annotations

import re

from hal.backend import Value
from hal.model import Status

__all__ = [
    "Value",
    "bdf",
    "celsius",
    "count",
    "first_watts",
    "gfx",
    "hexadecimal",
    "mebibytes",
    "microwatts",
    "number",
    "ratio",
    "text",
    "unique_id",
]

_SENTINELS = {0xFFFF, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF}  # the maximum of the C field: no such figure
_BDF = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")


def number(raw: object) -> int | float | None:
    """A number; None for 'N/A', for the sentinels and for whatever else a version puts there."""
    if isinstance(raw, bool) or not isinstance(raw, (int, float)) or raw in _SENTINELS:
        return None
    return raw


def count(raw: object) -> Value:
    value = number(raw)
    return Value(None, Status.UNSUPPORTED, f"amdsmi said {raw}") if value is None else Value(value)


def mebibytes(raw: object) -> Value:
    value = number(raw)
    return count(raw) if value is None else Value(int(value) << 20)


def first_watts(*raw: object) -> Value:
    """The first that is a number: which of its power figures a card fills in depends on its family."""
    values = (number(each) for each in raw)
    return next((Value(value) for value in values if value is not None), count("N/A"))


def microwatts(raw: object) -> Value:
    """A power cap. amdsmi ignores a cap that it cannot read and leaves 0, which no card is held to."""
    value = number(raw)
    if not value:
        return Value(None, Status.UNSUPPORTED, f"amdsmi said {raw}")
    return Value(value / 1_000_000)


def ratio(percent: object) -> Value:
    value = number(percent)
    if value is None:
        return count(percent)
    if not 0 <= value <= 100:
        return Value(None, Status.ERROR, f"amdsmi said {percent} %")
    return Value(value / 100)


def celsius(degrees: object) -> Value:
    value = number(degrees)
    if value is None:
        return count(degrees)
    if not -100 < value < 300:
        return Value(None, Status.ERROR, f"amdsmi said {degrees} degrees")
    return Value(value)


def text(raw: object) -> str | None:
    """A string; empty and 'N/A' are None."""
    if not isinstance(raw, str) or raw.strip() in ("", "N/A"):
        return None
    return raw.strip()


def bdf(raw: object) -> str | None:
    """A PCI address; None for what is none (without /dev/dri the library gives uninitialised memory)."""
    address = raw.lower() if isinstance(raw, str) else ""
    return address if _BDF.fullmatch(address) else None


def hexadecimal(raw: object) -> int | None:
    """A number that amdsmi prints as "0x74a1"; other versions give the number."""
    if isinstance(raw, str):
        try:
            return int(raw, 16)
        except ValueError:
            return None
    value = number(raw)
    return None if value is None else int(value)


def unique_id(asic_serial: object) -> str | None:
    """The 16 hexadecimal digits by which ROCR names a card; None when the card has none."""
    serial = hexadecimal(text(asic_serial))
    return None if not serial or serial in _SENTINELS else f"{serial:016x}"


def gfx(raw: object) -> str | None:
    """The instruction set, "gfx942"."""
    name = text(raw)
    return name if name and re.fullmatch(r"gfx[1-9][0-9a-f]{2,3}", name) else None

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
    "counted",
    "first_watts",
    "generation",
    "gfx",
    "gigabits",
    "hexadecimal",
    "joules",
    "kibibytes",
    "lanes",
    "mean_ratio",
    "mebibytes",
    "megahertz",
    "microwatts",
    "number",
    "physical",
    "ratio",
    "remainder",
    "size",
    "state",
    "text",
    "turns",
    "unique_id",
    "watts",
]

_SENTINELS = {0xFFFF, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF}  # the maximum of the C field: no such figure
_BDF = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")


# Far above what any part has: more is no measurement, but a field that was read wrongly.
_BYTES, _WATTS, _MEGAHERTZ, _LANES, _COUNT = 1 << 50, 20_000, 100_000, 64, (1 << 63) - 1


def number(raw: object) -> int | float | None:
    """A number; None for 'N/A', for the sentinels and for whatever else a version puts there."""
    if isinstance(raw, bool) or not isinstance(raw, (int, float)) or raw in _SENTINELS:
        return None
    return raw


def count(raw: object) -> Value:
    value = number(raw)
    return Value(None, Status.UNSUPPORTED, f"it said {raw}") if value is None else Value(value)


def _bounded(raw: object, most: float, factor: float = 1) -> Value:
    """A number times its unit; an absurd one is an error."""
    value = number(raw)
    if value is None:
        return count(raw)
    if not 0 <= value * factor <= most:
        return Value(None, Status.ERROR, f"it said {str(raw)[:40]}")
    return Value(value if factor == 1 else value * factor)


def counted(raw: object) -> Value:
    """A counter; without its last possible values, which stand for a counter that is not there."""
    return _bounded(raw, _COUNT)


def size(raw: object) -> Value:
    """Of a memory, in bytes."""
    return _bounded(raw, _BYTES)


def kibibytes(raw: object) -> Value:
    return _bounded(raw, _COUNT, 1 << 10)


def mebibytes(raw: object) -> Value:
    return _bounded(raw, _BYTES, 1 << 20)


def remainder(total: Value, used: Value) -> Value:
    """What is free, where only the other two are said."""
    if total.value is None or used.value is None:
        return Value(None, Status.UNSUPPORTED, "no such figure")
    if used.value > total.value:
        return Value(None, Status.ERROR, f"{used.value} of {total.value} bytes are in use")
    return Value(total.value - used.value, Status.ESTIMATED, "total - used")


def watts(raw: object) -> Value:
    return _bounded(raw, _WATTS)


def first_watts(*raw: object) -> Value:
    """The first that is a number: which of its power figures a card fills in depends on its family."""
    return next((watts(each) for each in raw if number(each) is not None), count("N/A"))


def microwatts(raw: object) -> Value:
    """A power cap. amdsmi ignores a cap that it cannot read and leaves 0, which no card is held to."""
    value = number(raw)
    if not value:
        return Value(None, Status.UNSUPPORTED, f"it said {raw}")
    return watts(value / 1_000_000)


def joules(accumulator: object, microjoules: object) -> Value:
    """An energy counter, and what one count of it is."""
    value, unit = number(accumulator), number(microjoules)
    if value is None or not unit:
        return Value(None, Status.UNSUPPORTED, f"it said {accumulator} times {microjoules}")
    return _bounded(value, _COUNT, unit / 1_000_000)


def megahertz(raw: object) -> Value:
    """A clock. 65535 MHz is no clock either, whatever the width of the field."""
    value = _bounded(raw, _MEGAHERTZ)
    return value if value.value is None else Value(int(value.value) * 1_000_000)


def turns(raw: object) -> Value:
    """Of a fan, in a minute."""
    return _bounded(raw, 100_000)


def lanes(raw: object) -> Value:
    """Of a PCIe link; 0 is what an unset field says."""
    return Value(None, Status.UNSUPPORTED, "it said 0") if raw == 0 else _bounded(raw, _LANES)


def gigabits(raw: object) -> Value:
    """What a link can carry, in bytes per second; 0 is what an unset field says."""
    value = number(raw)
    if not value:
        return Value(None, Status.UNSUPPORTED, f"it said {raw}")
    return Value(int(value) * 1_000_000_000 // 8)


_GENERATIONS = {2500: 1, 5000: 2, 8000: 3, 16000: 4, 32000: 5, 64000: 6}  # MT/s of a lane


def generation(raw: object) -> Value:
    """Of PCIe, from the speed of a lane."""
    found = _GENERATIONS.get(int(number(raw) or 0))
    return Value(None, Status.UNSUPPORTED, f"it said {raw}") if found is None else Value(found)


def state(raw: object) -> Value:
    """1 or 0. amdsmi has booleans here, and numbers in some versions."""
    if isinstance(raw, bool):
        return Value(int(raw))
    value = number(raw)
    return Value(int(value)) if value in (0, 1) else count(raw)


def mean_ratio(percents: object) -> Value:
    """Of the engines that answer; those that are not there say 'N/A'."""
    numbers = map(number, percents) if isinstance(percents, list) else ()
    known = [value for value in numbers if value is not None]
    return ratio(sum(known) / len(known)) if known else count("N/A")


def ratio(percent: object) -> Value:
    value = number(percent)
    if value is None:
        return count(percent)
    if not 0 <= value <= 100:
        return Value(None, Status.ERROR, f"it said {str(percent)[:40]} %")
    return Value(value / 100)


def celsius(degrees: object) -> Value:
    value = number(degrees)
    if value is None:
        return count(degrees)
    if not -100 < value < 300:
        return Value(None, Status.ERROR, f"it said {str(degrees)[:40]} degrees")
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


def physical(address: str, partition: int) -> str:
    """The card's own address: the number of a partition sits in the function, where there is no such one."""
    function = int(address[-1])
    return address if function < partition else f"{address[:-1]}{function - partition}"


def hexadecimal(raw: object) -> int | None:
    """A number that amdsmi prints as "0x74a1"; other versions give the number."""
    value: int | float | None
    if isinstance(raw, str):
        try:
            value = int(raw, 16)
        except ValueError:
            return None
    else:
        value = number(raw)
    return int(value) if value is not None and 0 <= value < 1 << 64 else None


def unique_id(asic_serial: object) -> str | None:
    """The 16 hexadecimal digits by which ROCR names a card; None when the card has none."""
    serial = hexadecimal(text(asic_serial))
    return f"{serial:016x}" if serial and 0 < serial < 0xFFFF_FFFF_FFFF_FFFF else None


def gfx(raw: object) -> str | None:
    """The instruction set, "gfx942"."""
    name = text(raw)
    return name if name and re.fullmatch(r"gfx[1-9][0-9a-f]{2,3}", name) else None

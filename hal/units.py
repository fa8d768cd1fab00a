"""Sizes and ratios as people write them, and back."""

from __future__ import annotations

import re
from decimal import Decimal

__all__ = [
    "LARGEST_BYTES",
    "format_bytes",
    "format_seconds",
    "parse_bytes",
    "parse_ratio",
    "parse_seconds",
]

_BINARY = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_DECIMAL = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGTP])(i?)B?|(B))", re.IGNORECASE)
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_SPAN = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(s|min|m|h|d)")

LARGEST_BYTES = 1 << 60  # far above any machine, far below what 64 bits hold


def parse_bytes(text: str) -> int:
    """``"20GiB"``, ``"512 MiB"``, ``"1.5TB"`` as bytes: KiB is 1024, KB is 1000.

    Raises ValueError with a sentence for the user when it is no size, has no unit, is 0 or absurd.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        number = re.fullmatch(r"\d+(\.\d+)?", text.strip())
        hint = f"say its unit, for example {text.strip()}GiB" if number else "write it like 20GiB or 512MiB"
        raise ValueError(f"'{text}' is not a size: {hint}")
    digits, letter, binary, _ = match.groups()
    factor = 1 if letter is None else (_BINARY if binary else _DECIMAL)[letter.upper()]
    size = int(Decimal(digits) * factor)
    if size == 0:
        raise ValueError(f"'{text}' is not a size: it has to be more than nothing")
    if size > LARGEST_BYTES:
        raise ValueError(f"'{text}' is more memory than any machine has")
    return size


def parse_ratio(text: str) -> float:
    """``"30%"``, ``"30 %"`` or ``"0.3"`` as 0.3, in thousandths.

    Raises ValueError with a sentence for the user when it is none, or not more than nothing and at most all.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", text.strip())
    if match is None:
        raise ValueError(f"'{text}' is not a share: write it like 30% or 0.3")
    number = Decimal(match[1]) / (100 if match[2] else 1)
    if not match[2] and number > 1:
        raise ValueError(f"'{text}' is more than the whole: for a percentage write {match[1]}%")
    if not Decimal("0.001") <= number <= 1:
        raise ValueError(f"'{text}' is not a share: it lies between 0.1% and 100%")
    return round(float(number), 3)


def parse_seconds(text: str) -> float:
    """``"90s"``, ``"30min"``, ``"4h"``, ``"2d"`` as seconds. Raises ValueError with a sentence."""
    match = _SPAN.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"'{text}' is no time: write it like 90s, 30min, 4h or 2d")
    return float(match[1]) * _SECONDS[match[2]]


def format_bytes(size: int | None) -> str:
    """A size for people, in binary units: ``"20.0 GiB"``; ``"–"`` when it is not known."""
    if size is None:
        return "–"
    for letter in "PTGMK":
        if size >= _BINARY[letter] * (1 - 0.05 / 1024):  # below that 1024.0 of the smaller unit
            return f"{size / _BINARY[letter]:.1f} {letter}iB"
    return f"{size} B"


def format_seconds(seconds: float) -> str:
    """A span for people: ``"8 s"``, ``"3 min"``, ``"2.5 h"``."""
    if seconds < 60:
        return f"{max(seconds, 0):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

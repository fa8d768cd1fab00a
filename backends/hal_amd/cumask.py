"""A part of a GPU's compute units for one program, by ROCr's HSA_CU_MASK: pure.

ROCr reads the variable when a queue is made ("0:0-37;1:0-37": GPUs after ROCR_VISIBLE_DEVICES, then their
units), and drops a set with a mistake in it, and all sets behind it, without a word: so a mask is checked
here. Which bit is which unit: on parts of several XCCs bit i belongs to XCC i mod their number (KFD,
mqd_symmetrically_map_cu_mask), so that whole strides take the same of each; from gfx10 on two units are one
WGP, which is masked as a pair.
"""

from __future__ import annotations

import re

__all__ = ["mask", "parse"]

MOST_UNITS = 1024
_WGP_SINCE = 10  # gfx10: RDNA
_SET = re.compile(r"(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*):(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)")


def mask(units: int, dies: int, arch: str, first_milli: int, milli: int, *, ordinal: int = 0) -> str:
    """HSA_CU_MASK for ``milli`` thousandths of a GPU of ``units``, from ``first_milli`` thousandths on.

    Whole strides over the XCCs, whole WGPs; shares that meet do not overlap, and each has at least one
    stride. ``arch`` is the target, such as "gfx942". Raises ValueError when the share is not within the
    device.
    """
    if units < 1 or not 0 <= first_milli < first_milli + milli <= 1000:
        raise ValueError(f"{milli} thousandths from {first_milli} on are no part of a GPU of {units} units")
    stride = dies if dies > 1 else 2 if _major(arch) >= _WGP_SINCE else 1
    strides = max(units // stride, 1)
    first = first_milli * strides // 1000
    last = max((first_milli + milli) * strides // 1000, first + 1)
    text = f"{ordinal}:{first * stride}-{min(last * stride, units) - 1}"
    assert parse(text)[ordinal]
    return text


def parse(text: str) -> dict[int, frozenset[int]]:
    """The units that a value of HSA_CU_MASK leaves each GPU that it names.

    Raises ValueError, saying where, for what ROCr would drop in silence.
    """
    found: dict[int, frozenset[int]] = {}
    for number, part in enumerate(text.replace(" ", "").split(";"), 1):
        match = _SET.fullmatch(part)
        if match is None:
            raise ValueError(
                f"set {number} of the mask, '{part}', is not of the form GPUS:UNITS, as in 0:0-37"
            )
        units = _numbers(match[2], MOST_UNITS, number)
        for gpu in _numbers(match[1], MOST_UNITS, number):
            if gpu in found:
                raise ValueError(f"set {number} of the mask names GPU {gpu} a second time")
            found[gpu] = units
    return found


def _numbers(text: str, most: int, number: int) -> frozenset[int]:
    found: set[int] = set()
    for piece in text.split(","):
        low, _, high = piece.partition("-")
        if not int(low) <= int(high or low) < most:
            raise ValueError(f"set {number} of the mask has '{piece}', which is no range below {most}")
        found.update(range(int(low), int(high or low) + 1))
    return frozenset(found)


def _major(arch: str) -> int:
    """gfx942 is 9.4.2, gfx1100 is 11.0.0: the last two characters are the minor version and the stepping."""
    digits = arch.removeprefix("gfx")[:-2]
    return int(digits) if digits.isdigit() else 0

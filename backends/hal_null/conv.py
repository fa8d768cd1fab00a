"""The library's words, sentinels and units in the model's. Nothing of them passes this file."""

from __future__ import annotations

from hal.backend import Value
from hal.model import Status

__all__ = ["celsius", "kibibytes", "ratio", "watts"]

_NOT_AVAILABLE = 0xFFFF


def kibibytes(raw: int) -> Value:
    return Value(raw << 10)


def ratio(percent: int) -> Value:
    return Value(percent / 100)


def watts(milliwatts: int) -> Value:
    if milliwatts == _NOT_AVAILABLE:
        return Value(None, Status.UNSUPPORTED, "the library said 0xFFFF")
    return Value(milliwatts / 1000)


def celsius(millidegrees: int) -> Value:
    return Value(millidegrees / 1000)

"""Kubernetes quantities: ``64Gi``, ``500m``, ``1.5G``, compared exactly."""

from __future__ import annotations

import re
from fractions import Fraction

from msgspec import Struct

__all__ = ["SUFFIX", "Quantity"]

# k8s.io/apimachinery/pkg/api/resource: binary, decimal and milli suffixes
_FACTORS: dict[str, Fraction] = {
    "": Fraction(1),
    "m": Fraction(1, 1000),
    **{letter + "i": Fraction(1 << 10 * power) for power, letter in enumerate("KMGTPE", 1)},
    **{letter: Fraction(10 ** (3 * power)) for power, letter in enumerate("kMGTPE", 1)},
}
SUFFIX = "[KMGTPE]i|[mkMGTPE]"
_TEXT = re.compile(rf"([+-]?)(\d{{1,24}}(?:\.\d{{1,24}})?|\.\d{{1,24}})({SUFFIX})?")


class Quantity(Struct, frozen=True, order=True):
    """An amount in whole thousandths; what is finer is rounded up, as Kubernetes does."""

    milli: int

    @classmethod
    def parse(cls, text: str) -> Quantity:
        """Raises ValueError with a sentence."""
        match = _TEXT.fullmatch(text) if len(text) <= 64 else None
        if match is None:
            raise ValueError(f"'{text:.40}' is not a quantity: write it like 64Gi, 500M or 2")
        sign, digits, suffix = match.groups()
        exact = Fraction(digits) * _FACTORS[suffix or ""] * 1000
        milli = -(-exact.numerator // exact.denominator)
        return cls(-milli if sign == "-" else milli)

    @classmethod
    def of(cls, whole: int) -> Quantity:
        return cls(whole * 1000)

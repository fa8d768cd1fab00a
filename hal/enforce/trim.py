"""Corrects what the guard charges by what the driver says was used: pure, one controller for a slice's
device.

The guard charges a launch what it took when nobody else seemed to run. While another program shares the
device all the time, that figure comes out too high and the slice gets less than its share (cuda.h: other work
may run between two events). The driver's own figure of a process's utilisation knows nothing of that; it is
coarse and late, so it moves the charge slowly.
"""

from __future__ import annotations

__all__ = ["NEUTRAL", "Trim"]

NEUTRAL = 1000  # thousandths: charge as estimated

_LEAST, _MOST = 250, 2000
_WORTH_TELLING = 0.02  # of the device: below that, a figure in whole percents says nothing
_STEP = 30  # thousandths; less than the driver's figure can tell
_HALF_LIFE = 2.0  # seconds: long kernels make single looks uneven


class Trim:
    """Feed it one look a second or so; it gives the correction that should hold from then on."""

    def __init__(self) -> None:
        self.milli = NEUTRAL
        self._charged: int | None = None
        self._time = 0.0
        self._used_sum = self._charged_sum = 0.0  # seconds of the device's time, the older the less

    def look(self, now: float, charged_ns: int, used_ratio: float | None, in_force: int | None = None) -> int:
        """``charged_ns`` is the ledger's counter, uncorrected; ``used_ratio`` the share of the device's time
        that the slice's processes had of late, None when the driver does not tell; ``in_force`` the ledger's
        correction, which the guard changes when it learns that a launch takes another time than it charged.
        """
        if in_force is not None and in_force > 0 and in_force != self.milli:
            self._charged_sum *= self.milli / in_force  # at the new prices
            self.milli = in_force
        before, since = self._charged, now - self._time
        self._charged, self._time = charged_ns, now
        if used_ratio is None or before is None or since <= 0:
            return self.milli
        charged = (charged_ns - before) / 1e9
        if charged < _WORTH_TELLING * since or used_ratio < _WORTH_TELLING:
            return self.milli
        kept = 0.5 ** (since / _HALF_LIFE)
        self._used_sum = self._used_sum * kept + used_ratio * since
        self._charged_sum = self._charged_sum * kept + charged
        target = min(max(NEUTRAL * self._used_sum / self._charged_sum, _LEAST), _MOST)
        if abs(target - self.milli) >= _STEP:
            self.milli = round(target)
        return self.milli

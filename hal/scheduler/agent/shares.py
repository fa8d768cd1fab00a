"""Looks, once a second, at what slices with a share of a device's time really had of it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from hal.backend import StateError
from hal.enforce.ledger import Ledger
from hal.enforce.trim import Trim
from hal.inventory import Machine

__all__ = ["Shares"]

_EVERY = 1.0  # seconds
_BUSY = 0.02  # of the device: less is no neighbour to make room for
_PATIENCE = 0.5  # seconds for a vendor's library to say who uses its devices


class Shares:
    """The correction of each slice's charges by the driver's figure of its processes (hal.enforce.trim)."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._looked = float("-inf")
        self._trims: dict[tuple[str, int], Trim] = {}

    def correct(self, ledgers: Sequence[Ledger], now: float) -> None:
        if now - self._looked < _EVERY:
            return
        self._looked = now
        limited: list[tuple[Ledger, int, str]] = []
        for ledger in ledgers:
            try:
                uses = ledger.devices()
            except StateError:  # it was cut short
                continue
            limited += [
                (ledger, n, use.device) for n, use in enumerate(uses) if use.compute_ratio is not None
            ]
        self._trims = {key: self._trims.get(key, Trim()) for key in (_key(led, n) for led, n, _ in limited)}
        if not limited:
            return
        found = self._machine.processes(sorted({device for *_, device in limited}), timeout=_PATIENCE)
        busy = {(one.device, one.pid): one.compute_busy_ratio for one in found}
        for ledger, index, device in limited:
            told = [busy.get((device, pid)) for pid in ledger.pids()]
            known = [ratio for ratio in told if ratio is not None]
            used = sum(known) if known else None
            inside = set(ledger.pids())
            others = [ratio for (on, pid), ratio in busy.items() if on == device and pid not in inside]
            if any(ratio is not None and ratio > _BUSY for ratio in others):
                ledger.note_neighbours(index, time.monotonic_ns() + round(2e9 * _EVERY))
            trim = self._trims[_key(ledger, index)]
            milli = trim.look(now, ledger.charged_ns(index), used, ledger.trim(index))
            ledger.set_trim(index, milli)


def _key(ledger: Ledger, index: int) -> tuple[str, int]:
    return str(ledger.path), index

"""A slice's ledger: one mapped file that its processes reserve memory in (native/include/hal_ledger.h)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from hal.backend import StateError

# Importing the compiled half costs a few milliseconds, which commands that need no ledger save.
from hal_native import ffi, lib

__all__ = ["DeviceUse", "Ledger"]


class DeviceUse(Struct, frozen=True):
    """One device of a slice."""

    device: str
    limit_bytes: int
    used_bytes: int
    refused: int  # reservations refused since the slice was made


class Ledger:
    """An open ledger; ``close()`` unmaps it, the file stays until ``unlink()``."""

    def __init__(self, path: Path, mapped: Any) -> None:
        self.path = path
        self._ledger = mapped

    @classmethod
    def create(cls, path: Path, name: str, limits: Sequence[tuple[str, int]]) -> Ledger:
        """Make a slice's file: (device id, bytes) pairs, in the order its programs see the devices.

        Raises StateError when the file is there already or cannot be written.
        """
        if len(limits) > lib.HAL_LEDGER_DEVICES:
            raise StateError(f"a slice can be on {lib.HAL_LEDGER_DEVICES} devices, not on {len(limits)}")
        if lib.hal_ledger_create(os.fsencode(path), name.encode()[: lib.HAL_LEDGER_ID - 1], len(limits)) != 0:
            raise StateError(f"cannot make the slice file {path}: {os.strerror(ffi.errno)}")
        ledger = cls.open(path)
        for index, (device, limit) in enumerate(limits):
            ledger._ledger.device[index].id = device.encode()[: lib.HAL_LEDGER_ID - 1]
            ledger._ledger.device[index].limit = limit
        return ledger

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """Map an existing file. Raises StateError when it is missing, foreign or of another version."""
        error = ffi.new("enum hal_ledger_error *")
        mapped = lib.hal_ledger_open(os.fsencode(path), error)
        if mapped == ffi.NULL:
            reasons = {
                lib.HAL_LEDGER_SYSTEM: os.strerror(ffi.errno),
                lib.HAL_LEDGER_FOREIGN: "it is not a slice file, or is cut short",
                lib.HAL_LEDGER_OTHER_VERSION: "it was made by another version of hal",
            }
            raise StateError(f"cannot use the slice file {path}: {reasons[error[0]]}")
        return cls(path, mapped)

    def devices(self) -> list[DeviceUse]:
        """Each device's limit and use now, the dead left out."""
        self.reap()
        rows = [self._ledger.device[index] for index in range(self._ledger.devices)]
        return [DeviceUse(ffi.string(row.id).decode(), row.limit, row.used, row.refused) for row in rows]

    def set_limit(self, index: int, limit_bytes: int) -> None:
        """Resize live. Below what is used, it refuses growth and takes nothing away."""
        if not 0 <= index < self._ledger.devices:
            raise IndexError(index)
        self._ledger.device[index].limit = limit_bytes

    def pids(self) -> list[int]:
        """The living processes that have allocated in this slice, as far as their pids mean anything here."""
        owners = [self._ledger.slot[index].owner for index in range(lib.HAL_LEDGER_SLOTS)]
        here = [owner for owner in owners if owner and lib.hal_process_is_here(owner)]
        return [lib.hal_ledger_owner_pid(owner) for owner in here if lib.hal_process_lives(owner)]

    def reap(self) -> int:
        """Give back what dead processes held; returns how many there were."""
        return int(lib.hal_ledger_reap(self._ledger))

    def close(self) -> None:
        if self._ledger is not None:
            lib.hal_ledger_close(self._ledger)
            self._ledger = None

    def unlink(self) -> None:
        self.path.unlink(missing_ok=True)

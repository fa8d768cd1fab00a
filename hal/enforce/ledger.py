"""A slice's ledger: one mapped file that its processes reserve memory in (native/include/hal_ledger.h)."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from msgspec import Struct

from hal.backend import StateError
from hal.model import Enforcement, Rung

# Importing the compiled half costs a few milliseconds, which commands that need no ledger save.
from hal_native import ffi, lib

__all__ = ["Control", "DeviceUse", "Ledger", "RunState", "SliceUse", "check_limits"]

_RUNGS = (
    Rung.NONE,
    Rung.GUARD,
    Rung.RUNTIME,
    Rung.KERNEL,
    Rung.DRIVER,
    Rung.HARDWARE,
)  # enum hal_ledger_enforcer


class RunState(StrEnum):
    """What the programs of a slice are to do; in the order of ``enum hal_ledger_state``."""

    RUN = "run"
    PAUSE = "pause"
    STOP = "stop"


_STATES = tuple(RunState)


class DeviceUse(Struct, frozen=True):
    """One device of a slice."""

    device: str
    limit_bytes: int
    used_bytes: int
    refused: int  # reservations refused since the slice was made
    over_bytes: int = 0  # used past a limit that was lowered: growth is refused until it is 0
    peak_bytes: int = 0  # the most that was used at once
    compute_ratio: float | None = None  # share of the device's time; None: no limit


class Control(Struct, frozen=True):
    """What is set for a whole slice, and may be changed while it lives."""

    state: RunState
    epoch: int  # one more with each change, 32 bits
    priority: int  # -100 to 100
    weight: int  # 1 to 10000
    elastic: bool  # it may use what others leave idle
    enforcement: Enforcement


class SliceUse(Struct, frozen=True):
    """A slice as its ledger has it."""

    name: str
    control: Control
    devices: tuple[DeviceUse, ...]

    @property
    def over_limit(self) -> bool:
        """Whether it was made smaller than what it uses."""
        return any(device.over_bytes for device in self.devices)


class Ledger:
    """An open ledger; ``close()`` unmaps it, the file stays until ``unlink()``.

    Every method but ``close``, ``unlink`` and ``pids`` raises StateError once the file has been cut short
    under us (by its own programs, which may write to it): nothing that it said can be relied on.
    """

    def __init__(self, path: Path, mapped: Any) -> None:
        self.path = path
        self._ledger = mapped
        self._pids: list[int] = []
        self._owner = os.geteuid()  # as it was last seen

    @classmethod
    def create(cls, path: Path, name: str, limits: Sequence[tuple[str, int]]) -> Ledger:
        """Make a slice's file: (device id, bytes) pairs, in the order its programs see the devices.

        Raises StateError when the file is there already or cannot be written, ValueError for a limit that is
        negative or past 1 EiB.
        """
        check_limits(limits)
        if lib.hal_ledger_create(os.fsencode(path), name.encode()[: lib.HAL_LEDGER_ID - 1], len(limits)) != 0:
            raise StateError(f"cannot make the slice file {path}: {os.strerror(ffi.errno)}")
        ledger = cls.open(path)
        ledger._begin(name, limits)
        return ledger

    def move(self, path: Path, name: str, limits: Sequence[tuple[str, int]]) -> bool:
        """Give a fresh file, of which nobody else knows, its name, and say in it whose it is. False: it was
        removed by somebody, the file system cannot, or a file has that name, which is never replaced."""
        if lib.hal_ledger_move(self._ledger, os.fsencode(path)) != 0:
            return False
        self.path = path
        self._begin(name, limits)
        return True

    def _begin(self, name: str, limits: Sequence[tuple[str, int]]) -> None:
        self._ledger.name = name.encode()[: lib.HAL_LEDGER_ID - 1]
        self._ledger.devices = len(limits)
        for index, (device, limit) in enumerate(limits):
            row = self._ledger.device[index]
            row.id = device.encode()[: lib.HAL_LEDGER_ID - 1]
            row.limit = limit

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """Map an existing file.

        Raises StateError when it is missing, foreign, damaged or of another version.
        """
        if lib.hal_ledger_outlive_truncation() != 0:
            raise StateError(f"cannot use slice files: {os.strerror(ffi.errno)}")
        error = ffi.new("enum hal_ledger_error *")
        mapped = lib.hal_ledger_open(os.fsencode(path), error)
        if mapped == ffi.NULL:
            if error[0] == lib.HAL_LEDGER_SYSTEM:
                reason = os.strerror(ffi.errno)
            else:
                reason = ffi.string(lib.hal_ledger_reason(error[0])).decode()
            raise StateError(f"cannot use the slice file {path}: {reason}")
        return cls(path, mapped)

    # ---- what it says -----------------------------------------------------------------------

    def devices(self) -> list[DeviceUse]:
        """Each device's limit and use now, the dead left out."""
        self.reap()
        found = [
            _device_use(self._ledger.device[index]) for index in range(lib.hal_ledger_devices(self._ledger))
        ]
        self._check()
        return found

    def control(self) -> Control:
        """What is set for the slice now."""
        ledger = self._ledger
        self._check()
        return Control(
            state=_STATES[min(ledger.state, len(_STATES) - 1)],
            epoch=ledger.epoch,
            priority=ledger.priority,
            weight=ledger.weight,
            elastic=bool(ledger.elastic),
            enforcement=Enforcement(_rung(ledger.memory_by), _rung(ledger.compute_by)),
        )

    def use(self) -> SliceUse:
        """All of it: the shape that is printed as JSON."""
        devices = tuple(self.devices())
        return SliceUse(ffi.string(self._ledger.name).decode(errors="replace"), self.control(), devices)

    def pids(self) -> list[int]:
        """The living processes that have allocated in this slice, as far as their pids mean anything here.

        Of a file that was cut short, those that were there before. Only its owner's, or anybody's in a file
        of root's: whoever may write to it can put the name of any process into it."""
        owner = self._owned_by()
        return [pid for pid in self._named() if _is_of(pid, owner)]

    def signal(self, number: int) -> list[int]:
        """Signal each of ``pids()`` (0: none), and say which they are."""
        owner, found = self._owned_by(), self.pids()
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                _signal(pid, owner, number)
        return found

    def _owned_by(self) -> int:
        with contextlib.suppress(OSError):  # it has been removed: as it was
            self._owner = self.path.stat().st_uid
        return self._owner

    def _named(self) -> list[int]:
        if not self.is_lost:
            pids = ffi.new("uint32_t[]", lib.HAL_LEDGER_SLOTS)
            count = lib.hal_ledger_pids(self._ledger, pids)
            if not self.is_lost:
                self._pids = list(pids[0:count])
                return list(self._pids)
        self._pids = [pid for pid in self._pids if _exists(pid)]
        return list(self._pids)

    def processes(self, index: int) -> list[tuple[int, int]]:
        """The living processes that hold memory of a device, as (pid, bytes), by pid."""
        if not 0 <= index < self._ledger.devices:
            raise IndexError(index)
        slots = ((lib.hal_ledger_living(self._ledger, n), n) for n in range(lib.HAL_LEDGER_SLOTS))
        slot = self._ledger.slot
        found = [
            (int(pid), int(lib.hal_ledger_mine(ffi.addressof(slot, n), index))) for pid, n in slots if pid
        ]
        self._check()
        return sorted(found)

    @property
    def is_lost(self) -> bool:
        """Whether the file was cut short while it was open here."""
        return bool(lib.hal_ledger_is_lost(self._ledger))

    def reap(self) -> int:
        """Give back what dead processes held; returns how many there were."""
        freed = int(lib.hal_ledger_reap(self._ledger))
        self._check()
        return freed

    # ---- what is set ------------------------------------------------------------------------

    def set_limit(self, index: int, limit_bytes: int) -> None:
        """Resize live. Below what is used, it refuses growth, takes nothing away and reports how much it is
        over. Raises ValueError past 1 EiB, IndexError for a device that it has not."""
        self._check_index(index)
        _check_limit(limit_bytes)
        self._set(lib.hal_ledger_set_limit(self._ledger, index, limit_bytes))

    def set_compute(self, index: int, ratio: float | None) -> None:
        """The share of a device's time, 0 to 1 in thousandths; None: no limit."""
        self._check_index(index)
        if ratio is not None and not 0 <= ratio <= 1:
            raise ValueError(f"a share of a device is between 0 and 1, not {ratio}")
        milli = lib.HAL_LEDGER_MILLI if ratio is None else round(ratio * lib.HAL_LEDGER_MILLI)
        self._set(lib.hal_ledger_set_compute(self._ledger, index, milli))

    def set_state(self, state: RunState) -> None:
        """Run, pause or stop; wakes the programs that wait for it."""
        self._set(lib.hal_ledger_set_state(self._ledger, _STATES.index(state)))

    def set_priority(self, priority: int) -> None:
        """Raises ValueError outside of -100 to 100."""
        most = lib.HAL_LEDGER_PRIORITY
        if not -most <= priority <= most:
            raise ValueError(f"a priority is between -{most} and {most}, not {priority}")
        self._set(lib.hal_ledger_set_priority(self._ledger, priority))

    def set_weight(self, weight: int) -> None:
        """Raises ValueError outside of 1 to 10000."""
        if not 1 <= weight <= lib.HAL_LEDGER_WEIGHT:
            raise ValueError(f"a weight is between 1 and {lib.HAL_LEDGER_WEIGHT}, not {weight}")
        self._set(lib.hal_ledger_set_weight(self._ledger, weight))

    def set_elastic(self, elastic: bool) -> None:
        """Whether it may use what others leave idle."""
        self._set(lib.hal_ledger_set_elastic(self._ledger, elastic))

    def set_enforcement(self, enforcement: Enforcement) -> None:
        """Note for all to read who holds the slice to its limits."""
        memory, compute = _RUNGS.index(enforcement.memory), _RUNGS.index(enforcement.compute)
        self._set(lib.hal_ledger_set_enforcers(self._ledger, memory, compute))

    def charged_ns(self, index: int) -> int:
        """Nanoseconds of a device's time that its launches were charged, as the guard estimates them."""
        return int(self._ledger.device[index].share_charged_ns)

    def trim(self, index: int) -> int:
        """The correction in force; the guard changes it too, when it learns what a launch really takes."""
        return int(self._ledger.device[index].share_trim)

    def set_trim(self, index: int, milli: int) -> None:
        """Thousandths of the estimate that are charged from now on (hal.enforce.trim)."""
        self._ledger.device[index].share_trim = milli

    def note_neighbours(self, index: int, until_ns: int) -> None:
        """Others work on the device: until then (``time.monotonic_ns``) an elastic slice keeps its share."""
        self._ledger.device[index].share_contended_ns = until_ns

    # ---- waiting ----------------------------------------------------------------------------

    def wait_running(self, seconds: float) -> RunState:
        """Wait while it is paused, so long at most: RUN or STOP, or PAUSE when the time is over."""
        deadline = time.monotonic_ns() + round(seconds * 1e9)
        state = int(lib.hal_ledger_wait_running(self._ledger, deadline))
        self._check()
        return _STATES[min(state, len(_STATES) - 1)]

    # ---- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        if self._ledger is not None:
            lib.hal_ledger_close(self._ledger)
            self._ledger = None

    def unlink(self) -> None:
        self.path.unlink(missing_ok=True)

    def _set(self, done: bool) -> None:
        self._check()
        assert done

    def _check_index(self, index: int) -> None:
        known = 0 <= index < lib.hal_ledger_devices(self._ledger)
        self._check()
        if not known:
            raise IndexError(index)

    def _check(self) -> None:
        if self.is_lost:
            raise StateError(f"the slice file {self.path} was cut short while it was in use")


def check_limits(limits: Sequence[tuple[str, int]]) -> None:
    """Raises as Ledger.create for what it would not take."""
    if not 1 <= len(limits) <= lib.HAL_LEDGER_DEVICES:
        raise StateError(f"a slice can be on {lib.HAL_LEDGER_DEVICES} devices, not on {len(limits)}")
    for _, limit in limits:
        _check_limit(limit)


def _check_limit(limit_bytes: int) -> None:
    if not 0 <= limit_bytes <= 1 << 60:  # HAL_LEDGER_MOST
        raise ValueError(f"a limit is between 0 and 1 EiB, not {limit_bytes} bytes")


def _device_use(row: Any) -> DeviceUse:
    limit, used, milli = row.limit, row.used, row.compute_milli
    return DeviceUse(
        device=ffi.string(row.id).decode(errors="replace"),
        limit_bytes=limit,
        used_bytes=used,
        refused=row.refused,
        over_bytes=max(used - limit, 0),
        peak_bytes=max(row.peak, used),
        compute_ratio=None if milli >= lib.HAL_LEDGER_MILLI else milli / lib.HAL_LEDGER_MILLI,
    )


def _rung(enforcer: int) -> Rung:
    return _RUNGS[enforcer] if enforcer < len(_RUNGS) else Rung.NONE


def _is_of(pid: int, uid: int) -> bool:
    """Whether this user may signal the process, by the rule of kill(2). Root may signal any."""
    if uid == 0:
        return True
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has gone
        return False
    real, _, saved, _ = status.partition("\nUid:")[2].split(maxsplit=4)[:4]
    return uid in (int(real), int(saved))


def _signal(pid: int, uid: int, number: int) -> None:
    """Raises ProcessLookupError and PermissionError."""
    pidfd = os.pidfd_open(pid)
    try:
        if _is_of(pid, uid):  # still, and the descriptor is of it
            signal.pidfd_send_signal(pidfd, number)
    finally:
        os.close(pidfd)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

"""AMD SMI's codes in hal's words: the one table."""

from __future__ import annotations

from hal.backend import GoneError, HalError, StateError, TemporaryError, UnsupportedError
from hal.model import Status

__all__ = [
    "DRIVER_NOT_LOADED",
    "INVALID_HANDLE",
    "NOT_FOUND",
    "NOT_INITIALISED",
    "NOT_SUPPORTED",
    "NO_DATA",
    "NO_PERMISSION",
    "code_of",
    "error",
    "status",
]

NOT_SUPPORTED = 2
NO_PERMISSION = 10
NOT_FOUND = 31
NOT_INITIALISED = 32
DRIVER_NOT_LOADED = 34
NO_DATA = 40

# What a handle from before a reset, a reload of the driver or a change of partitions gets.
INVALID_HANDLE = frozenset({NOT_FOUND, NOT_INITIALISED, DRIVER_NOT_LOADED})

_TABLE: dict[int, tuple[type[HalError], Status]] = {
    1: (HalError, Status.ERROR),  # invalid parameters
    NOT_SUPPORTED: (UnsupportedError, Status.UNSUPPORTED),  # not supported
    3: (UnsupportedError, Status.UNSUPPORTED),  # not yet implemented
    4: (StateError, Status.ERROR),  # library not loaded
    5: (UnsupportedError, Status.UNSUPPORTED),  # symbol not in the library
    8: (TemporaryError, Status.STALE),  # timeout
    9: (TemporaryError, Status.ERROR),  # retry
    NO_PERMISSION: (StateError, Status.DENIED),
    12: (TemporaryError, Status.ERROR),  # interrupted
    15: (TemporaryError, Status.ERROR),  # out of resources
    18: (StateError, Status.ERROR),  # initialisation
    30: (TemporaryError, Status.ERROR),  # busy
    NOT_FOUND: (GoneError, Status.ERROR),  # device not found
    NOT_INITIALISED: (StateError, Status.ERROR),  # not initialised
    33: (TemporaryError, Status.ERROR),  # no free slot
    DRIVER_NOT_LOADED: (StateError, Status.ERROR),
    NO_DATA: (TemporaryError, Status.ERROR),  # no data
    43: (StateError, Status.ERROR),  # unexpected data: a driver that is newer than the library
    51: (StateError, Status.ERROR),  # no driver
    54: (StateError, Status.ERROR),  # amdgpu restart failed
    55: (StateError, Status.UNSUPPORTED),  # setting not available
}


def code_of(failure: Exception) -> int | None:
    """AMD SMI's own code of what amdsmi raised; None when there is none."""
    code = getattr(failure, "err_code", None)
    return code if isinstance(code, int) else None


def _words(failure: Exception) -> str:
    """One line: amdsmi's own text of a library failure has a line break and tabs in it."""
    return str(getattr(failure, "err_info", "") or failure or type(failure).__name__)


def error(failure: Exception, what: str) -> HalError:
    """What amdsmi raised as hal's error; `what` names the call or the device."""
    code = code_of(failure)
    kind, _ = _TABLE.get(-1 if code is None else code, (HalError, Status.ERROR))
    return kind(f"{what}: {_words(failure)}", vendor_code=code)


def status(failure: Exception) -> tuple[Status, str]:
    """What amdsmi raised as the status of one figure, and AMD's own word."""
    code = code_of(failure)
    if code is None:  # not the library: an amdsmi of another version, without the call or the word
        missing = isinstance(failure, (AttributeError, KeyError))
        return Status.UNSUPPORTED if missing else Status.ERROR, f"{type(failure).__name__}: {failure}"
    return _TABLE.get(code, (HalError, Status.ERROR))[1], _words(failure)

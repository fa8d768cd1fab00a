"""The library's codes in hal's words: the one table."""

from __future__ import annotations

from hal.backend import GoneError, HalError, StateError, UnsupportedError
from hal.model import Status
from hal_null.driver import LibraryError

__all__ = ["error", "status"]

_UNKNOWN = (HalError, Status.ERROR)
_TABLE: dict[int | None, tuple[type[HalError], Status]] = {
    2: (UnsupportedError, Status.UNSUPPORTED),  # no such figure on this device
    4: (StateError, Status.DENIED),  # no permission
    6: (GoneError, Status.ERROR),  # no such device
}


def error(failure: LibraryError, what: str) -> HalError:
    """What the library raised as hal's error, for a call that failed as a whole."""
    kind, _ = _TABLE.get(failure.code, _UNKNOWN)
    return kind(f"{what}: {failure}", vendor_code=failure.code)


def status(failure: Exception) -> Status:
    """What the library raised as the status of one figure."""
    code = failure.code if isinstance(failure, LibraryError) else None
    return _TABLE.get(code, _UNKNOWN)[1]

"""The kernel's errno in hal's words: the one table."""

from __future__ import annotations

import errno

from hal.backend import GoneError, HalError, StateError, TemporaryError, UnsupportedError
from hal.model import Status

__all__ = ["error", "status"]

_TABLE: dict[int, tuple[type[HalError], Status]] = {
    errno.EACCES: (StateError, Status.DENIED),
    errno.EPERM: (StateError, Status.DENIED),
    errno.ENOENT: (UnsupportedError, Status.UNSUPPORTED),
    errno.ENODEV: (GoneError, Status.ERROR),
    errno.EOPNOTSUPP: (UnsupportedError, Status.UNSUPPORTED),
    errno.ENODATA: (TemporaryError, Status.ERROR),
    errno.EAGAIN: (TemporaryError, Status.ERROR),
    errno.EBUSY: (TemporaryError, Status.ERROR),
}


def error(failure: Exception, what: str) -> HalError:
    """What reading a file raised as hal's error."""
    code = failure.errno if isinstance(failure, OSError) else None
    kind, _ = _TABLE.get(code or 0, (HalError, Status.ERROR))
    return kind(f"{what}: {failure}", vendor_code=code)


def status(failure: Exception) -> Status:
    """What reading a file raised as the status of one figure."""
    code = failure.errno if isinstance(failure, OSError) else None
    return _TABLE.get(code or 0, (HalError, Status.ERROR))[1]

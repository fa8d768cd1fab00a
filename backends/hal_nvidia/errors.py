"""NVML's codes in hal's words: the one table."""

from __future__ import annotations

from hal.backend import GoneError, HalError, StateError, TemporaryError, UnsupportedError
from hal.model import Status

__all__ = [
    "ARGUMENT_VERSION_MISMATCH",
    "DRIVER_NOT_LOADED",
    "FUNCTION_NOT_FOUND",
    "GPU_IS_LOST",
    "INVALID_ARGUMENT",
    "LIB_RM_VERSION_MISMATCH",
    "NOT_FOUND",
    "NOT_SUPPORTED",
    "NO_PERMISSION",
    "RESET_REQUIRED",
    "TIMEOUT",
    "UNINITIALIZED",
    "UNKNOWN",
    "code_of",
    "error",
    "is_unsupported",
    "of_part",
    "status",
]

UNINITIALIZED = 1
INVALID_ARGUMENT = 2
NOT_SUPPORTED = 3
NO_PERMISSION = 4
NOT_FOUND = 6
DRIVER_NOT_LOADED = 9
TIMEOUT = 10
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST = 15
RESET_REQUIRED = 16
LIB_RM_VERSION_MISMATCH = 18
ARGUMENT_VERSION_MISMATCH = 25
UNKNOWN = 999

_TABLE: dict[int, tuple[type[HalError], Status]] = {
    UNINITIALIZED: (StateError, Status.ERROR),
    INVALID_ARGUMENT: (HalError, Status.ERROR),
    NOT_SUPPORTED: (UnsupportedError, Status.UNSUPPORTED),
    NO_PERMISSION: (StateError, Status.DENIED),
    NOT_FOUND: (GoneError, Status.ERROR),
    7: (TemporaryError, Status.ERROR),  # insufficient size: more processes than a moment ago
    8: (StateError, Status.ERROR),  # insufficient external power
    DRIVER_NOT_LOADED: (StateError, Status.ERROR),
    TIMEOUT: (TemporaryError, Status.STALE),
    11: (StateError, Status.ERROR),  # interrupt request issue
    12: (StateError, Status.ERROR),  # library not found
    FUNCTION_NOT_FOUND: (UnsupportedError, Status.UNSUPPORTED),
    GPU_IS_LOST: (GoneError, Status.ERROR),
    RESET_REQUIRED: (StateError, Status.ERROR),
    17: (StateError, Status.DENIED),  # blocked by the operating system: cgroup, virtualisation
    LIB_RM_VERSION_MISMATCH: (StateError, Status.ERROR),
    19: (TemporaryError, Status.ERROR),  # in use
    20: (TemporaryError, Status.ERROR),  # out of memory
    21: (TemporaryError, Status.ERROR),  # no data yet
    23: (TemporaryError, Status.ERROR),  # insufficient resources
    ARGUMENT_VERSION_MISMATCH: (UnsupportedError, Status.UNSUPPORTED),
    26: (UnsupportedError, Status.UNSUPPORTED),  # deprecated
    27: (TemporaryError, Status.ERROR),  # not ready
    28: (GoneError, Status.ERROR),  # no GPUs found
    29: (StateError, Status.ERROR),  # invalid state
}


def code_of(failure: Exception) -> int | None:
    """NVML's own code of what pynvml raised; None when it is not NVML's."""
    code = getattr(failure, "value", None)
    return code if isinstance(code, int) else None


def error(failure: Exception, what: str) -> HalError:
    """What pynvml raised as hal's error; `what` names the call or the device."""
    code = code_of(failure)
    kind, _ = _TABLE.get(-1 if code is None else code, (HalError, Status.ERROR))
    return kind(f"{what}: {failure}", vendor_code=code)


def status(failure: Exception) -> Status:
    """What pynvml raised as the status of one figure."""
    if isinstance(failure, AttributeError):  # a pynvml that is too old to know the call
        return Status.UNSUPPORTED
    code = code_of(failure)
    return _TABLE.get(-1 if code is None else code, (HalError, Status.ERROR))[1]


def of_part(code: int) -> int:
    """The code of one field or metric of a call that succeeded: there, a bad number is an unknown one."""
    return NOT_SUPPORTED if code == INVALID_ARGUMENT else code


def is_unsupported(failure: Exception) -> bool:
    """Whether another call, or an older version of it, may still have the answer."""
    return status(failure) is Status.UNSUPPORTED

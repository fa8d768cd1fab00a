"""Errors say what the caller should do; the vendor's own code stays on them::

HalError
├── TemporaryError     try again later: busy, timed out
├── StateError         fix something first: no driver, no permission, wrong mode
├── UnsupportedError   it will never work here
└── GoneError          the device is lost
"""

from __future__ import annotations

__all__ = ["GoneError", "HalError", "StateError", "TemporaryError", "UnsupportedError"]


class HalError(Exception):
    """Something hal could not do; ``str()`` is one sentence for the user.

    ``vendor_code`` is the vendor library's own status, where one was behind it.
    """

    def __init__(self, message: str, *, vendor_code: int | None = None) -> None:
        super().__init__(message)
        self.vendor_code = vendor_code


class TemporaryError(HalError):
    """Trying again later can help."""


class StateError(HalError):
    """Something has to be put right first; the message says what."""


class UnsupportedError(HalError):
    """This device or driver cannot do it."""


class GoneError(HalError):
    """The device is no longer there."""

"""What a scheduler's clients raise besides hal's own errors (hal.backend)."""

from __future__ import annotations

from hal.backend import HalError, StateError

__all__ = ["MalformedError", "Unreachable"]


class MalformedError(HalError):
    """The scheduler can make nothing of the request; the message names the field."""


class Unreachable(StateError):
    """No scheduler answers."""

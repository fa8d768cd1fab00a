"""What a command's exit code says (docs/cli.md lists them)."""

from __future__ import annotations

import sys

from hal.backend import GoneError, HalError, StateError, TemporaryError, UnsupportedError

__all__ = ["CommandNotFound", "CommandNotRunnable", "UsageError", "exit_code"]


class UsageError(HalError):
    """The command line does not make sense."""


class CommandNotFound(HalError):
    """The program to run is not there."""


class CommandNotRunnable(HalError):
    """The program to run is there, but not a program."""


# The first class that an error is an instance of gives the code; the shell's own come last.
_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (UsageError, 2),
    (GoneError, 3),
    (TemporaryError, 4),
    (UnsupportedError, 5),
    (StateError, 6),
    (CommandNotRunnable, 126),
    (CommandNotFound, 127),
    (HalError, 1),
)


def exit_code(error: HalError) -> int:
    client = sys.modules.get("hal.scheduler.client")  # not imported, it has raised nothing
    if client is not None and isinstance(error, client.MalformedError):
        return exit_code(UsageError(""))
    return next(code for kind, code in _CODES if isinstance(error, kind))

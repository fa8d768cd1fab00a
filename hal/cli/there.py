"""Runs a command in a lease on other nodes, as if it ran here: output, signals, exit code."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from hal.backend import HalError, TemporaryError
from hal.cli.exits import CommandNotFound, CommandNotRunnable, UsageError
from hal.cli.job import OVER, Reader, ended_early, pass_on
from hal.cli.output import note
from hal.scheduler.client import Client
from hal.scheduler.errors import Unreachable
from hal.scheduler.lease import HeldLease

__all__ = ["run_there"]

_POLL, _LONGEST_POLL = 0.1, 0.5  # seconds between looks at what it says: the longer, the less it says
_ANSWER = 3.0  # seconds after which it is asked again: a scheduler that was killed has lost the question
_PASSED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
# What has no meaning, or another one, on another machine.
_LEFT_HERE = ("HAL_", "LD_PRELOAD", "DISPLAY", "WAYLAND_DISPLAY", "SSH_", "DBUS_", "XDG_RUNTIME_DIR")


def run_there(held: HeldLease, command: Sequence[str], directory: Path) -> int:
    """Its exit code; of several members that of the first that fails. It ends with the lease.

    Raises CommandNotFound, CommandNotRunnable, GoneError when it was stopped, StateError when it could not be
    run.
    """
    heard: list[int] = []

    def hear(number: int, _frame: FrameType | None) -> None:
        heard.append(number)

    before = {number: signal.signal(number, hear) for number in _PASSED}
    try:
        with Client(held.where, timeout=10.0) as client:
            spec = _spec(command, directory)
            (id,) = client.call("submit", key=secrets.token_hex(16), lease=held.id, job=spec)["jobs"]
            return _follow(client, id, held, heard)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _spec(command: Sequence[str], directory: Path) -> dict[str, object]:
    from hal.scheduler.jobs.spec import JobSpec

    umask = os.umask(0)
    os.umask(umask)
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_LEFT_HERE) and name.isidentifier()
    }
    unsayable = [name for name, value in environment.items() if not _is_text(name + value)]
    for name in unsayable:
        del environment[name]
    if unsayable:
        names = ", ".join(map(ascii, unsayable))
        note(f"not sent to the other node, as what is in them is not text in UTF-8: {names}")
    there = str(directory)
    try:
        JobSpec(list(command), environment, there, umask=umask)
    except ValueError as error:
        raise UsageError(f"it cannot be run on another node: {error}") from None
    return {"command": list(command), "environment": environment, "directory": there, "umask": umask}


def _is_text(found: str) -> bool:
    try:
        found.encode()
    except UnicodeEncodeError:
        return False
    return True


def _follow(client: Client, id: str, held: HeldLease, heard: list[int]) -> int:
    """While the lease lives, a scheduler or node that does not answer, or is too busy, is waited for: the
    program goes on."""
    readers = [
        Reader(client, id, member, stream, patience=0)
        for member in range(len(held.variables))
        for stream in ("stdout", "stderr")
    ]
    pause = 0.0
    while True:
        try:
            while heard:
                client.call("signal_job", job=id, signal=heard[0])
                del heard[0]
            # Looked at first: what is read after its end is all that there is.
            job = client.call("wait_job", timeout=pause + _ANSWER, job=id, timeout_seconds=pause)["job"]
        except (Unreachable, TemporaryError):
            if held.lost is not None:
                raise
            time.sleep(_POLL)
            continue
        try:
            went_on = [pass_on(reader) for reader in readers]
        except TemporaryError:
            continue
        except HalError as error:
            if job["state"] not in OVER:
                time.sleep(_POLL)
                continue
            if job["exit_code"] is not None:
                note(f"the end of its output cannot be had: {error}")
            break
        if job["state"] in OVER and all(reader.end for reader in readers):
            break
        if any(went_on):
            pause = 0.0 if any(reader.full for reader in readers) else _POLL
        else:
            pause = min(max(2 * pause, _POLL), _LONGEST_POLL)
            if job["state"] in OVER:
                time.sleep(_POLL)
    if job["exit_code"] is None:
        raise ended_early(job)
    first = next((one for one in job["exits"] if one["error"]), None)
    if first is not None and first["code"] in (126, 127):
        raise (CommandNotFound if first["code"] == 127 else CommandNotRunnable)(first["error"])
    return int(job["exit_code"])

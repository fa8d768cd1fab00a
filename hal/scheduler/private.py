"""Starts the daemon that `hal run` needs when none runs: for this user only, gone when nobody needs it."""

from __future__ import annotations

import subprocess
import sys
import time

from hal.backend import StateError
from hal.scheduler.client import Client
from hal.scheduler.endpoint import Endpoint
from hal.scheduler.errors import Unreachable
from hal.scheduler.lender import RUN, Lender
from hal.scheduler.places import Places

__all__ = ["ensure_daemon"]

_START_SECONDS = 20.0


def ensure_daemon(endpoint: Endpoint) -> None:
    """Return once a daemon answers; start a private one if none does.

    Raises StateError with what the daemon said when it cannot start. One that HAL_SCHEDULER names is not
    started, nor one that already answers in a directory of somebody else's.
    """
    try:
        with Client(endpoint, timeout=5.0) as client:
            client.call("hello")
            return
    except Unreachable:
        if endpoint.places is None:
            raise
    places = endpoint.places
    Lender(places).check(RUN)
    places.make()
    deadline = time.monotonic() + _START_SECONDS
    started: subprocess.Popen[bytes] | None = None
    with Client(endpoint, timeout=1.0) as client:
        while True:
            try:
                client.call("hello")
                return
            except Unreachable:
                pass
            if started is None:
                try:
                    places.make()
                    started = _start(places)
                except (FileNotFoundError, StateError):
                    # One that was leaving may have removed the directory this very moment.
                    if time.monotonic() > deadline - _START_SECONDS + 2:
                        raise
            elif started.poll() not in (None, 0):
                raise StateError(f"the scheduler could not start: {_last_words(places)}")
            elif started.returncode == 0:
                started = None  # another command's daemon was first; or it left just now
            if time.monotonic() > deadline:
                raise StateError(
                    f"the scheduler did not answer within {_START_SECONDS:.0f} s; see {places.log}"
                )
            time.sleep(0.02)


def _start(places: Places) -> subprocess.Popen[bytes]:
    with places.log.open("wb") as log:
        # A session of its own: Ctrl-C is for the job, and the job may end before its lease does.
        return subprocess.Popen(
            [sys.executable, "-m", "hal", "serve", "--private"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
            env=places.environment(),
        )


def _last_words(places: Places) -> str:
    try:
        lines = places.log.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1].removeprefix("hal: ") if lines else "it said nothing"

"""Takes a lease for a command, in the queue if need be: who is told to end while waiting leaves the queue."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from hal.cli.output import note
from hal.cli.request import the_request
from hal.scheduler.lease import HeldLease, lease

__all__ = ["ending_in_order", "leased", "loss"]


def leased(options: argparse.Namespace, *, on_lost: Callable[[str], None]) -> HeldLease:
    """What the options ask for (hal/cli/request.py). Raises what ``lease`` does."""
    asked, preset = the_request(options)
    with ending_in_order():
        return lease(request=asked, preset=preset, on_lost=on_lost, on_wait=_say_that_it_waits)


def loss(reason: str) -> str:
    """A lease that is lost, in a sentence that says so once."""
    return reason if reason.startswith("the lease") else f"the lease is lost: {reason}"


@contextmanager
def ending_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP end this process by an exception, as Ctrl-C does, so that it takes back what it has
    asked for, or made.

    Over TCP nobody else would take a request back: a scheduler does not see the process at the other end.
    """
    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # under nohup SIGHUP means nothing
            before[number] = signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _say_that_it_waits(waiting: dict[str, Any]) -> None:
    note(f"waiting in queue '{waiting['queue']}' as {waiting['id']}: {waiting['reason']}")

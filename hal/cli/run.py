"""``hal run``."""

from __future__ import annotations

import argparse
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress

from hal.cli.child import supervise
from hal.cli.exits import UsageError
from hal.cli.output import note
from hal.inventory import Machine
from hal.scheduler.lease import lease
from hal.units import parse_bytes

_STOP_SECONDS = 5.0  # from SIGTERM to SIGKILL for a program whose lease is lost


def configure_run(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = (
        "Run a program in a slice of a device, or with a whole device when no memory is given.\n"
        "Its exit code, signals and streams are passed through. When the slice's memory is used up, the\n"
        "program gets its vendor's own out-of-memory error; other programs on the device do not notice."
    )
    parser.epilog = (
        "examples:\n  hal run --memory 20GiB -- python train.py\n"
        "  hal run --memory 8GiB --vendor amd -- ./serve --port 80\n"
        "  hal emulate mixed -- hal run --memory 20GiB -- ./program"
    )
    parser.add_argument(
        "--memory", metavar="SIZE", help="device memory, such as 20GiB; without it a whole device"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--vendor", metavar="NAME", help="a device of this vendor, as 'hal list' shows it")
    which.add_argument("--device", metavar="ID", help="this device")
    parser.add_argument("--name", default="", help="what to call the lease")
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM ARG …", help="what to run")
    return _run


def _run(options: argparse.Namespace) -> int:
    command = options.program[1:] if options.program[:1] == ["--"] else options.program
    if not command:
        raise UsageError(
            "there is nothing to run; write the program after --, as in: hal run --memory 8GiB -- PROGRAM"
        )
    try:
        memory = None if options.memory is None else parse_bytes(options.memory)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if len(options.name) > 64:
        raise UsageError("a name has at most 64 characters")
    device = options.device
    if device is not None:
        with Machine() as machine:
            device = machine.find(device).id

    child: list[subprocess.Popen[bytes]] = []

    def stop(reason: str) -> None:
        note(f"the lease is lost: {reason}; the program is stopped")
        for process in child:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
                threading.Timer(_STOP_SECONDS, process.kill).start()

    with lease(
        memory_bytes=memory, vendor=options.vendor, device=device, name=options.name, on_lost=stop
    ) as held:
        return supervise(command, held.environment(), started=child.append)

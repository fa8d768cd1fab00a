"""``hal run``."""

from __future__ import annotations

import argparse
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hal.cli.child import supervise
from hal.cli.exits import UsageError
from hal.cli.held import report_unheld
from hal.cli.output import note
from hal.cli.request import configure_request
from hal.cli.there import run_there
from hal.cli.waiting import leased, loss
from hal.scheduler.lease import HeldLease

_STOP_SECONDS = 5.0  # from SIGTERM to SIGKILL for a program whose lease is lost


def configure_run(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = (
        "Run a program in a slice of a device, or with a whole device when no memory is given.\n"
        "Its exit code, signals and streams are passed through. When the slice's memory is used up, the\n"
        "program gets its vendor's own out-of-memory error; other programs on the device do not notice.\n"
        "A gang runs the program once for each member (HAL_MEMBER says which it is): all at once, or none.\n"
        "Where the scheduler has other nodes, it may run there: with this environment, in the directory of\n"
        "this name, with output, signals and exit code passed through, and nothing to read from stdin."
    )
    parser.epilog = (
        "examples:\n  hal run --memory 20GiB -- python train.py\n"
        "  hal run --memory 8GiB --vendor amd -- ./serve --port 80\n"
        "  hal run --any 'vendor == \"nvidia\":20GiB' --any 'vendor == \"amd\":24GiB' -- ./train\n"
        "  hal emulate mixed -- hal run --memory 20GiB -- ./program"
    )
    configure_request(parser)
    parser.add_argument(
        "--directory", metavar="DIR", help="where it runs, there on another node, too (this one)"
    )
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM ARG …", help="what to run")
    return _run


def _run(options: argparse.Namespace) -> int:
    command = options.program[1:] if options.program[:1] == ["--"] else options.program
    if not command:
        raise UsageError(
            "there is nothing to run; write the program after --, as in: hal run --memory 8GiB -- PROGRAM"
        )
    directory = None if options.directory is None else Path.cwd() / options.directory
    child: list[subprocess.Popen[bytes]] = []
    elsewhere = told = False

    def stop(reason: str) -> None:
        nonlocal told
        if elsewhere or told:  # a job says itself what has become of it
            return
        told = True
        note(f"{loss(reason)}; the program is stopped")
        for process in child:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
                threading.Timer(_STOP_SECONDS, process.kill).start()

    def run_here(held: HeldLease) -> int:
        environments = [held.environment(member=number) for number in range(len(held.variables))]
        watch = report_unheld(command, environments[0]) if "HAL_SLICE" in environments[0] else None

        def started(process: subprocess.Popen[bytes]) -> None:
            child.append(process)
            if watch is not None:
                watch(process)

        return supervise(command, environments, directory=directory, started=started)

    with leased(options, on_lost=stop) as held:
        elsewhere = not held.is_here
        code = run_there(held, command, directory or Path.cwd()) if elsewhere else run_here(held)
        if code and not told:  # its node may have stopped it, before this process heard of that
            told = True
            if (reason := held.taken_away()) is not None:
                note(f"the lease was taken away: {reason}")
        return code

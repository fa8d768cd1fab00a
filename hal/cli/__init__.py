"""The command line: one module per command group, no logic of its own.

Modules are imported when their command is used: start-up is part of what a user feels.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from hal.backend import HalError, StateError
from hal.cli.exits import UsageError, exit_code

__all__ = ["main"]

# command: (module, one line for the overview)
_COMMANDS = {
    "list": ("hal.cli.inventory", "what is in this machine"),
    "show": ("hal.cli.inventory", "all about one device"),
    "sample": ("hal.cli.sample", "how the devices are doing"),
    "metrics": ("hal.cli.metrics", "every figure that can be read, and what it means"),
    "backend": ("hal.cli.backend", "the installed backends, and whether they hold to the rules"),
    "health": ("hal.cli.health", "which devices are well, and which are not"),
    "topo": ("hal.cli.topo", "how the devices are connected"),
    "doctor": ("hal.cli.doctor", "what works, what does not, and how to mend it"),
    "run": ("hal.cli.run", "run a program in a slice of a device"),
    "submit": ("hal.cli.submit", "queue a program, to run when there is room"),
    "job": ("hal.cli.job", "list, show, follow, end and wait for jobs"),
    "slice": ("hal.cli.slice", "make slices by hand, and put any program under one"),
    "lease": ("hal.cli.lease", "list, take, explain and end leases"),
    "queue": ("hal.cli.queue", "list and set the queues in which requests wait"),
    "serve": ("hal.cli.serve", "serve leases to this user's programs"),
    "status": ("hal.cli.status", "how the scheduler and its nodes do"),
    "node": ("hal.cli.node", "the scheduler's nodes: list, cordon, drain, label, forget"),
    "accounting": ("hal.cli.accounting", "who has used what, and at what price"),
    "events": ("hal.cli.events", "what has happened, and what happens"),
    "agent": ("hal.cli.agent", "lend this machine's devices through a scheduler elsewhere"),
    "keys": ("hal.cli.keys", "who may reach the scheduler from other machines"),
    "admin": ("hal.cli.admin", "back up, restore and check what it keeps on disk"),
    "bench": ("hal.cli.bench", "how many leases a second a scheduler grants here"),
    "simulate": ("hal.cli.simulate", "try the scheduler's placement on a cluster that is not there"),
    "emulate": ("hal.cli.emulate", "run a command on an emulated machine"),
    "capture": ("hal.cli.capture", "write this machine down, to emulate it elsewhere"),
    "demo": ("hal.cli.demo", "see slices lent and held, on what this machine has"),
}

# What a scheduler says before what is wrong: of a command it is the arguments that do not fit.
_FOR_CLIENTS = "the request's body does not fit: "

# These decide in the scheduler's core, which asks nothing of numpy's BLAS: its threads, one for each core and
# started with the first import, would only spin, and make a worker process slow to fork.
_WITHOUT_BLAS = ("admin", "serve", "simulate")
_BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")


class _Format(argparse.RawDescriptionHelpFormatter):
    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):  # its names are indented once more than is counted
            longest = max((len(name) for name in action.choices), default=0)
            self._action_max_length = max(self._action_max_length, longest + 4)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _Format} | options)

    def print_help(self, file: Any = None) -> None:
        print(self.format_help(), end="", file=file)  # argparse's own passes over what cannot be written

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UsageError(f"{_plainly(message)}; see '{self.prog} --help'")


def _plainly(message: str) -> str:
    """What argparse says, without the names of our functions, and with what was probably meant."""
    import re

    if found := re.fullmatch(r"(.*: )invalid _?\w+ value: (.*)", message):
        return f"{found[1]}{found[2]} is not a number that can be given here"
    if message.endswith(": expected one argument"):
        return f"{message}, which does not begin with '-'"
    if found := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
        import difflib

        near = difflib.get_close_matches(found[1], re.findall(r"[\w-]+", found[2]), 1)
        return f"{message}: did you mean '{near[0]}'?" if near else message
    return message


class _Version(argparse.Action):
    def __call__(self, *_: object, **__: object) -> None:
        from hal import __version__

        print(f"hal {__version__}")
        raise SystemExit(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code. No traceback for what a user can cause."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _have_streams()
    try:
        code = _told(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _discard_output()  # the reader has gone, as in `hal list | head -1`
        return 128 + signal.SIGPIPE
    except OSError as error:
        _discard_output()  # a full disk, for one
        if error.filename is None:
            _note(error.strerror or str(error))
            return 1
        _note(f"cannot use {os.fsdecode(error.filename)}: {error.strerror}")
        return exit_code(StateError(""))


def _told(arguments: list[str]) -> int:
    """The exit code of a command; what went wrong is told."""
    try:
        return _dispatch(arguments)
    except SystemExit as end:  # of --help: what it has printed is still to be written
        if isinstance(end.code, str):
            _note(end.code)
            return 1
        return end.code or 0
    except HalError as error:
        _note(str(error).removeprefix(_FOR_CLIENTS))
        return exit_code(error)
    except UnicodeEncodeError as error:
        _note(f"{error.object[:64]!a} is not text in UTF-8, and cannot be used here")
        return exit_code(UsageError(""))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _note(text: str) -> None:
    from hal.cli.output import note  # which most commands need, and --version does not

    note(text)


def _have_streams() -> None:
    """What the caller has closed, as in `hal list >&-`, goes nowhere: no file that is opened is to get its
    number, and with it what is printed. And what cannot be printed as it is, is printed in another way."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - until the process ends
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """What could not be written is not to be tried again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(arguments: list[str]) -> int:
    parser = _Parser(
        prog="hal",
        description="One interface to every accelerator.",
        epilog="examples:\n  hal list\n  hal run --memory 20GiB -- python train.py\n"
        "  hal emulate mixed -- hal list",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    # With `prog` it need not work out its own usage; and a command's parser is made when it is used.
    commands = parser.add_subparsers(prog="hal", dest="command", metavar="COMMAND", parser_class=_Parser)
    named = next((word for word in arguments if not word.startswith("-")), None)
    sole = named in _COMMANDS and arguments[0] == named
    for name, (module, summary) in _COMMANDS.items():
        if sole and name != named:
            continue
        command = commands.add_parser(name, help=summary)
        if name == named:
            for variable in _BLAS_THREADS if name in _WITHOUT_BLAS else ():
                os.environ.setdefault(variable, "1")
            configure = getattr(import_module(module), f"configure_{name}")
            command.set_defaults(run=configure(command))
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        commands.choices.get(options.command or "", parser).error(f"unknown arguments: {' '.join(unknown)}")
    if options.command is None:
        parser.print_help()
        return 0
    run: Callable[[argparse.Namespace], int] = options.run
    return run(options)

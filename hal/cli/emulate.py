"""``hal emulate``."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from hal.cli.child import adopt_orphans, end_orphans, supervise
from hal.cli.exits import UsageError
from hal.cli.output import print_json, print_table
from hal.emulation.description import load, names
from hal.emulation.run import emulated


def configure_emulate(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = (
        "Run a command on an emulated machine: NVML, AMD SMI, the CUDA driver API and HIP are stand-ins\n"
        "over one shared state, so unmodified tools and programs find devices and see one another's memory.\n"
        "The machine, and everything started on it, ends with the command."
    )
    parser.epilog = (
        "examples:\n  hal emulate mixed -- hal list\n  hal emulate dgx-h100 -- bash\n  hal emulate --list"
    )
    parser.add_argument("--list", action="store_true", help="list the machines that come with hal")
    parser.add_argument("--json", action="store_true", help="with --list: print JSON (schema hal.machines/1)")
    parser.add_argument("machine", nargs="?", metavar="MACHINE", help="its name, or a .toml file of your own")
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="-- COMMAND ARG …", help="what to run")
    return _emulate


def _emulate(options: argparse.Namespace) -> int:
    if options.list:
        return _list(options)
    if options.machine is None:
        raise UsageError(f"name a machine: {', '.join(names())}")
    command = options.program[1:] if options.program[:1] == ["--"] else options.program
    if not command:
        raise UsageError(
            f"there is nothing to run; write it after --: hal emulate {options.machine} -- hal list"
        )
    description = load(options.machine)
    adopt_orphans()
    with emulated(description) as env:
        try:
            return supervise(command, [env])
        finally:
            end_orphans()


def _list(options: argparse.Namespace) -> int:
    machines = [load(name) for name in names()]
    if options.json:
        print_json(
            "hal.machines/1", machines=[{"name": m.name, "description": m.description} for m in machines]
        )
    else:
        print_table(("MACHINE", "WHAT IT IS"), [(m.name, m.description) for m in machines])
    return 0

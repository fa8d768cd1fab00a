"""``hal capture``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from hal.cli.inventory import say_what_is_missing
from hal.emulation.capture import captured
from hal.inventory import Machine


def configure_capture(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = (
        "Write down this machine's accelerators as a machine description, which 'hal emulate' brings back\n"
        "anywhere: the same ids, slices and readings. What is not told by a driver is not in it."
    )
    parser.epilog = (
        "examples:\n  hal capture > node.toml && hal emulate ./node.toml -- hal list\n"
        "  hal capture --anonymous --output node.toml"
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="in place of the standard output")
    parser.add_argument(
        "--anonymous", action="store_true", help="replace UUIDs and serial numbers by made-up ones"
    )
    return _capture


def _capture(options: argparse.Namespace) -> int:
    with Machine() as machine:
        text = captured(machine.inventory().devices, machine.describe(), anonymous=options.anonymous)
        say_what_is_missing(machine)
    if options.output is None:
        print(text, end="")
    else:
        options.output.write_text(text, encoding="utf-8")
    return 0

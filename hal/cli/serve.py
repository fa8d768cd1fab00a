"""``hal serve``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from hal.cli.output import note
from hal.inventory import Machine
from hal.scheduler.agent.agent import Agent
from hal.scheduler.agent.slices import Slices
from hal.scheduler.daemon import AlreadyRunning, Daemon
from hal.scheduler.places import Places
from hal.scheduler.presets import load


def configure_serve(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = (
        "Lend this machine's devices and slices of them to this user's programs, until stopped.\n"
        "Leases are kept on disk: after a crash or a restart the next daemon takes them over."
    )
    parser.epilog = "example:\n  hal serve &\n  hal run --memory 20GiB -- python train.py"
    parser.add_argument(
        "--private", action="store_true", help="leave when the last lease has ended (used by 'hal run')"
    )
    parser.add_argument(
        "--lost-after",
        metavar="SECONDS",
        type=_seconds,
        default=5.0,
        help="a node that says nothing for so long is lost (default: 5)",
    )
    parser.add_argument(
        "--grace",
        metavar="SECONDS",
        type=_seconds,
        default=60.0,
        help="a lost node has so long to come back; then its leases end (default: 60)",
    )
    return _serve


def _serve(options: argparse.Namespace) -> int:
    places = Places()
    named = os.environ.get("HAL_PRESETS")
    presets = load(Path(named) if named else None)
    with Machine() as machine:
        agent = Agent(Slices(machine, places), places, "local")
        daemon = Daemon(
            agent,
            places,
            private=options.private,
            presets=presets,
            lost_seconds=options.lost_after,
            grace_seconds=options.grace,
        )
        try:
            daemon.run(ready=lambda: note(f"serving leases at {places.socket}"))
        except AlreadyRunning:
            if options.private:
                return 0  # another command was a moment earlier; its daemon serves this one too
            raise
    return 0


def _seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0.5 <= found <= 86400:
        raise argparse.ArgumentTypeError("it is a number of seconds between 0.5 and 86400")
    return found

"""``hal agent``."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Callable

from hal.cli.exits import UsageError
from hal.cli.output import note
from hal.inventory import Machine
from hal.scheduler.agent.agent import Agent
from hal.scheduler.agent.service import Service
from hal.scheduler.agent.slices import Slices
from hal.scheduler.endpoint import endpoint
from hal.scheduler.places import Places


def configure_agent(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = (
        "Lend this machine's devices to the leases of a scheduler that runs elsewhere, until stopped.\n"
        "What is lent stays lent when the agent stops: the next one takes it over. Cut off from its\n"
        "scheduler for longer than that waits for it, a node stops by itself all that it has lent."
    )
    parser.epilog = "example:\n  hal agent --scheduler tcp://head.example:7421 --label rack=a3"
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        default=os.environ.get("HAL_SCHEDULER"),
        help="tcp://HOST:PORT, or ipc://PATH on this machine (default: $HAL_SCHEDULER)",
    )
    parser.add_argument(
        "--node",
        metavar="NAME",
        default=socket.gethostname(),
        help="this node's name (default: its host name)",
    )
    parser.add_argument(
        "--label",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="tell the scheduler of it; repeatable",
    )
    return _agent


def _agent(options: argparse.Namespace) -> int:
    from hal import __version__

    address: str | None = options.scheduler
    if address is None:
        raise UsageError("which scheduler? write --scheduler tcp://HOST:PORT, or set HAL_SCHEDULER")
    scheduler = endpoint(address)
    labels = dict(_label(text) for text in options.label)
    places = Places()

    with Machine() as machine:
        agent = Agent(Slices(machine, places), places, options.node)
        Service(agent, places, scheduler.connect, version=__version__, labels=labels, say=note).run()
    return 0


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"'{text}' is no label; write NAME=VALUE")
    return name, value

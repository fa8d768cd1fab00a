"""``hal agent``."""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import zmq

from hal.backend import StateError
from hal.cli.exits import UsageError
from hal.inventory import Machine
from hal.scheduler.agent.agent import Agent
from hal.scheduler.agent.service import Service
from hal.scheduler.agent.slices import Slices
from hal.scheduler.config import Config, check_there, configuration_file, load_config, reloaded, usual_file
from hal.scheduler.endpoint import Endpoint
from hal.scheduler.errors import Unreachable
from hal.scheduler.jobs.launch import Launcher
from hal.scheduler.logs import Log
from hal.scheduler.places import Places
from hal.scheduler.process import tell_systemd
from hal.scheduler.sections import AgentSection
from hal.scheduler.security.keys import read_client_key


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
        help="tcp://HOST:PORT, or ipc://PATH on this machine (default: $HAL_SCHEDULER, the configuration's)",
    )
    parser.add_argument(
        "--key",
        metavar="FILE",
        help="for tcp: this node's key, as 'hal keys new NODE --role agent' made it at the scheduler "
        "(default: $HAL_KEY, the configuration's)",
    )
    parser.add_argument(
        "--node",
        metavar="NAME",
        help="this node's name (default: the configuration's, its key's, its host name)",
    )
    parser.add_argument(
        "--label",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="tell the scheduler of it; repeatable",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="the configuration (default: $HAL_CONFIG, then hal.toml in the runtime directory, then for "
        "root /etc/hal/hal.toml); read again at SIGHUP",
    )
    return _agent


def _agent(options: argparse.Namespace) -> int:
    from hal import __version__

    places = Places()
    started = whole = _configuration(options, places)
    config = whole.agent
    log = Log(json=whole.scheduler.log == "json", level=whole.scheduler.log_level)
    endpoint = _endpoint(options, config, whole.file)
    node = options.node or config.node or (endpoint.key.name if endpoint.key else socket.gethostname())
    if endpoint.key is not None and node != endpoint.key.name:
        raise UsageError(f"the key is that of node '{endpoint.key.name}', and this one is '{node}'")
    given = dict(_label(text) for text in options.label)
    launcher = Launcher(whole.jobs, own=False)

    def reread() -> dict[str, str]:
        nonlocal whole
        try:
            after = _configuration(options, places)
            check_there(whole, after)
            places.make()
        except StateError as wrong:
            log(f"the configuration stays as it is: {wrong}")
        else:
            log(reloaded(started, whole, after))
            whole, launcher.section, log.level = after, after.jobs, after.scheduler.log_level
        return whole.agent.labels | given

    _try(endpoint)
    with Machine() as machine:
        agent = Agent(Slices(machine, places), places, node, launcher, log)
        labels = config.labels | given
        service = Service(
            agent,
            places,
            endpoint.dial,
            scheduler=endpoint.address,
            version=__version__,
            labels=labels,
            say=log,
            reread=reread,
        )
        service.run(lambda: tell_systemd("READY=1"))
    return 0


def _configuration(options: argparse.Namespace, places: Places) -> Config:
    """What the file says; and whether programs of other users have to reach their slices."""
    config = load_config(configuration_file(options.config, places.directory))
    places.passable = os.geteuid() == 0 and bool(config.jobs.run_as)
    return config


def _endpoint(options: argparse.Namespace, config: AgentSection, file: Path | None) -> Endpoint:
    address = options.scheduler or os.environ.get("HAL_SCHEDULER") or config.scheduler
    if address is None:
        raise UsageError(
            "which scheduler? write --scheduler tcp://HOST:PORT, set HAL_SCHEDULER, or name it under [agent] "
            + (f"in {usual_file(Places().directory)} (not found)" if file is None else f"in {file}")
        )
    if not address.startswith(("tcp://", "ipc://")):
        raise UsageError(f"'{address}' is no address; write tcp://HOST:PORT or ipc://PATH")
    key = options.key or os.environ.get("HAL_KEY") or config.key
    return Endpoint(address, read_client_key(Path(key)) if key and address.startswith("tcp://") else None)


def _try(endpoint: Endpoint) -> None:
    """A key that is refused is said at once; a scheduler that is not there yet is waited for."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as probe, contextlib.suppress(Unreachable):
        probe.set(zmq.LINGER, 0)
        endpoint.connect(probe, 3.0)


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"'{text}' is no label; write NAME=VALUE")
    return name, value

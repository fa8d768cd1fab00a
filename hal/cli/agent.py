"""``hal agent``."""

from __future__ import annotations

import argparse
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
from hal.scheduler.jobs.launch import Launcher, missing_users
from hal.scheduler.logs import Log
from hal.scheduler.names import check_address, check_labels, check_node
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
    places.passable = whole.jobs.of_others
    config = whole.agent
    log = Log(json=whole.scheduler.log == "json", level=whole.scheduler.log_level)
    endpoint = _endpoint(options, config, whole.file)
    node = options.node if options.node is not None else config.node
    if node is None:
        node = endpoint.key.name if endpoint.key else socket.gethostname()
    given = dict(_label(text) for text in options.label)
    try:
        check_node(node)
        check_labels(given)
    except ValueError as wrong:
        raise UsageError(str(wrong)) from None
    if endpoint.key is not None and node != endpoint.key.name:
        raise UsageError(f"the key is that of node '{endpoint.key.name}', and this one is '{node}'")
    _warn(log, whole)
    launcher = Launcher(whole.jobs, own=False)

    def reread() -> dict[str, str]:
        nonlocal whole
        try:
            after = _configuration(options, places)
            check_there(whole, after)
            places.make(passable=after.jobs.of_others)
        except StateError as wrong:
            log(f"the configuration stays as it is: {wrong}")
        else:
            log(reloaded(started, whole, after))
            whole, launcher.section, log.level = after, after.jobs, after.scheduler.log_level
            _warn(log, after)
        return whole.agent.labels | given

    if (nobody := _nobody(endpoint)) is not None:
        log(f"{nobody}; it is asked again and again")
    with Machine() as machine:
        service = Service(
            Agent(Slices(machine, places), places, node, launcher, log),
            places,
            endpoint.dial,
            scheduler=endpoint.address,
            version=__version__,
            labels=config.labels | given,
            log=log,
            silent=nobody is not None,
            reread=reread,
        )
        service.run(lambda: tell_systemd("READY=1"))
    return 0


def _configuration(options: argparse.Namespace, places: Places) -> Config:
    return load_config(configuration_file(options.config, places.directory))


def _warn(log: Log, config: Config) -> None:
    for sentence in missing_users(config.jobs):
        log.warn(sentence)


def _endpoint(options: argparse.Namespace, config: AgentSection, file: Path | None) -> Endpoint:
    address: str | None = options.scheduler
    if address is None:
        address = os.environ.get("HAL_SCHEDULER") or config.scheduler
    if address is None:
        raise UsageError(
            "which scheduler? write --scheduler tcp://HOST:PORT, set HAL_SCHEDULER, or name it under [agent] "
            + (f"in {usual_file(Places().directory)} (not found)" if file is None else f"in {file}")
        )
    try:
        check_address(address)
    except ValueError as wrong:
        raise UsageError(str(wrong)) from None
    key: str | None = options.key
    if key is None:
        key = os.environ.get("HAL_KEY") or config.key
    return Endpoint(address, read_client_key(Path(key)) if key and address.startswith("tcp://") else None)


def _nobody(endpoint: Endpoint) -> Unreachable | None:
    """A scheduler that is not there yet is waited for. Raises StateError when it is, and refuses the key."""
    if not endpoint.somebody_listens():
        return endpoint.nobody()
    with zmq.Context() as context, context.socket(zmq.DEALER) as probe:
        probe.set(zmq.LINGER, 0)
        try:
            endpoint.connect(probe, 3.0)
        except Unreachable as nobody:
            return nobody
    return None


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"'{text}' is no label; write NAME=VALUE")
    return name, value

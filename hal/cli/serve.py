"""``hal serve``."""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from hal.inventory import Machine
from hal.scheduler.agent.agent import Agent
from hal.scheduler.agent.slices import Slices
from hal.scheduler.client import Client
from hal.scheduler.config import Config, configuration_file, keys_directory, load_config
from hal.scheduler.daemon import AlreadyRunning, Daemon
from hal.scheduler.errors import Unreachable
from hal.scheduler.jobs.launch import Launcher, missing_users
from hal.scheduler.logs import Log
from hal.scheduler.places import Places
from hal.scheduler.presets import load
from hal.scheduler.process import tell_systemd
from hal.scheduler.sections import LONGEST_SECONDS
from hal.scheduler.security.door import Door, group_id
from hal.scheduler.security.keys import Keys

_PRIVATE_LEAVES = 5.0  # seconds in which the scheduler of a 'hal run' that has ended goes


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
        help="a node that says nothing for so long is lost (default: the configuration's, 5)",
    )
    parser.add_argument(
        "--grace",
        metavar="SECONDS",
        type=_seconds,
        help="a lost node has so long to come back; then its leases end (default: the configuration's, 60)",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="the configuration (default: $HAL_CONFIG, then hal.toml in the runtime directory, then for "
        "root /etc/hal/hal.toml); read again at SIGHUP",
    )
    return _serve


def _serve(options: argparse.Namespace) -> int:
    from hal import __version__

    places = Places()
    config = _configuration(options, places)
    places.passable = config.jobs.of_others
    group = config.security.group
    if group is not None:
        places.group = group_id(group)
        os.umask(0o077)  # others can enter the directory: what is made in it is the daemon's alone
    keys = Keys(keys_directory(config, places.directory)) if config.scheduler.listen else None
    log = Log(json=config.scheduler.log == "json", level=config.scheduler.log_level)
    door = Door(config, places, keys, say=log)
    for sentence in missing_users(config.jobs):
        log.warn(sentence)

    with contextlib.ExitStack() as stack:
        machine = stack.enter_context(Machine())
        daemon = Daemon(
            Agent(Slices(machine, places), places, "local", Launcher(config.jobs, own=True), log),
            places,
            config=config,
            door=door,
            private=options.private,
            reread=lambda: _configuration(options, places),
            log=log,
            version=__version__,
        )

        def ready() -> None:
            where = [str(places.socket), *door.addresses]
            if config.scheduler.metrics:
                from hal.scheduler.pages import Pages  # a private daemon starts without Prometheus' library

                pages = stack.enter_context(Pages(config.scheduler.metrics, places))
                where.append(pages.url)
            log(f"serving leases at {', '.join(where)}")
            tell_systemd("READY=1")

        patience: float | None = None
        while True:
            try:
                daemon.run(ready)
                return 0
            except AlreadyRunning:
                if options.private:
                    return 0  # another command was a moment earlier; its daemon serves this one too
                if patience is None and _is_about_to_leave(places):  # asked once: asking keeps it here
                    patience = time.monotonic() + _PRIVATE_LEAVES
                if patience is None or time.monotonic() > patience:
                    raise
            time.sleep(0.1)


def _is_about_to_leave(places: Places) -> bool:
    """Whether it is only the scheduler of a 'hal run' that has ended. Raises AlreadyRunning if that lasts."""
    try:
        with Client(places, timeout=1.0) as client:
            there = client.call("hello")
    except Unreachable:
        return True  # it is on its way out, or another on its way in
    if there["private"] and (there["leases"] or there["waiting"]):
        raise AlreadyRunning(
            f"the scheduler that 'hal run' started (pid {there['pid']}) still serves {places.directory}: "
            "wait until its programs have ended, or end them"
        )
    return bool(there["private"])


def _configuration(options: argparse.Namespace, places: Places) -> Config:
    """What the file says, with what the command line says over it."""
    config = load_config(configuration_file(options.config, places.directory, private=options.private))
    named = os.environ.get("HAL_PRESETS")
    presets = load(Path(named) if named else None)
    scheduler = config.scheduler
    if options.lost_after is not None:
        scheduler = msgspec.structs.replace(scheduler, lost_seconds=options.lost_after)
    if options.grace is not None:
        scheduler = msgspec.structs.replace(scheduler, grace_seconds=options.grace)
    if options.private:
        scheduler = msgspec.structs.replace(scheduler, listen=(), metrics="")
    return msgspec.structs.replace(config, scheduler=scheduler, classes=presets | config.classes)


def _seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0.5 <= found <= LONGEST_SECONDS:
        raise argparse.ArgumentTypeError(f"it is a number of seconds between 0.5 and {LONGEST_SECONDS}")
    return found

"""``hal health``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from hal.backend import Group
from hal.cli.inventory import say_what_is_missing
from hal.cli.output import print_json, print_table
from hal.inventory import Machine
from hal.model import DeviceKind
from hal.telemetry.health import assess, load_policy

_GROUPS = (Group.ERRORS, Group.THROTTLE, Group.PCIE, Group.LINKS)


def configure_health(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = (
        "Say for each accelerator whether it is ok, degraded, failed or likely to fail, and why.\n"
        "What counts is a policy, as data; hal comes with one."
    )
    parser.epilog = "examples:\n  hal health\n  hal health --policy ours.toml --json"
    parser.add_argument("--policy", metavar="FILE", type=Path, help="in place of the one that comes with hal")
    parser.add_argument("--json", action="store_true", help="print JSON (schema hal.device-health/1)")
    return _health


def _health(options: argparse.Namespace) -> int:
    policy = load_policy(options.policy)
    with Machine() as machine:
        devices = [d for d in machine.inventory().devices if d.kind is not DeviceKind.CPU]
        events = machine.events()
        readings = machine.sample(_GROUPS, [device.id for device in devices])
        say_what_is_missing(machine)
    health = [assess(device.id, readings, events, policy) for device in devices]
    if options.json:
        print_json("hal.device-health/1", devices=health)
    elif health:
        print_table(
            ("DEVICE", "HEALTH", "WHY", "SEEN IN"),
            [
                row
                for one in health
                for row in (
                    [(one.subject, c.state.value, c.reason, c.evidence) for c in one.conditions]
                    or [(one.subject, one.state.value, "–", "–")]
                )
            ],
        )
    else:
        print("This machine has no accelerator that hal can see; 'hal doctor' says what it looked for.")
    return 0

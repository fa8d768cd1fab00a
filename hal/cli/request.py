"""What `hal run` and `hal lease take` ask for: options, or a request file, as one request."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import msgspec

from hal.backend import GoneError
from hal.cli.exits import UsageError
from hal.cli.node import nodes
from hal.cli.request_file import milli_of, read_request
from hal.inventory import Machine
from hal.scheduler.client import Client
from hal.scheduler.core.request import Alternative, InvalidError, Member, Request, Topology, check
from hal.scheduler.endpoint import Endpoint
from hal.units import parse_bytes, parse_seconds

__all__ = ["configure_request", "the_request"]


def configure_request(parser: argparse.ArgumentParser, *, waits: bool = False) -> None:
    """``waits``: whatever is asked for does, and need not say so."""
    slices = parser.add_argument_group("what")
    slices.add_argument(
        "--memory", metavar="SIZE", help="device memory, such as 20GiB; without it a whole device"
    )
    which = slices.add_mutually_exclusive_group()
    which.add_argument("--vendor", metavar="NAME", help="a device of this vendor, as 'hal list' shows it")
    which.add_argument("--device", metavar="ID", help="this device: its id, or a part of it")
    which.add_argument(
        "--select",
        metavar="SELECTOR",
        help="a device of which this holds: 'vendor == \"amd\" && memory >= 64Gi'",
    )
    which.add_argument(
        "--any",
        metavar="SELECTOR[:SIZE]",
        action="append",
        help="one alternative, the best first; again for more: --any 'vendor == \"nvidia\":20GiB'",
    )
    which.add_argument("--request", metavar="FILE", help="all that is wanted, as TOML (docs/scheduler.md)")
    slices.add_argument("--compute", metavar="PERCENT", help="share of the device's compute, such as 50%%")
    slices.add_argument("--count", type=int, metavar="N", help="so many devices (1)")
    slices.add_argument(
        "--topology",
        choices=[one.value for one in Topology],
        help="how several devices lie to one another (node)",
    )
    slices.add_argument(
        "--gang",
        type=int,
        metavar="N",
        help="start the program N times, each in a slice of its own, or not at all",
    )
    turn = parser.add_argument_group("when")
    parser.set_defaults(wait=waits)
    if not waits:
        turn.add_argument("--wait", action="store_true", help="wait in the queue when there is no room now")
    turn.add_argument("--queue", metavar="NAME", help="the queue (default)")
    turn.add_argument("--priority", type=int, metavar="N", help="within the queue, the greater first (0)")
    turn.add_argument("--class", dest="preset", metavar="NAME", help="training, inference, batch or your own")
    turn.add_argument("--duration", metavar="TIME", help="how long it takes at most, such as 30min")
    turn.add_argument("--deadline", metavar="TIME", help="how long it is worth waiting for")
    parser.add_argument("--name", default="", help="what to call the lease")


def the_request(options: argparse.Namespace) -> tuple[Request, str | None]:
    """The request, and the class that it is of.

    Raises UsageError that names the option or field, StateError that names the file and field; GoneError
    when the device named is not here.
    """
    try:
        request, preset = (
            read_request(Path(options.request)) if options.request else (_of_options(options), None)
        )
        changes: dict[str, Any] = {}
        for field in ("queue", "priority"):
            if getattr(options, field) is not None:
                changes[field] = getattr(options, field)
        if options.name:
            changes["name"] = options.name
        if options.wait:
            changes["wait"] = True
        for field in ("duration", "deadline"):
            if getattr(options, field) is not None:
                changes[f"{field}_ms"] = round(1000 * parse_seconds(getattr(options, field)))
        request = msgspec.structs.replace(request, **changes)
        check(request)
    except InvalidError as error:
        raise UsageError(_plainly(str(error))) from None
    except ValueError as error:
        raise UsageError(str(error)) from None
    return request, options.preset or preset


def _plainly(message: str) -> str:
    """Without the position where an option gave the only one that there is."""
    return message.removeprefix("members[0].alternatives[0].")


# ---- options ----------------------------------------------------------------------------------


def _of_options(options: argparse.Namespace) -> Request:
    plain: dict[str, Any] = {}
    if options.memory is not None:
        plain["memory_bytes"] = parse_bytes(options.memory)
    if options.compute is not None:
        plain["compute_milli"] = milli_of(options.compute)
    if options.count is not None:
        plain["count"] = options.count
    if options.topology is not None:
        plain["topology"] = Topology(options.topology)
    if options.any:
        alternatives = tuple(_alternative(text, plain) for text in options.any)
    else:
        alternatives = (Alternative(selector=_selector(options), **plain),)
    if options.gang is not None and options.gang < 1:
        raise ValueError(f"--gang {options.gang}: a gang has at least one member")
    return Request(members=(Member(alternatives, 1 if options.gang is None else options.gang),))


def _selector(options: argparse.Namespace) -> str:
    if options.device is not None:
        return f"id == {json.dumps(_device(options.device))}"
    if options.vendor is not None:
        return f"vendor == {json.dumps(options.vendor)}"
    return options.select or ""


def _device(text: str) -> str:
    """Its id, as the scheduler that is asked knows it: of this machine, or NODE/ID of a cluster.

    Raises GoneError when no device, or more than one, is meant.
    """
    where = Endpoint.chosen()
    if where.places is not None and "/" not in text:
        with Machine() as machine:
            return machine.find(text).id
    with Client(where) as client:
        there: dict[str, str] = {
            id
            if id.startswith(f"{node['id']}/")
            else f"{node['id']}/{id}": id  # the scheduler's own have none
            for node in nodes(client)
            for id in (device["id"] for device in node["devices"])
        }
    exact = [id for name, id in there.items() if text in (id, name)]
    meant = exact or [id for name, id in there.items() if text.lower() in name.lower()]
    if not meant:
        raise GoneError(f"there is no device '{text}' in this cluster; 'hal node list --devices' has all")
    if len(meant) > 1:
        raise GoneError(f"'{text}' fits {len(meant)} devices, such as {meant[0]} and {meant[1]}: write more")
    return meant[0]


def _alternative(text: str, plain: dict[str, Any]) -> Alternative:
    """``SELECTOR``, ``SELECTOR:SIZE`` or ``:SIZE``; a selector may itself have a colon."""
    selector, colon, size = text.rpartition(":")
    if colon:
        try:
            return Alternative(**(plain | {"selector": selector.strip(), "memory_bytes": parse_bytes(size)}))
        except ValueError:
            if not any(mark in size for mark in "\"'?()"):
                raise
    return Alternative(**(plain | {"selector": text.strip()}))

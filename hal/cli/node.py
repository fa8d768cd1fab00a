"""``hal node``: the nodes of the scheduler, and which of them to leave alone."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from hal.backend import GoneError, TemporaryError
from hal.cli.exits import UsageError
from hal.cli.output import counted, first_of, note, print_json, print_table
from hal.scheduler.client import Client
from hal.units import format_bytes, format_seconds

_LOOK = 0.5  # seconds from one look at a node that is drained to the next


def configure_node(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = (
        "List the scheduler's nodes, keep requests from one, have one left, label or forget them.\n"
        "A node that is cordoned keeps its leases and gets no others; a drained one loses them, too.\n"
        "Both hold for a device as well, and stay after a restart, until 'hal node uncordon'."
    )
    parser.epilog = (
        "examples:\n  hal node list\n  hal node drain node7 --reason 'new power supply' --wait\n"
        "  hal node uncordon node7\n  hal node cordon node3/nvidia:GPU-5d1f\n"
        "  hal node label node7 rack=a3 zone-\n  hal node forget node7"
    )
    verbs = parser.add_subparsers(
        dest="verb", metavar="list|cordon|drain|uncordon|label|forget", required=True
    )

    def verb(name: str, text: str, example: str) -> argparse.ArgumentParser:
        description, epilog = f"{text[0].upper()}{text[1:]}.", f"example:\n  {example}"
        return verbs.add_parser(name, help=text, description=description, epilog=epilog)

    listing = verb("list", "the nodes, how they are and what of them is lent", "hal node list --devices")
    listing.add_argument("node", metavar="NODE", nargs="?", help="only this one")
    listing.add_argument("--devices", action="store_true", help="a line for each device")
    cordoning = verb("cordon", "place nothing more on a node or device", "hal node cordon node7")
    draining = verb(
        "drain",
        "place nothing more on a node or device, and end what is there",
        "hal node drain node7 --wait",
    )
    draining.add_argument("--wait", action="store_true", help="until nothing of it is lent")
    uncordoning = verb("uncordon", "let it be used again", "hal node uncordon node7")
    for one in (cordoning, draining, uncordoning):
        one.add_argument("target", metavar="TARGET", help="a node, or a device's id or part of it")
    for one in (cordoning, draining):
        one.add_argument("--reason", default="", help="told to whoever asks why")
    labelling = verb(
        "label",
        'name what requests can ask of a node, as device.attributes["node"].NAME',
        "hal node label node7 rack=a3 zone-",
    )
    labelling.add_argument("node", metavar="NODE")
    labelling.add_argument(
        "labels", metavar="NAME=VALUE|NAME-", nargs="+", help="set one; NAME-: take it away"
    )
    forgetting = verb("forget", "take out a node that will not come back", "hal node forget node7")
    forgetting.add_argument("node", metavar="NODE")
    forgetting.add_argument(
        "--force", action="store_true", help="end the leases on it, even while it may still run something"
    )
    for one in (listing, cordoning, draining, uncordoning, labelling, forgetting):
        one.add_argument("--json", action="store_true", help="print JSON (schema hal.nodes/1)")
    return _run


def _run(options: argparse.Namespace) -> int:
    with Client() as client:
        match options.verb:
            case "list":
                return _list(client, options)
            case "label":
                changes = dict(_change(text) for text in options.labels)
                said = client.call("label", node=options.node, labels=changes)
                for text in _at_odds(said, changes):
                    note(text)
                return _said(client, said["node"], options)
            case "forget":
                said = client.call("forget", node=options.node, force=options.force)
                if said["leases"]:
                    note(f"{said['node']}: {counted(said['leases'], 'lease')} told to end")
                return _said(client, said["node"], options)
            case "uncordon":
                said = client.call("uncordon", target=options.target)
            case verb:
                said = client.call(verb, target=options.target, reason=options.reason)
        target: str = said["target"]
        if options.verb == "uncordon":
            _say_what_stays(client, target)
        if options.verb == "drain" and options.wait:
            _wait(client, target)
        elif said["leases"] and options.verb != "uncordon":
            going = "told to end" if options.verb == "drain" else "left there"
            note(f"{target}: {counted(said['leases'], 'lease')} {going}")
        return _said(client, target, options)


def _say_what_stays(client: Client, target: str) -> None:
    """A device that was cordoned by itself has to be uncordoned by itself, and so has its node."""
    for node in nodes(client):
        left = [device["id"] for device in node["devices"] if device["cordoned"] is not None]
        if node["id"] == target and left:
            note(f"{target}: still left by itself is {first_of(left)}")
        if node["reason"] is not None and any(device["id"] == target for device in node["devices"]):
            note(f"{target}: its node {node['id']} is still left")


def _change(text: str) -> tuple[str, str | None]:
    name, equals, value = text.partition("=")
    if equals and name:
        return name, value
    if not equals and text.endswith("-") and len(text) > 1:
        return text[:-1], None
    raise UsageError(f"'{text}' is no label; write NAME=VALUE, or NAME- to take it away")


def _at_odds(said: dict[str, Any], changes: dict[str, str | None]) -> Iterator[str]:
    """What was set here goes before what the node's hal.toml says, also when that is changed."""
    node = said["node"]
    for name, told in said.get("agents", {}).items():
        if name not in changes or changes[name] == told:
            continue
        if changes[name] is None:
            yield f"{node}: {name}={told} stays: its own hal.toml or --label says so"
        else:
            yield (
                f"{node}: this goes before {name}={told} of its own hal.toml or --label, "
                f"until: hal node label {node} {name}-"
            )


def nodes(client: Client) -> list[dict[str, Any]]:
    """All of them, page by page."""
    found: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None:
        page = client.call("nodes", after=after)
        found += page["nodes"]
        after = page["next"]
    return found


def _wait(client: Client, target: str) -> None:
    """Raises TemporaryError when somebody lets it be used again meanwhile."""
    at = _node_of(client, target)
    while True:
        try:
            (node,) = client.call("nodes", node=at)["nodes"]
        except GoneError:  # it was forgotten
            return
        device = next((one for one in node["devices"] if one["id"] == target), None)
        if at != target and device is None:
            return
        if (node["reason"] if device is None else device["cordoned"]) is None:
            raise TemporaryError(f"{target} is in use again: somebody has uncordoned it")
        if not (node["leases"] if device is None else device["lent_bytes"]):
            return
        time.sleep(_LOOK)


def _node_of(client: Client, target: str) -> str:
    """The node itself, or that of a device: looked for once, as there may be thousands."""
    try:
        client.call("nodes", node=target)
    except GoneError:
        found = (one["id"] for one in nodes(client) for device in one["devices"] if device["id"] == target)
        return next(found, target)
    return target


def _said(client: Client, target: str, options: argparse.Namespace) -> int:
    """The node after a change, for programs; a person is told nothing when all went well."""
    if options.json:
        there = [one for one in nodes(client) if target in (one["id"], *(d["id"] for d in one["devices"]))]
        print_json("hal.nodes/1", nodes=there)
    return 0


def _list(client: Client, options: argparse.Namespace) -> int:
    found = nodes(client) if options.node is None else client.call("nodes", node=options.node)["nodes"]
    if options.json:
        print_json("hal.nodes/1", nodes=found)
    elif options.devices or options.node is not None:
        print_table(
            ("NODE", "DEVICE", "MODEL", ">MEMORY", ">LENT", ">SHARE", "STATE"),
            [_device(node, device) for node in found for device in node["devices"]],
        )
    else:
        print_table(
            ("NODE", "STATE", ">DEVICES", ">LENT", ">LEASES", ">LAST BEAT", "VERSION", "LABELS"),
            [_row(node) for node in found],
        )
    return 0


def _row(node: dict[str, Any]) -> tuple[str, ...]:
    devices = node["devices"]
    beat = node["last_beat_seconds"]
    labels = ",".join(f"{name}={value}" for name, value in sorted(node["labels"].items()))
    return (
        node["id"],
        ", ".join([_because(node["state"], node["reason"]), *_apart(devices)]),
        str(len(devices)),
        str(sum(bool(device["lent_bytes"]) for device in devices)),
        str(node["leases"]),
        "now" if beat < 2 else f"{format_seconds(beat)} ago",
        node["agent_version"] or "–",
        labels or "–",
    )


def _apart(devices: list[dict[str, Any]]) -> list[str]:
    """Those that are not as their node is, as in "1 device failed"."""
    states = Counter(device.get("state", "up") for device in devices)
    return [
        f"{counted(number, 'device')} {state}" for state, number in sorted(states.items()) if state != "up"
    ]


def _because(state: str, reason: str | None) -> str:
    """What stands where nobody gave a reason is none."""
    return state if reason in (None, "cordoned", "drained") else f"{state} ({reason})"


def _device(node: dict[str, Any], device: dict[str, Any]) -> tuple[str, ...]:
    state = "usable" if node["state"] == "up" else node["state"]
    if device["cordoned"] is not None:
        state = _because(device.get("state", "cordoned"), device["cordoned"])
    if device["failed"] is not None:
        state = _because("failed", device["failed"])
    return (
        node["id"],
        device["id"],
        device["model"],
        format_bytes(device["memory_bytes"]),
        format_bytes(device["lent_bytes"]) if device["lent_bytes"] else "–",
        f"{device['lent_milli'] / 10:g} %" if device["lent_milli"] else "–",
        state,
    )

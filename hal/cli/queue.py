"""``hal queue list``, ``hal queue set`` and ``hal queue remove``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from hal.cli.exits import UsageError
from hal.cli.output import print_json, print_table
from hal.scheduler.client import Client
from hal.units import format_bytes, parse_bytes


def configure_queue(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = (
        "List the queues of this user's scheduler, make one, change what is set of one, or remove one.\n"
        "A queue can always have its quota back; it never goes beyond its limit."
    )
    parser.epilog = (
        "examples:\n  hal queue list\n  hal queue set research --quota 4 --limit 8 --weight 2\n"
        "  hal queue set research/vision --parent research --quota-memory 160GiB\n"
        "  hal queue set default --quota 0\n  hal queue remove research/vision"
    )
    verbs = parser.add_subparsers(dest="verb", metavar="list|set|remove", required=True)
    listing = verbs.add_parser(
        "list",
        help="the queues there are",
        description="The queues there are, what is used of each and how many wait.",
        epilog="example:\n  hal queue list --json",
    )
    setting = verbs.add_parser(
        "set",
        help="make a queue, or change one; what is not named stays as it is",
        description="Make a queue, or change one; what is not named stays as it is.",
        epilog="example:\n  hal queue set research --quota 4 --limit 8 --weight 2",
    )
    setting.add_argument("queue", metavar="QUEUE")
    setting.add_argument("--parent", metavar="QUEUE", help="the queue that it is a part of")
    setting.add_argument("--weight", type=int, metavar="N", help="its part of what is left over (1)")
    for what in ("quota", "limit"):
        setting.add_argument(f"--{what}", metavar="DEVICES", help=f"{what} in devices, such as 2.5; or none")
        setting.add_argument(f"--{what}-memory", metavar="SIZE", help=f"{what} in device memory; or none")
    removing = verbs.add_parser(
        "remove",
        help="remove a queue in which nothing is",
        description="Remove a queue in which nothing is, nor below it. What was used of it stays accounted.",
        epilog="example:\n  hal queue remove research/vision",
    )
    removing.add_argument("queue", metavar="QUEUE")
    for verb in (listing, setting, removing):
        verb.add_argument("--json", action="store_true", help="print JSON (schema hal.queues/1)")
    return _run


def _run(options: argparse.Namespace) -> int:
    with Client() as client:
        if options.verb == "list":
            queues = client.call("queues")["queues"]
        elif options.verb == "remove":
            queues = client.call("remove_queue", name=options.queue)["queues"]
        else:
            queues = client.call("set_queue", **_changes(options))["queues"]
    if options.json:
        print_json("hal.queues/1", queues=queues)
        return 0
    print_table(
        ("QUEUE", "PART OF", ">WEIGHT", ">QUOTA", ">LIMIT", ">USED", ">MEMORY USED", ">WAITING"),
        [
            (
                one["name"],
                one["parent"] or "–",
                str(one["weight"]),
                _amount(one["quota"]),
                _amount(one["limit"]),
                f"{one['used']['devices_milli'] / 1000:g}",
                format_bytes(one["used"]["memory_bytes"]) if one["used"]["memory_bytes"] else "0",
                str(one["waiting"]),
            )
            for one in queues
        ],
    )
    return 0


def _amount(limits: dict[str, Any]) -> str:
    parts = []
    if limits["devices_milli"] is not None:
        parts.append(f"{limits['devices_milli'] / 1000:g}")
    if limits["memory_bytes"] is not None:
        parts.append(format_bytes(limits["memory_bytes"]) if limits["memory_bytes"] else "0 B")
    return ", ".join(parts) or "–"


def _changes(options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {"name": options.queue, "parent": options.parent, "weight": options.weight}
    for what in ("quota", "limit"):
        found[f"{what}_devices_milli"] = _devices(getattr(options, what))
        found[f"{what}_memory_bytes"] = _bytes(getattr(options, f"{what}_memory"))
    return found


def _devices(text: str | None) -> int | None:
    if text is None or text == "none":
        return None if text is None else -1
    try:
        milli = round(1000 * float(text))
    except (ValueError, OverflowError):
        milli = -1
    if not 0 <= milli < 1 << 50:
        raise UsageError(f"'{text}' is no number of devices: write it like 4 or 2.5, or none")
    return milli


def _bytes(text: str | None) -> int | None:
    if text is None or text == "none":
        return None if text is None else -1
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise UsageError(str(error)) from None

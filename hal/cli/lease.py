"""``hal lease list`` and ``hal lease release``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from hal.cli.output import print_json, print_table
from hal.scheduler.client import Client
from hal.units import format_bytes, format_seconds


def configure_lease(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = "List the leases of this user's scheduler, or end one."
    parser.epilog = "examples:\n  hal lease list\n  hal lease release 5f3a91c0"
    verbs = parser.add_subparsers(dest="verb", metavar="list|release", required=True)
    listing = verbs.add_parser(
        "list",
        help="the leases there are",
        description="List the leases of this user's scheduler, and what each has in use.",
        epilog="example:\n  hal lease list --json | jq -r '.leases[].id'",
    )
    listing.add_argument("--json", action="store_true", help="print JSON (schema hal.leases/1)")
    ending = verbs.add_parser(
        "release",
        help="end a lease and what runs in it",
        description="End a lease and what runs in it.",
        epilog="example:\n  hal lease release 5f3a91c0",
    )
    ending.add_argument("lease", metavar="LEASE", help="its id, as 'hal lease list' shows it")
    ending.add_argument("--json", action="store_true", help="print JSON (schema hal.leases/1)")
    return lambda options: _list(options) if options.verb == "list" else _release(options)


def _list(options: argparse.Namespace) -> int:
    with Client() as client:
        leases: list[dict[str, Any]] = client.call("list")["leases"]
    if options.json:
        print_json("hal.leases/1", leases=leases)
    elif leases:
        print_leases(leases)
    else:
        print("There are no leases.")
    return 0


def print_leases(leases: list[dict[str, Any]]) -> None:
    print_table(
        ("LEASE", "NAME", "DEVICE", ">USED", ">MEMORY", "MEMORY HELD BY", "COMPUTE", "STATE", ">EXPIRES IN"),
        [
            (
                lease["id"],
                lease["name"],
                lease["device"],
                format_bytes(lease["used_bytes"]),
                format_bytes(lease["memory_bytes"]),
                lease["enforcement"]["memory"],
                "not enforced"
                if lease["enforcement"]["compute"] == "none"
                else lease["enforcement"]["compute"],
                lease["state"],
                format_seconds(lease["expires_in_seconds"]),
            )
            for lease in leases
        ],
    )


def _release(options: argparse.Namespace) -> int:
    with Client() as client:
        answer = client.call("release", lease=options.lease)
    if options.json:
        print_json("hal.leases/1", leases=[answer["lease"]])
    elif answer["ended"]:
        print(f"Lease {options.lease} has ended.")
    else:
        print(f"Lease {options.lease} is ending: its programs have been told to stop.")
    return 0

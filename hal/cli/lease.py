"""``hal lease``: list, take, explain and release."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any

from hal.backend import GoneError
from hal.cli.output import because, first_of, print_facts, print_json, print_table, visible
from hal.cli.request import configure_request
from hal.scheduler.client import Client
from hal.units import format_bytes, format_seconds


def configure_lease(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = (
        "List the leases of this user's scheduler and who waits for one, take, show, explain or end one."
    )
    parser.epilog = (
        "examples:\n  hal lease list\n  hal lease explain 5f3a91c0\n  hal lease release 5f3a91c0\n"
        "  hal lease take --any 'vendor == \"nvidia\":20GiB' --any 'vendor == \"amd\":24GiB' --wait"
    )
    verbs = parser.add_subparsers(dest="verb", metavar="list|take|show|explain|release", required=True)

    def verb(name: str, text: str, example: str) -> argparse.ArgumentParser:
        layout = argparse.RawDescriptionHelpFormatter
        description, epilog = f"{text[0].upper()}{text[1:]}.", f"example:\n  {example}"
        return verbs.add_parser(
            name, help=text, description=description, epilog=epilog, formatter_class=layout
        )

    listing = verb("list", "the leases there are, and who waits", "hal lease list --json | jq '.leases[].id'")
    taking = verb(
        "take", "take a lease, print it and hold it until interrupted", "hal lease take --memory 8GiB --wait"
    )
    configure_request(taking)
    showing = verb("show", "one lease, also what has become of one that has ended", "hal lease show 5f3a91c0")
    explaining = verb("explain", "why a request waits, and what would let it run", "hal lease explain 5f3a")
    ending = verb("release", "end a lease and what runs in it, or leave the queue", "hal lease release 5f3a")
    for one in (showing, explaining, ending):
        one.add_argument("lease", metavar="LEASE", help="its id, as 'hal lease list' shows it")
    schemas = {
        listing: "hal.leases/1",
        showing: "hal.leases/1",
        taking: "hal.lease/1",
        explaining: "hal.explanation/1",
    }
    for one, schema in {**schemas, ending: "hal.leases/1"}.items():
        one.add_argument("--json", action="store_true", help=f"print JSON (schema {schema})")
    runs = {"list": _list, "take": _take, "show": _show, "explain": _explain, "release": _release}
    return lambda options: runs[options.verb](options)


def _list(options: argparse.Namespace) -> int:
    with Client() as client:
        answer = client.listed("list", "leases", "waiting")
    leases = answer["leases"]
    waiting = answer["waiting"]
    if options.json:
        print_json("hal.leases/1", leases=leases, waiting=waiting)
        return 0
    if leases:
        print_leases(leases, owners=True)
    else:
        print("There are no leases.")
    if waiting:
        print()
        print_table(
            ("WAITING", "NAME", "OWNER", "QUEUE", ">PRIORITY", ">FOR"),
            [
                (
                    one["id"],
                    _name(one),
                    one.get("owner", ""),
                    one["queue"],
                    str(one["priority"]),
                    format_seconds(one["waited_seconds"]),
                )
                for one in waiting
            ],
        )
    return 0


def _take(options: argparse.Namespace) -> int:
    from hal.cli.waiting import leased, loss

    lost = threading.Event()
    with leased(options, on_lost=lambda _: lost.set()) as held:
        if options.json:
            print_json(
                "hal.lease/1", id=held.id, devices=held.devices, parts=held.parts, environments=held.variables
            )
        else:
            print(f"Lease {held.id} on {', '.join(held.devices)}. It ends with Ctrl-C.")
        sys.stdout.flush()
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            lost.wait()
    if held.lost is not None:
        raise GoneError(loss(held.lost))
    return 0


def _show(options: argparse.Namespace) -> int:
    with Client() as client:
        answer = client.call("lease", lease=options.lease)
    if options.json:
        kinds = {"leases": "lease", "waiting": "waiting", "over": "over"}
        print_json(
            "hal.leases/1", **{many: [answer[one]] if one in answer else [] for many, one in kinds.items()}
        )
    elif "over" in answer:
        print_facts(_of_over(answer["over"]))
    elif "lease" in answer:
        print_facts(_of_lease(answer["lease"]))
    else:
        print_facts(_of_waiting(answer["waiting"]))
    return 0


def _of_lease(one: dict[str, Any]) -> list[tuple[str, str]]:
    held = one["enforcement"]
    return [
        ("lease", one["id"]),
        ("name", one["name"]),
        ("owner", one.get("owner") or "–"),
        ("state", "suspended" if one["suspended"] else one["state"]),
        ("queue", f"{one['queue']}, priority {one['priority']}"),
        ("devices", ", ".join(one["devices"])),
        (
            "memory",
            f"{format_bytes(one['memory_bytes'])}, used {format_bytes(one['used_bytes'])}",
        ),
        ("held by", f"memory {held['memory']}, compute {held['compute']}"),
        ("expires in", _left(one)),
    ]


def _of_waiting(one: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("lease", one["id"]),
        ("name", one["name"]),
        ("owner", one.get("owner") or "–"),
        ("state", f"waiting for {format_seconds(one['waited_seconds'])}"),
        ("queue", f"{one['queue']}, priority {one['priority']}"),
        ("because", one["reason"]),
    ]


def _of_over(one: dict[str, Any]) -> list[tuple[str, str]]:
    def when(at: int | None) -> str:
        return "–" if at is None else f"{datetime.fromtimestamp(at / 1000).astimezone():%F %T}"

    return [
        ("lease", one["id"]),
        ("name", one["name"]),
        ("owner", one.get("owner") or "–"),
        (
            "state",
            {"withdrawn": "waits no longer", "ending": "is ending", "ended": "has ended"}[one["state"]],
        ),
        ("queue", one["queue"]),
        ("because", because(one["cause"], one["reason"])),
        ("by", one["by"] or "–"),
        ("devices", ", ".join(one["devices"]) or "–"),
        ("granted", when(one["granted_ms"])),
        ("released" if one["cause"] == "released" else "taken away", when(one["at_ms"])),
        ("ended", when(one["ended_ms"])),
    ]


def _explain(options: argparse.Namespace) -> int:
    with Client() as client:
        told = client.call("explain", lease=options.lease)["explanation"]
    if options.json:
        print_json("hal.explanation/1", **told)
        return 0
    ahead = f", {told['ahead']} before it in its queue" if told["ahead"] else ""
    print(f"{told['id']} is {told['state']}{ahead}")
    for reason in told["reasons"]:
        print(f"  {visible(reason)}")
    print(f"  nearest: {visible(told['nearest'])}")
    return 0


def _name(one: dict[str, Any]) -> str:
    """What somebody has called it."""
    return str(one["name"]) if one["name"] != one["id"] else ""


def _left(one: dict[str, Any]) -> str:
    """One that is ending expires no more."""
    return "–" if one["state"] == "ending" else format_seconds(one["expires_in_seconds"])


def print_leases(leases: list[dict[str, Any]], *, owners: bool = False) -> None:
    whose = ("OWNER",) if owners else ()
    columns = (">USED", ">MEMORY", "MEMORY HELD BY", "COMPUTE", "STATE", ">EXPIRES IN")
    print_table(
        ("LEASE", "NAME", *whose, "DEVICE", *columns),
        [
            (
                lease["id"],
                _name(lease),
                *(lease.get("owner", "") for _ in whose),
                first_of(lease["devices"]),
                format_bytes(lease["used_bytes"]),
                format_bytes(lease["memory_bytes"]),
                lease["enforcement"]["memory"],
                "no limit" if lease["enforcement"]["compute"] == "none" else lease["enforcement"]["compute"],
                "suspended" if lease["suspended"] else lease["state"],
                _left(lease),
            )
            for lease in leases
        ],
    )


def _release(options: argparse.Namespace) -> int:
    with Client() as client:
        answer = client.call("release", lease=options.lease)
    if "waiting" in answer:
        if options.json:
            print_json("hal.leases/1", leases=[], waiting=[answer["waiting"]])
        else:
            print(f"{options.lease} waits no longer.")
    elif options.json:
        print_json("hal.leases/1", leases=[answer["lease"]])
    elif answer["ended"]:
        print(f"Lease {options.lease} has ended.")
    else:
        print(f"Lease {options.lease} is ending: its programs have been told to stop.")
    return 0

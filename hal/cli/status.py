"""``hal status``: how the scheduler, its nodes and its queues do, on one screen."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from hal.cli.output import print_facts, print_json
from hal.scheduler.client import Client
from hal.units import format_bytes, format_seconds

_SLOW = 0.1  # seconds for a commit, from which on it is worth a word


def configure_status(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = "How the scheduler does, and its nodes, devices, leases and queues together."
    parser.epilog = "examples:\n  hal status\n  hal status --json | jq .nodes"
    parser.add_argument("--json", action="store_true", help="print JSON (schema hal.status/1)")
    return _run


def _run(options: argparse.Namespace) -> int:
    with Client() as client:
        status = client.call("status")
    if options.json:
        print_json("hal.status/1", **status)
    else:
        print_facts(described(status))
    return 0


def described(status: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and what is said of each."""
    devices, leases = status["devices"], status["leases"]
    up = format_seconds((status["now_ms"] - status["started_ms"]) / 1000)
    lent, size = format_bytes(devices["lent_bytes"]), format_bytes(devices["memory_bytes"])
    unusable = devices["total"] - devices["usable"]
    found = [
        ("scheduler", f"hal {status['version']}, for {up}, process {status['pid']}, term {status['term']}"),
        *(("trouble", status[name]) for name in ("trouble", "unnoted") if status.get(name)),
        ("nodes", _counts(status["nodes"])),
        (
            "devices",
            f"{devices['total']}, {devices['lent']} of them lent"
            + (f", {unusable} cordoned or failed" if unusable else ""),
        ),
        ("memory", f"{lent if devices['lent_bytes'] else 0} of {size} lent" if devices["total"] else "–"),
        ("leases", _counts(leases)),
        ("waiting", _waiting(status)),
    ]
    commits = status["commits"]
    late = sum(
        count
        for bound, count in zip([*commits["bounds"], None], commits["counts"], strict=True)
        if bound is None or bound > _SLOW
    )
    if late:
        found.append(("slow disk", f"{late} of {sum(commits['counts'])} commits took over {_SLOW:g} s"))
    return found


def _waiting(status: dict[str, Any]) -> str:
    if not status["waiting"]:
        return "none"
    longest = format_seconds(status["longest_wait_seconds"])
    queues = {one["name"]: one["waiting"] for one in status["queues"] if one["waiting"]}
    where = ", ".join(f"{count} in {name}" for name, count in queues.items())
    return f"{where}; the longest for {longest}"


def _counts(counts: dict[str, int]) -> str:
    """ "3 up, 1 lost"."""
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()) if count) or "none"

"""``hal events``: what has happened, and with -f what happens."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Any

from hal.cli.exits import UsageError
from hal.cli.output import because, first_of, note, visible
from hal.scheduler.client import Client
from hal.scheduler.errors import Unreachable
from hal.units import parse_seconds

_WAIT = 20.0  # seconds that the scheduler keeps a question before it says that nothing has happened
_AGAIN = 1.0  # seconds from one try to reach a scheduler that is gone to the next
_PAGE = 500
_BEFORE = 10  # events that who follows is shown first


def configure_events(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = (
        "What has happened to leases, nodes and devices: what the scheduler keeps of it since its start.\n"
        "Each event has a number, with which a program goes on where it stopped, --after it."
    )
    parser.epilog = (
        "examples:\n  hal events\n  hal events -f\n  hal events --node node7 --since 2h\n"
        "  hal events -f --kind node_lost,device_failed\n  hal events -f --json --after 4294967301"
    )
    parser.add_argument(
        "-f",
        "--follow",
        action="store_true",
        help="the latest ten (or all since --after or --since), and then what happens, until interrupted",
    )
    parser.add_argument("--after", metavar="NUMBER", type=int, help="only what came after this event")
    parser.add_argument("--lease", metavar="LEASE", help="only of this lease, or who waits for it")
    parser.add_argument("--node", metavar="NODE", help="only of this node, its devices and leases on it")
    parser.add_argument("--kind", metavar="KIND[,KIND…]", help="only of these kinds, as in granted,ended")
    parser.add_argument(
        "--user",
        metavar="USER",
        help="only of this user's leases: for admins and readers, others have their own",
    )
    parser.add_argument(
        "--since", metavar="TIME", help="not before: so long ago, as in 2h, or since 2026-01-31[T12:00]"
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON, an object a line (schema hal.event/1)"
    )
    return _run


def _run(options: argparse.Namespace) -> int:
    after: int = options.after or 0
    wanted: dict[str, Any] = {"lease": options.lease, "node": options.node, "owner": options.user}
    wanted["kinds"] = None if options.kind is None else [one.strip() for one in options.kind.split(",")]
    wanted["since_ms"] = None if options.since is None else _since(options.since)
    wanted = {name: value for name, value in wanted.items() if value is not None}
    told, told_gone = 0, False
    with Client() as client:
        if options.follow and options.after is None and options.since is None:
            latest: deque[dict[str, Any]] = deque(maxlen=_BEFORE)
            after = _read(client, after, wanted, latest)
            for event in latest:
                print(_as_json(event) if options.json else line(event), flush=True)
        while True:
            try:
                wait = _WAIT if options.follow else 0.0
                page = client.call(
                    "watch", after=after, limit=_PAGE, timeout_seconds=wait, timeout=wait + 5, **wanted
                )
            except Unreachable as error:
                if not options.follow or not after:
                    raise
                if not told_gone:
                    note(f"{error}; waiting for it")
                told_gone = True
                time.sleep(_AGAIN)
                continue
            told_gone = False
            if page["lost"] and after:
                note("some events are no longer kept")
            for event in page["events"]:
                print(_as_json(event) if options.json else line(event), flush=True)
            told += len(page["events"])
            after = page["next"]
            if not page["events"] and not options.follow:
                if not told:
                    note("there is no such event" if wanted or options.after else "nothing has happened yet")
                return 0


def _read(client: Client, after: int, wanted: dict[str, Any], to: deque[dict[str, Any]]) -> int:
    """All that there is until now, page by page; the number to go on from."""
    while True:
        page = client.call("watch", after=after, limit=_PAGE, timeout_seconds=0.0, **wanted)
        to.extend(page["events"])
        after = page["next"]
        if not page["events"]:
            return after


def _since(text: str) -> int:
    """Milliseconds since 1970. Raises UsageError."""
    with contextlib.suppress(ValueError):
        return round((time.time() - parse_seconds(text)) * 1000)
    with contextlib.suppress(ValueError, OverflowError):
        return max(round(datetime.fromisoformat(text).timestamp() * 1000), 0)
    raise UsageError(f"'{text}' is no time: write it like 30min, 2h, 2026-01-31 or 2026-01-31T12:00")


def _as_json(event: dict[str, Any]) -> str:
    return json.dumps({"schema": "hal.event/1", **event})


def line(event: dict[str, Any]) -> str:
    """One event for a person: when, what, about whom, why."""
    when = datetime.fromtimestamp(event["at_ms"] / 1000).astimezone()
    about = event.get("lease") or event.get("node") or event.get("name") or event.get("queue", "")
    parts = [when.strftime("%F %T"), f"{event['kind'].replace('_', ' '):<11}"]
    parts += [about] if about else []
    name = event.get("name", "")
    parts += [name] if name and name != about else []
    ids = event.get("devices", ())
    parts += [first_of(ids)] if ids else []
    reason = (
        event.get("reason", "").removeprefix(f"room on {', '.join(ids)}").strip()
    )  # they are there already
    reason = "" if reason == event["kind"] else reason  # that of whoever gave none
    why = because(event.get("cause", ""), reason)
    return visible("  ".join([*parts, why] if why else parts))

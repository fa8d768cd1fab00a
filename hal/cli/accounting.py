"""``hal accounting``: who has used what, for how long, at what price."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from hal.cli.exits import UsageError
from hal.cli.output import print_json, print_table
from hal.units import parse_seconds


def configure_accounting(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = (
        "Who has used what, for how long, and at what price: leases that have ended, with those of jobs,\n"
        "and once a day those that go on. A slice counts as its share of the device. Everybody sees what\n"
        "is theirs, admins and readers all."
    )
    parser.epilog = (
        "examples:\n  hal accounting --since 30d\n  hal accounting --by queue,model --since 2026-01-01\n"
        "  hal accounting --user alice --by day --json"
    )
    parser.add_argument(
        "--user", metavar="NAME", help="only this user's: the key's name, or the local user's"
    )
    parser.add_argument(
        "--since", metavar="DAY", default="", help="from 2026-01-31, or for so long, as in 30d"
    )
    parser.add_argument("--until", metavar="DAY", default="", help="up to this day (UTC)")
    kinds = ", ".join(_HEADS)
    parser.add_argument(
        "--by", metavar="KINDS", default="user", help=f"a row for each of these, by commas: {kinds} (user)"
    )
    parser.add_argument("--by-day", action="store_true", help="the same as --by day,user")
    parser.add_argument("--json", action="store_true", help="print JSON (schema hal.accounting/1)")
    return _accounting


_HEADS = {
    "day": ">DAY",
    "user": "USER",
    "queue": "QUEUE",
    "node": "NODE",
    "vendor": "VENDOR",
    "model": "MODEL",
}
_SUMS = ("leases", "jobs", "device_seconds", "memory_byte_seconds", "price")


def _accounting(options: argparse.Namespace) -> int:
    from hal.cli.job import reaching

    since, until = _day(options.since), _day(options.until)
    if since and until and since > until:
        raise UsageError(f"there are no days from {since} to {until}")
    by = ["day", "user"] if options.by_day else _kinds(options.by)
    with reaching() as client:
        rows = client.call("accounting", since=since, until=until, owner=options.user, by=by)["accounts"]
    if options.json:
        print_json("hal.accounting/1", since=since, until=until, accounts=rows)
        return 0
    if not rows:
        print("Nothing has been used.")
        return 0
    names = ["owner" if kind == "user" else kind for kind in by]
    told = [(*(one[name] or "–" for name in names), *_told(one)) for one in rows]
    if len(rows) > 1:
        total = {name: sum(one[name] for one in rows) for name in _SUMS}
        told.append(("total", *[""] * (len(names) - 1), *_told(total)))
    heads = [_HEADS[kind] for kind in by]
    print_table((*heads, ">LEASES", ">JOBS", ">DEVICE HOURS", ">GiB HOURS", ">PRICE"), told)
    return 0


def _told(one: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(one["leases"]),
        str(one["jobs"]),
        f"{one['device_seconds'] / 3600:.3f}",
        f"{one['memory_byte_seconds'] / 3600 / (1 << 30):.3f}",
        f"{one['price']:.4f}",
    )


def _kinds(text: str) -> list[str]:
    found = [one.strip() for one in text.split(",")]
    for one in found:
        if one not in _HEADS:
            raise UsageError(f"there is no '{one}' to tell by; there are {', '.join(_HEADS)}")
    if len(set(found)) < len(found):
        raise UsageError("--by names something twice")
    return found


def _day(text: str) -> str:
    if not text:
        return ""
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        try:
            return f"{datetime.strptime(text, '%Y-%m-%d').replace(tzinfo=UTC):%Y-%m-%d}"
        except ValueError:
            raise UsageError(f"there is no day '{text}'") from None
    try:
        return f"{datetime.now(UTC) - timedelta(seconds=parse_seconds(text)):%Y-%m-%d}"
    except (ValueError, OverflowError):
        raise UsageError(f"'{text}' is no day: write it like 2026-01-31, or 30d for so long ago") from None

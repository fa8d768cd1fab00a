"""``hal accounting``: who has used what, for how long, at what price."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from hal.cli.exits import UsageError
from hal.cli.output import print_json, print_table
from hal.units import format_bytes, parse_seconds


def configure_accounting(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = (
        "Who has used what, for how long, and at what price: leases that have ended, with those of jobs.\n"
        "A slice counts as its share of the device. Everybody sees what is theirs, admins and readers all."
    )
    parser.epilog = "examples:\n  hal accounting --since 30d\n  hal accounting --user alice --by-day --json"
    parser.add_argument(
        "--user", metavar="NAME", help="only this user's: the key's name, or the local user's"
    )
    parser.add_argument(
        "--since", metavar="DAY", default="", help="from 2026-01-31, or for so long, as in 30d"
    )
    parser.add_argument("--until", metavar="DAY", default="", help="up to this day (UTC)")
    parser.add_argument("--by-day", action="store_true", help="each day by itself")
    parser.add_argument("--json", action="store_true", help="print JSON (schema hal.accounting/1)")
    return _accounting


def _accounting(options: argparse.Namespace) -> int:
    from hal.cli.job import reaching

    since, until = _day(options.since), _day(options.until)
    with reaching() as client:
        rows = client.call("accounting", since=since, until=until, owner=options.user)["accounts"]
    if not options.by_day:
        rows = _together(rows)
    if options.json:
        print_json("hal.accounting/1", since=since, until=until, accounts=rows)
        return 0
    if not rows:
        print("Nothing has been used.")
        return 0
    day = [">DAY"] if options.by_day else []
    print_table(
        (*day, "USER", ">LEASES", ">JOBS", ">DEVICE HOURS", ">MEMORY HOURS", ">PRICE"),
        [
            (
                *([one["day"]] if options.by_day else []),
                one["owner"],
                str(one["leases"]),
                str(one["jobs"]),
                f"{one['device_seconds'] / 3600:.3f}",
                format_bytes(round(one["memory_byte_seconds"] / 3600)),
                f"{one['price']:.4f}",
            )
            for one in rows
        ],
    )
    return 0


def _together(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each user."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        there = found.setdefault(row["owner"], {"owner": row["owner"]})
        for name, value in row.items():
            if name not in ("day", "owner"):
                there[name] = there.get(name, 0) + value
    return [found[owner] for owner in sorted(found)]


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

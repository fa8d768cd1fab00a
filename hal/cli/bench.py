"""``hal bench daemon``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from hal.backend import HalError
from hal.cli.exits import UsageError
from hal.cli.output import print_json, print_table
from hal.cli.waiting import ending_in_order
from hal.scheduler.bench.figures import PEERS, PEERS_SOURCE, Figure, missing
from hal.scheduler.bench.load import own_key
from hal.scheduler.bench.rows import ROWS, at_address
from hal.scheduler.endpoint import Endpoint


def configure_bench(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = (
        "Measure what a scheduler daemon does on this machine.\n"
        "It starts daemons of its own in a temporary directory, over emulated machines; nothing real is lent."
    )
    parser.epilog = "examples:\n  hal bench daemon\n  hal bench daemon --only grant --seconds 10 --json"
    verbs = parser.add_subparsers(dest="verb", metavar="daemon", required=True)
    daemon = verbs.add_parser(
        "daemon",
        help="durable acquire and release, from outside",
        description="How many leases a second a daemon grants and takes back, durably, and how soon it\n"
        "answers; beside what the figures are to be, and what other schedulers were measured at.",
        epilog="examples:\n  hal bench daemon\n  hal bench daemon --directory /var/tmp --json",
    )
    daemon.add_argument("--only", metavar="ROWS", help=f"of {', '.join(ROWS)}; several with commas")
    daemon.add_argument("--seconds", type=float, default=5.0, metavar="S", help="for each load (5)")
    daemon.add_argument("--directory", metavar="DIR", help="on whose disk the stores are (the temporary one)")
    daemon.add_argument(
        "--address", metavar="ADDRESS", help="measure a daemon that runs, such as ipc:///run/hal/…"
    )
    daemon.add_argument("--json", action="store_true", help="print JSON (schema hal.bench-daemon/1)")
    return _daemon


def _daemon(options: argparse.Namespace) -> int:
    if not 0.1 <= options.seconds <= 600:
        raise UsageError("--seconds is between 0.1 and 600")
    names = list(ROWS) if options.only is None else options.only.split(",")
    if unknown := [name for name in names if name not in ROWS]:
        raise UsageError(f"there is no row '{unknown[0]}'; there are {', '.join(ROWS)}")
    if options.directory is not None:
        if not Path(options.directory).is_dir():
            raise UsageError(f"there is no directory {options.directory}")
        tempfile.tempdir = options.directory
    with ending_in_order():
        figures = list(_figures(options, names))
    machine = {
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "python": sys.version.split()[0],
        "directory": tempfile.gettempdir(),
        "file_system": _file_system(Path(tempfile.gettempdir())),
    }
    if options.json:
        peers = [{"name": p.name, "what": p.what, "one": p.one, "eight": p.eight} for p in PEERS]
        shown = [{field: getattr(f, field) for field in f.__struct_fields__} for f in figures]
        print_json(
            "hal.bench-daemon/1", machine=machine, figures=shown, peers=peers, peers_source=PEERS_SOURCE
        )
        return 0
    print_table(
        ("DURABLE ACQUIRE + RELEASE", ">VALUE", "TARGET", "VERDICT", ""),
        [(f.name, _value(f), f.target, _verdict(f), f.remark) for f in figures],
    )
    print(f"\n{machine['cores']} cores, load {machine['load']:.1f}, stores on {machine['file_system']}")
    print()
    print_table(
        ("OTHERS, A SECOND", "WHAT", ">1 CLIENT", ">8 CLIENTS"),
        [(p.name, p.what, p.one, p.eight) for p in PEERS],
    )
    print(f"\n{PEERS_SOURCE}")
    return 0


def _figures(options: argparse.Namespace, names: list[str]) -> Iterator[Figure]:
    if options.address is not None:
        endpoint = Endpoint(options.address, own_key(options.address))
        if not endpoint.somebody_listens():
            raise endpoint.nobody()
        yield from at_address(options.address, options.seconds)
        return
    for name in names:
        if sys.stderr.isatty():
            print(f"\r\033[Kmeasuring: {name}", end="", file=sys.stderr, flush=True)
        try:
            yield from ROWS[name](options.seconds)
        except HalError as why:
            yield missing(name, "", str(why))
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _value(figure: Figure) -> str:
    if figure.value is None:
        return "–"
    digits = 0 if figure.value >= 100 else 2
    return f"{figure.value:,.{digits}f} {figure.unit}"


def _verdict(figure: Figure) -> str:
    if figure.value is None:
        return "not measured"
    return {None: "", True: "reached", False: "MISSED"}[figure.reached]


def _file_system(directory: Path) -> str:
    """The kind of the file system that a directory is on; an fsync on tmpfs costs nothing."""
    here, best, kind = directory.resolve(), -1, "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, name, *_ = line.split(" ")
        if here.is_relative_to(mount) and len(mount) > best:
            best, kind = len(mount), name
    return kind

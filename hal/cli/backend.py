"""``hal backend list`` and ``hal backend check``."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from hal.backend import GoneError
from hal.cli.output import print_json, print_table
from hal.conformance import CHECKS, run
from hal.entries import installed, load
from hal.registry import GROUP


def configure_backend(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = "List the installed backends, or hold one to the rules on the machine at hand."
    parser.epilog = "examples:\n  hal backend list\n  hal backend check nvidia"
    verbs = parser.add_subparsers(dest="verb", metavar="list|check", required=True)
    listing = verbs.add_parser(
        "list",
        help="the installed backends and where they come from",
        description="List the installed backends and where they come from.",
        epilog="example:\n  hal backend list --json",
    )
    checking = verbs.add_parser(
        "check",
        help="run the conformance suite over a backend, here and now",
        description="Hold one backend to the rules on this machine; the exit code is 1 when it breaks one.",
        epilog="examples:\n  hal backend check cpu\n  hal emulate mixed -- hal backend check nvidia",
    )
    checking.add_argument("name", metavar="NAME", help="a backend, as 'hal backend list' shows it")
    for verb in (listing, checking):
        verb.add_argument(
            "--json", action="store_true", help="print JSON (schema hal.backends/1, hal.conformance/1)"
        )
    return lambda options: _list(options) if options.verb == "list" else _check(options)


def _list(options: argparse.Namespace) -> int:
    found = installed(GROUP)
    if options.json:
        print_json("hal.backends/1", backends=found)
    else:
        print_table(("BACKEND", "FROM"), sorted(found.items()))
    return 0


def _check(options: argparse.Namespace) -> int:
    found = installed(GROUP)
    if options.name not in found:
        raise GoneError(f"no backend '{options.name}'; the backends are: {', '.join(sorted(found))}")
    results = run(load(found[options.name]))
    failed = [result for result in results if result.failed]
    if options.json:
        print_json("hal.conformance/1", backend=options.name, passed=not failed, results=results)
    else:
        rules = {check.name: check.rule for check in CHECKS}
        print_table(
            ("CHECK", "OUTCOME", "RULE"),
            [(r.check, r.outcome.value, r.detail or rules[r.check]) for r in results],
        )
        print(f"\n{options.name}: " + (f"{len(failed)} checks failed" if failed else "holds to every rule"))
    return 1 if failed else 0

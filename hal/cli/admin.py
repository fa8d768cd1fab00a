"""``hal admin backup``, ``restore``, ``check`` and ``journal``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from hal.backend import GoneError
from hal.cli.output import note, print_facts, print_json
from hal.scheduler.places import Places


def configure_admin(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = (
        "What a scheduler keeps on disk: look it through, keep copies of it, and read what has happened.\n"
        "It is that of HAL_RUNTIME_DIR. A copy can be made while the scheduler runs."
    )
    parser.epilog = (
        "examples:\n  hal admin backup leases.backup\n  hal admin check\n  hal admin restore leases.backup\n"
        "  hal admin journal --output events.jsonl && hal simulate replay events.jsonl"
    )
    verbs = parser.add_subparsers(dest="verb", metavar="backup|restore|check|journal", required=True)
    saving = verbs.add_parser(
        "backup",
        help="copy the store as it is now",
        description="Copy the store as it is at this moment, and look the copy through. A scheduler may run.",
        epilog="example:\n  hal admin backup /backups/leases.db",
    )
    saving.add_argument("file", metavar="FILE", type=Path, help="where to write it; replaced if it is there")
    restoring = verbs.add_parser(
        "restore",
        help="put a backup in the place of the store",
        description="Put a backup in the place of the store, which is kept beside it. No scheduler may run.\n"
        "Leases that were given since the backup are not known any more: nodes stop their slices.",
        epilog="example:\n  hal admin restore /backups/leases.db",
    )
    restoring.add_argument("file", metavar="FILE", type=Path, help="what 'hal admin backup' wrote")
    checking = verbs.add_parser(
        "check",
        help="look the store through, or a backup",
        description="Read every row, make a state of them, and replay the journal: it has to lead to them.",
        epilog="examples:\n  hal admin check\n  hal admin check /backups/leases.db --json",
    )
    checking.add_argument("file", metavar="FILE", type=Path, nargs="?", help="a backup (the store)")
    for verb in (saving, restoring, checking):
        verb.add_argument("--json", action="store_true", help="print JSON (schema hal.store/1)")
    telling = verbs.add_parser(
        "journal",
        help="what has happened, as JSON lines",
        description="Write the journal as JSON lines (schema hal.journal/1), for 'hal simulate replay'.",
        epilog="example:\n  hal admin journal --output events.jsonl",
    )
    telling.add_argument("--output", metavar="FILE", type=Path, help="where to write it (standard output)")
    telling.add_argument("--store", metavar="FILE", type=Path, help="of a backup (the store)")
    return _run


def _run(options: argparse.Namespace) -> int:
    from hal.scheduler.store import care

    places = Places()
    match options.verb:
        case "backup":
            found = care.backup(_there(places), options.file)
            if options.json:
                print_json("hal.store/1", **msgspec.structs.asdict(found))
            else:
                note(f"wrote {options.file}")
        case "restore":
            old = care.restore(options.file, places)
            if options.json:
                found = care.check(places.store)
                print_json("hal.store/1", **msgspec.structs.asdict(found), kept=old and str(old))
            else:
                kept = "" if old is None else f"; what was there is kept as {old}"
                note(f"restored {places.store}{kept}")
        case "check":
            return _check(options, places)
        case "journal":
            _journal(options, places)
    return 0


def _there(places: Places) -> Path:
    """The store of these places. Raises GoneError, with what was perhaps forgotten."""
    if not places.store.is_file() and "HAL_STATE_DIR" not in os.environ:
        what = "where a scheduler was started with HAL_STATE_DIR, it is named here, too"
        raise GoneError(f"there is no lease store {places.store}; {what}")
    return places.store


def _check(options: argparse.Namespace, places: Places) -> int:
    from hal.scheduler.store import care

    found = msgspec.structs.asdict(care.check(options.file or _there(places)))
    if options.json:
        print_json("hal.store/1", **found)
    else:
        print_facts([(name, str(value)) for name, value in found.items()])
    return 0


def _journal(options: argparse.Namespace, places: Places) -> None:
    from hal.scheduler.store import care, export
    from hal.scheduler.store.journal import Base, Batch

    kept = care.journal_of(options.store or _there(places))
    base = next(kept)
    assert isinstance(base, Base)
    batches = (one for one in kept if isinstance(one, Batch))
    if options.output is None:
        export.write(base, batches, sys.stdout.buffer)
        return
    with options.output.open("wb") as file:
        export.write(base, batches, file)
    note(f"wrote {options.output}")

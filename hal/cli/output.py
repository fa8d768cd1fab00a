"""How hal prints: tables for people, JSON for programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from hal.model import Reading, Status, jsonable
from hal.units import format_bytes

__all__ = [
    "because",
    "cell",
    "counted",
    "first_of",
    "note",
    "print_facts",
    "print_json",
    "print_table",
    "visible",
]


def print_json(schema: str, **content: Any) -> None:
    """One object with its schema's name and version first: keys are added, never changed, within one."""
    import json

    json.dump(
        {"schema": schema} | {key: jsonable(value) for key, value in content.items()}, sys.stdout, indent=2
    )
    print()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """An aligned table; a column whose name starts with ">" is aligned to the right.

    Two spaces between columns and nothing cut: an id that is not whole is of no use. A table library
    would take longer to import than `hal list` takes to run.
    """
    names = [name.removeprefix(">") for name in columns]
    lines = [names, *([visible(str(text)) for text in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    for number, line in enumerate(lines):
        cells = [
            text.rjust(width) if name.startswith(">") else text.ljust(width)
            for text, width, name in zip(line, widths, columns, strict=True)
        ]
        text = "  ".join(cells).rstrip()
        print(f"{bold}{text}{plain}" if number == 0 else text)


def first_of(ids: Sequence[str]) -> str:
    """For a table: one in full, and how many more; what shows a single thing has all."""
    return f"{ids[0]} and {len(ids) - 1} more" if len(ids) > 1 else "".join(ids)


def counted(number: int, noun: str) -> str:
    """As in "1 lease" and "2 leases"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Names and values, one a line."""
    pairs = [(name, value) for name, value in facts]
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        print(f"{name:<{width}}  {visible(value)}")


def because(cause: str, reason: str) -> str:
    """Why a lease has ended; the cause is left out where the sentence says it."""
    word = cause.replace("_", " ")
    said = cause in ("released", "holder_gone") or word in reason
    return reason if reason and said else ": ".join(text for text in (word, reason) if text)


def note(text: str) -> None:
    """A word to the person, beside what is printed for a program."""
    try:
        print("hal:", visible(text, but="\n"), file=sys.stderr, flush=True)
    except OSError:  # nobody hears it: the exit code says it, too, and is not to become another
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def visible(text: str, but: str = "") -> str:
    """Names and reasons are others' words: what would steer the terminal is written as in ``\\x1b``."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one in but else one.encode("unicode_escape").decode() for one in text
    )


def cell(reading: Reading | None) -> str:
    """A reading for a table: its value with a unit people use, or the reason why there is none."""
    if reading is None:
        return "–"
    if reading.value is None:
        return "–" if reading.status is Status.UNSUPPORTED else reading.status.value
    match reading.unit:
        case "bytes":
            return format_bytes(int(reading.value))
        case "ratio":
            return f"{reading.value:.0%}"
        case "watts":
            return f"{reading.value:.0f} W"
        case "celsius":
            return f"{reading.value:.0f} °C"
        case "hertz":
            return f"{reading.value / 1e6:.0f} MHz"
        case "bytes_per_second":
            return f"{format_bytes(int(reading.value))}/s"
        case "bool":
            return "yes" if reading.value else "no"
        case "count":
            return f"{reading.value:.0f}"
    return f"{reading.value} {reading.unit}"

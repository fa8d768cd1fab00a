"""How hal prints: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from hal.model import Reading, Status, jsonable
from hal.units import format_bytes

__all__ = ["cell", "note", "print_facts", "print_json", "print_table"]

# Without a terminal there is no width to fit into, and a cut id would be of no use.
_UNBOUNDED = 1000


def print_json(schema: str, **content: Any) -> None:
    """One object with its schema's name and version first: keys are added, never changed, within one."""
    json.dump(
        {"schema": schema} | {key: jsonable(value) for key, value in content.items()}, sys.stdout, indent=2
    )
    print()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> None:
    """An aligned table; a column whose name starts with ">" is aligned to the right."""
    from rich.console import Console
    from rich.table import Table

    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else _UNBOUNDED, highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    if title:
        console.print(title, style="bold", markup=False)
    for name in columns:
        right = name.startswith(">")
        table.add_column(name.removeprefix(">"), justify="right" if right else "left", overflow="fold")
    from rich.text import Text

    for row in rows:
        table.add_row(*(Text(text) for text in row))
    with console.capture() as captured:
        console.print(table)
    sys.stdout.write("\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n")


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Names and values, one a line."""
    pairs = [(name, value) for name, value in facts]
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        print(f"{name:<{width}}  {value}")


def note(text: str) -> None:
    """A word to the person, beside what is printed for a program."""
    print(f"hal: {text}", file=sys.stderr)


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
    return f"{reading.value} {reading.unit}"

"""The frame: what a figure is, how two ways are timed fairly, and how the table looks.

A benchmark is a module of this package with a function ``figures()`` that yields Figures.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median
from types import ModuleType
from typing import NamedTuple

__all__ = [
    "Figure",
    "NotMeasured",
    "at_least",
    "at_most",
    "begin",
    "compared",
    "note",
    "progress",
    "run",
    "seconds",
    "table",
    "within",
]


class Figure(NamedTuple):
    """One measured figure beside its target."""

    name: str
    value: float | None  # None: not measured, and `remark` says why
    unit: str  # "×" for a ratio of two things measured in the same run
    target: str = ""  # for people: "≤ 1.25"; empty where there is none
    reached: bool | None = None  # None: no target, or not measured
    remark: str = ""  # what the figure is made of, in a few words


class NotMeasured(Exception):
    """Something that the figure needs is not here; str() says what."""


def at_most(name: str, value: float, unit: str, limit: float, remark: str = "") -> Figure:
    return Figure(name, value, unit, f"≤ {limit:g}", value <= limit, remark)


def at_least(name: str, value: float, unit: str, limit: float, remark: str = "") -> Figure:
    return Figure(name, value, unit, f"≥ {limit:g}", value >= limit, remark)


def within(name: str, value: float, unit: str, wanted: float, off: float, remark: str = "") -> Figure:
    """As wanted, or ``off`` more or less at most."""
    return Figure(name, value, unit, f"{wanted:g} ± {off:g}", abs(value - wanted) <= off, remark)


def note(name: str, value: float, unit: str, remark: str = "") -> Figure:
    """A figure without a target."""
    return Figure(name, value, unit, remark=remark)


# ---- timing ------------------------------------------------------------------------------------------


def seconds(work: Callable[[], object]) -> float:
    """How long it takes, once."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


class Compared(NamedTuple):
    """Two ways, measured in turn; all of them medians."""

    ratio: float  # the first over the second, of each round
    difference: float  # the first minus the second, of each round
    first: float  # in what `measure` gives
    second: float


def compared(
    first: Callable[[], object],
    second: Callable[[], object],
    *,
    rounds: int,
    measure: Callable[[Callable[[], object]], float] = seconds,
) -> Compared:
    """A B A B …, after one round that does not count.

    The median of the rounds' own ratios: what slows the machine for a while slows both halves of a round.
    """
    measure(first), measure(second)
    pairs = []
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}")
        pairs.append((measure(first), measure(second)))
    return Compared(
        ratio=median(a / b for a, b in pairs),
        difference=median(a - b for a, b in pairs),
        first=median(a for a, _ in pairs),
        second=median(b for _, b in pairs),
    )


# ---- running -----------------------------------------------------------------------------------------


_running = ""


def begin(name: str) -> None:
    """What `progress` tells of from now on."""
    global _running
    _running = name
    progress("…")


def progress(text: str) -> None:
    """What is being done, on a terminal only; the table comes at the end."""
    if sys.stderr.isatty():
        print(f"\r\033[K{_running}: {text}" if text else "\r\033[K", end="", file=sys.stderr, flush=True)


def run(modules: Iterable[ModuleType]) -> Iterator[tuple[str, Figure]]:
    """Each module's figures with its name. One that cannot measure gives a figure that says why."""
    for module in modules:
        begin(module.__name__.rpartition(".")[2])
        try:
            for figure in module.figures():
                yield _running, figure
        except NotMeasured as why:
            yield _running, Figure(_running, None, "", remark=f"not measured: {why}")
        finally:
            progress("")


def verdict(figure: Figure) -> str:
    if figure.value is None:
        return "not measured"
    return {None: "", True: "reached", False: "MISSED"}[figure.reached]


def table(figures: Sequence[Figure]) -> list[str]:
    """The lines to print: value, target and verdict side by side; the last says how many were missed."""
    head = ("FIGURE", "VALUE", "TARGET", "VERDICT", "")
    rows = [
        (
            f.name,
            "–" if f.value is None else f"{f.value:.3g} {f.unit}".strip(),
            f.target,
            verdict(f),
            f.remark,
        )
        for f in figures
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [
        "  ".join(
            cell.rjust(width) if column == 1 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]
    return [*lines, summary(figures)]


def summary(figures: Sequence[Figure]) -> str:
    targets = [f for f in figures if f.value is not None and f.reached is not None]
    missed = sum(f.reached is False for f in targets)
    unmeasured = sum(f.value is None for f in figures)
    text = f"{missed} of {len(targets)} targets missed"
    return text + (f", {unmeasured} not measured" if unmeasured else "")

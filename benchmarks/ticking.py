"""What watching 64 AMD partitions once a second takes of one core, in all processes together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.frame import Figure, at_most, progress
from benchmarks.installed import inside

MACHINE, TICKS, LIMIT = "mi300x-8-cpx-nps1", 20, 3  # LIMIT in percent


def figures() -> Iterator[Figure]:
    got = inside(MACHINE, watch)
    yield at_most("1 Hz of 64 AMD partitions, share of a core", got["percent"], "%", LIMIT, got["remark"])


def watch() -> dict[str, Any]:
    """In the bench's environment, on the emulated machine. Two of the ticks read slow figures, too."""
    import hal
    from hal.telemetry.sampler import Sampler

    with hal.Machine() as machine:
        ticks = iter(Sampler(machine, interval=1.0))
        first = next(ticks)  # opens, learns, reads what does not change
        subjects = {reading.subject for reading in first.readings}
        before = _cpu_seconds()
        for number, _ in enumerate(islice(ticks, TICKS)):
            progress(f"second {number + 1} of {TICKS}")
        used = _cpu_seconds() - before
    return {
        "percent": 100 * used / TICKS,
        "remark": f"{used / TICKS * 1e3:.1f} ms a second for {len(first.readings)} figures of "
        f"{len(subjects)} subjects",
    }


def _cpu_seconds() -> float:
    """Of this process and all below it (schedstat: nanoseconds on a core)."""
    parents = {int(file.parent.name): _parent(file) for file in Path("/proc").glob("[0-9]*/stat")}
    family, more = {os.getpid()}, True
    while more:
        more = False
        for pid, parent in parents.items():
            if parent in family and pid not in family:
                family.add(pid)
                more = True
    return sum(
        int(file.read_text().split()[0]) / 1e9
        for pid in family
        for file in Path(f"/proc/{pid}/task").glob("*/schedstat")
    )


def _parent(stat: Path) -> int:
    try:
        return int(stat.read_bytes().rpartition(b")")[2].split()[1])
    except OSError:  # it has ended
        return 0

"""Whose a process is: each run's processes inherit a variable that names the run's directory."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from pathlib import Path

__all__ = ["MARK", "marked", "strays"]

MARK = "HAL_RUN"  # in the environment of each run's processes: its directory


def marked(run: Path) -> list[int]:
    """The processes of a run."""
    return [pid for pid, path in _marks() if path == os.fsencode(run)]


def strays(runs: Path, known: Container[bytes] = ()) -> list[int]:
    """The processes of all runs in this directory but those that are ``known``."""
    inside = os.fsencode(runs) + b"/"
    return [
        pid
        for pid, path in _marks()
        if path.startswith(inside) and path not in known and not _sees_another(pid, runs)
    ]


def _marks() -> Iterator[tuple[int, bytes]]:
    mark = MARK.encode() + b"="
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        yield from ((int(entry.name), one.removeprefix(mark)) for one in variables if one.startswith(mark))


def _sees_another(pid: int, directory: Path) -> bool:
    """Of the same name: it is in a container, say, that has an agent of its own. One that sees none at all
    may be in a container that a run of ours has started."""
    try:
        there, here = Path(f"/proc/{pid}/root{directory.resolve()}").stat(), directory.stat()
    except OSError:
        return False
    return not os.path.samestat(there, here)

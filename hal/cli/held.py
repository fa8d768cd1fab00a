"""Tells the user when a program is not held by the guard: before it runs, and while it does."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from hal.cli.output import note
from hal.enforce.reach import descendants, unheld, why_not

__all__ = ["report_unheld"]

_LOOK_EVERY = 2.0  # seconds; the first look comes sooner


def report_unheld(
    command: Sequence[str], environ: Mapping[str, str]
) -> Callable[[subprocess.Popen[bytes]], None]:
    """Say at once why the guard will not be in this program, if it will not; what is returned is to be called
    with the started process, and says so of each process below it that uses a device without the guard."""
    if (reason := why_not(command[0], environ)) is not None:
        note(f"this program is not held by the guard: {reason}")

    def watch(child: subprocess.Popen[bytes]) -> None:
        told: set[int] = set()
        pause = 0.25
        while child.returncode is None:
            time.sleep(pause)
            pause = min(pause * 2, _LOOK_EVERY)
            for pid, name in unheld(set(descendants(child.pid)) - told):
                told.add(pid)
                note(
                    f"{name} (process {pid}) is not held by the guard: it was started without LD_PRELOAD, "
                    "as sudo, ssh and 'env -i' do"
                )

    def started(child: subprocess.Popen[bytes]) -> None:
        if reason is None:
            threading.Thread(target=watch, args=(child,), daemon=True).start()

    return started

"""What share of a device's time capped programs get, over seconds: programs that always have work, on
stand-in devices that are shared in slices of time, and first come first served.

Each case has an emulated machine of its own and mostly sleeps: as many run at once as there are processors.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.frame import Figure, at_least, progress, within
from hal.emulation.description import load
from hal.emulation.run import emulated
from hal.enforce.guard import guard_environment
from hal.enforce.ledger import Ledger
from hal.enforce.trim import Trim
from hal_native import program

WARM_UP, SECONDS = 3, 4
LOOK = 0.5  # seconds from one look at the driver's figure to the next
OFF = 3  # percentage points
ALONE = 90  # percent that an elastic slice gets when nobody else is there, at least
SHARINGS = ("sliced", "fifo")
QUEUE = "100ms"  # of work that a program may have waiting on the device


class Slice(NamedTuple):
    """A slice of a case, and what its programs together are to get."""

    cap: int  # percent
    wanted: int | None  # percent; None: at least ALONE
    programs: int = 1
    elastic: bool = False
    name: str = ""


class Case(NamedTuple):
    title: str
    kernel: str
    sharing: str
    slices: tuple[Slice, ...]
    grid: int = 1000


def _cases() -> Iterator[Case]:
    for sharing in SHARINGS:
        for kernel in ("1ms", "50ms"):
            for cap in (10, 30, 70):
                # The grid is nothing to the stand-in; it is to the guard, which tells kernels apart by it.
                grids = (1, 1000, 1_000_000) if (kernel, cap) == ("1ms", 30) else (1000,)
                for grid in grids:
                    title = f"{kernel} kernels, grid {grid}"
                    yield Case(title, kernel, sharing, (Slice(cap, cap),), grid)
            beside = Slice(30, 30, name="the 30 of 30 + 70"), Slice(70, 70, name="the 70 of 30 + 70")
            yield Case(f"{kernel} kernels", kernel, sharing, beside)
        yield Case("two programs in one slice", "1ms", sharing, (Slice(30, 30, programs=2),))
        yield Case("elastic, alone", "1ms", sharing, (Slice(30, None, elastic=True),))
        crowded = Slice(70, 70, name="70 beside an elastic 30"), Slice(30, 30, elastic=True, name="that 30")
        yield Case("1ms kernels", "1ms", sharing, crowded)


# ---- one case ----------------------------------------------------------------------------------------


def _ledger(folder: str, number: int, wanted: Slice) -> Ledger:
    ledger = Ledger.create(Path(folder, f"slice-{number}"), f"share-{number}", [("device-0", 1 << 30)])
    ledger.set_compute(0, wanted.cap / 100)
    ledger.set_elastic(wanted.elastic)
    return ledger


def _measured(case: Case) -> list[list[tuple[float, float]]]:
    """Percent of the device and its deviation, of each slice's programs."""
    with tempfile.TemporaryDirectory() as folder, emulated(load("mixed")) as machine:
        env = machine | {"HAL_EMULATOR_SHARING": case.sharing, "HAL_EMULATOR_QUEUE": QUEUE}
        command = [
            str(program("hal-launch")),
            f"spin_{case.kernel}",
            str(case.grid),
            str(SECONDS),
            str(WARM_UP),
        ]
        running: list[list[subprocess.Popen[str]]] = []
        looked_at: list[str] = []
        for number, wanted in enumerate(case.slices):
            ledger = _ledger(folder, number, wanted)
            own = env | guard_environment(ledger.path, inherited={})
            running.append(
                [
                    subprocess.Popen(command, env=own, stdout=subprocess.PIPE, text=True)
                    for _ in range(wanted.programs)
                ]
            )
            looked_at += [str(ledger.path), str(running[-1][0].pid)]
            ledger.close()
        correcting = None
        if len(case.slices) > 1:
            correcting = subprocess.Popen([sys.executable, "-m", "benchmarks.share", *looked_at], env=env)
        try:
            return [[_figure(one) for one in of_slice] for of_slice in running]
        finally:
            if correcting is not None:
                correcting.terminate()
                correcting.wait()


def _figure(process: subprocess.Popen[str]) -> tuple[float, float]:
    said, _ = process.communicate()
    found = re.match(r"share mean=([\d.]+) deviation=([\d.]+) ", said)
    if found is None or process.returncode != 0:
        raise RuntimeError(f"hal-launch said {said!r}")
    mean, deviation = found.groups()
    return float(mean) * 100, float(deviation) * 100


def correct(slices: list[tuple[Path, int]]) -> None:
    """What whoever keeps the slices does: hold the charge against the driver's figure, until ended.

    In a process of its own, since the driver's library knows one machine in each.
    """
    pynvml: Any = importlib.import_module("pynvml")
    pynvml.nvmlInit()
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    kept = [(Ledger.open(path), pid, Trim()) for path, pid in slices]
    while True:
        time.sleep(LOOK)
        try:
            used = {s.pid: s.smUtil for s in pynvml.nvmlDeviceGetProcessUtilization(device, 0)}
        except pynvml.NVMLError:  # nobody has used it yet
            used = {}
        for ledger, pid, trim in kept:
            account = ledger._ledger.device[0]
            percent = used.get(pid)
            ratio = None if percent is None else percent / 100
            if any(share > 2 for other, share in used.items() if other != pid):
                ledger.note_neighbours(0, time.monotonic_ns() + round(2e9 * LOOK))
            account.share_trim = trim.look(
                time.monotonic(), account.share_charged_ns, ratio, account.share_trim
            )


# ---- all of them -------------------------------------------------------------------------------------


def _figures_of(case: Case, measured: list[list[tuple[float, float]]]) -> Iterator[Figure]:
    for wanted, programs in zip(case.slices, measured, strict=True):
        mean = sum(one for one, _ in programs)
        title = f"share: {wanted.name or wanted.cap}, {case.title}, {case.sharing}"
        remark = "deviation " + " and ".join(f"{deviation:.1f}" for _, deviation in programs)
        if len(programs) > 1:
            remark = " + ".join(f"{one:.1f}" for one, _ in programs) + f", {remark}"
        if len(case.slices) > 1:
            remark += ", corrected by the driver's figure"
        if wanted.wanted is None:
            yield at_least(title, mean, "%", ALONE, remark)
        else:
            yield within(title, mean, "%", wanted.wanted, OFF, remark)


def figures() -> Iterator[Figure]:
    cases = list(_cases())
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        running = {pool.submit(_measured, case): case for case in cases}
        for done, _ in enumerate(as_completed(running), start=1):
            progress(f"{done} of {len(cases)} cases")
        for future, case in running.items():
            yield from _figures_of(case, future.result())


if __name__ == "__main__":
    correct([(Path(path), int(pid)) for path, pid in zip(sys.argv[1::2], sys.argv[2::2], strict=True)])

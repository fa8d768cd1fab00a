"""What the guard adds to a call of the CUDA driver, to a launch and to a start: the same C programs bare and
guarded, in turn, on the stand-in driver, which does next to nothing."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.frame import Figure, at_most, compared, note, progress
from hal.emulation.description import load
from hal.emulation.run import emulated
from hal.enforce.guard import guard_environment
from hal.enforce.ledger import Ledger

NATIVE = Path(__file__).resolve().parent.parent / "native/bench"
# Nanoseconds over bare, by the number of processes in the slice.
CALLS = {
    1: {"alloc+free": 60, "memGetInfo": 20, "alloc+free, 10000 live": 80},
    4: {"alloc+free": 150, "memGetInfo": 25},
}
# Nanoseconds over bare: processes, what is said of the slice's time, its share of it, target.
LAUNCHES = (
    (1, "its time not limited", None, 8),
    (1, "limited, not limiting", 0.99, 25),
    (4, "limited, not limiting", 0.99, 60),
)
START_MS = 0.3
CROWD, CROWD_RATIO = 32, 1.3
SLOW = {"HAL_EMULATOR_LATENCY": "*=20000000"}  # each question that a start asks of a driver takes 20 ms
TURNS = 3
STARTS = 40

Env = dict[str, str]


def _built(name: str, folder: str) -> Path:
    program = Path(folder, name)
    subprocess.run(["cc", "-O2", "-o", program, NATIVE / f"{name}.c", "-ldl"], check=True)
    return program


def _said(program: Path, processes: int, env: Env) -> str:
    command = [str(program), str(processes)]
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=True).stdout


def _of(processes: int) -> str:
    return "" if processes == 1 else f", {processes} processes"


def _calls(program: Path, bare: Env, guarded: Env) -> Iterator[Figure]:
    for processes, targets in CALLS.items():
        progress(f"calls{_of(processes)}")
        turns = [
            [
                {name: float(ns) for name, ns in (line.split("\t") for line in said.splitlines())}
                for said in (_said(program, processes, env) for env in (bare, guarded))
            ]
            for _ in range(TURNS)
        ]
        for name in turns[0][0]:
            plain, ours = (min(turn[way][name] for turn in turns) for way in (0, 1))
            title, remark = f"guard: {name}, over bare{_of(processes)}", f"{ours:.0f} - {plain:.0f} ns"
            if name in targets:
                yield at_most(title, ours - plain, "ns", targets[name], remark)
            else:
                yield note(title, ours - plain, "ns", remark)


def _launches(program: Path, bare: Env, guarded: Env, ledger: Ledger) -> Iterator[Figure]:
    no_work = {"HAL_EMULATOR_QUEUE": "0"}  # what is submitted takes no time: only the call's own is left
    for processes, what, ratio, target in LAUNCHES:
        progress(f"launches, {what}{_of(processes)}")
        ledger.set_compute(0, ratio)
        turns = [
            [float(_said(program, processes, env | no_work)) for env in (bare, guarded)] for _ in range(TURNS)
        ]
        plain, ours = (min(turn[way] for turn in turns) for way in (0, 1))
        title, remark = f"guard: launch, {what}, over bare{_of(processes)}", f"{ours:.0f} - {plain:.0f} ns"
        yield at_most(title, ours - plain, "ns", target, remark)


def _start(program: Path, env: Env) -> float:
    """Milliseconds of a whole process that makes the driver ready."""
    began = time.perf_counter()
    subprocess.run([program, "1", "start"], env=os.environ | env, check=True)
    return (time.perf_counter() - began) * 1000


def _crowd(program: Path, env: Env) -> None:
    command, whole = [str(program), "1", "start"], os.environ | env
    running = [subprocess.Popen(command, env=whole) for _ in range(CROWD)]
    codes = [process.wait() for process in running]
    if any(codes):
        raise RuntimeError(f"{program} failed to start")


def _starts(program: Path, bare: Env, guarded: Env) -> Iterator[Figure]:
    progress("start of a process")
    turns = [[_start(program, env) for env in (bare, guarded)] for _ in range(STARTS)]
    plain, ours = (min(turn[way] for turn in turns) for way in (0, 1))
    title = "guard: start of a process, over bare"
    yield at_most(title, ours - plain, "ms", START_MS, f"{ours:.2f} - {plain:.2f} ms")
    crowds = compared(lambda: _crowd(program, guarded | SLOW), lambda: _crowd(program, bare | SLOW), rounds=5)
    yield at_most(
        f"guard: start of {CROWD} processes at once / bare",
        crowds.first / crowds.second,
        "×",
        CROWD_RATIO,
        f"{crowds.first:.2f} / {crowds.second:.2f} s, each driver query 20 ms",
    )


def figures() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder, emulated(load("mixed")) as machine:
        calls, launches = _built("guard", folder), _built("launch", folder)
        ledger = Ledger.create(Path(folder, "slice"), "bench", [("device-0", 60 << 30)])
        bare = dict(machine)
        guarded = bare | guard_environment(ledger.path, inherited={})
        yield from _calls(calls, bare, guarded)
        yield from _starts(calls, bare, guarded)
        yield from _launches(launches, bare, guarded, ledger)
        ledger.close()

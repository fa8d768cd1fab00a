"""What the guard adds to a call of the CUDA driver: the same C program bare and guarded, in turn, on the
stand-in driver, which does next to nothing."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.frame import Figure, at_most, note
from hal.emulation.description import load
from hal.emulation.run import emulated
from hal.enforce.guard import guard_environment
from hal.enforce.ledger import Ledger

SOURCE = Path(__file__).resolve().parent.parent / "native/bench/guard.c"
# Nanoseconds over bare, one process.
TARGETS = {"alloc+free": 60, "memGetInfo": 20, "alloc+free, 10000 live": 80}
TURNS = 3
STARTS = 20


def _figures_of(program: Path, processes: int, env: dict[str, str]) -> dict[str, float]:
    said = subprocess.run(
        [program, str(processes)], env=os.environ | env, capture_output=True, text=True, check=True
    )
    return {name: float(ns) for name, ns in (line.split("\t") for line in said.stdout.splitlines())}


def _start(program: Path, env: dict[str, str]) -> float:
    """Milliseconds of a whole process that makes the driver ready."""
    began = time.perf_counter()
    subprocess.run([program, "1", "start"], env=os.environ | env, check=True)
    return (time.perf_counter() - began) * 1000


def figures() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder, emulated(load("mixed")) as machine:
        program = Path(folder, "guard-bench")
        subprocess.run(["cc", "-O2", "-o", program, SOURCE, "-ldl"], check=True)
        ledger = Ledger.create(Path(folder, "slice"), "bench", [("device-0", 60 << 30)])
        bare = dict(machine)
        guarded = bare | guard_environment(ledger.path, inherited={})
        for processes in (1, 4):
            turns = [[_figures_of(program, processes, env) for env in (bare, guarded)] for _ in range(TURNS)]
            for name in turns[0][0]:
                plain, ours = (min(turn[way][name] for turn in turns) for way in (0, 1))
                title = f"guard: {name}, over bare" + ("" if processes == 1 else f", {processes} processes")
                remark = f"{ours:.0f} - {plain:.0f} ns"
                if processes == 1 and name in TARGETS:
                    yield at_most(title, ours - plain, "ns", TARGETS[name], remark)
                else:
                    yield note(title, ours - plain, "ns", remark)
        plain, ours = (min(_start(program, env) for _ in range(STARTS)) for env in (bare, guarded))
        yield note("guard: start of a process, over bare", ours - plain, "ms", f"{ours:.1f} - {plain:.1f} ms")
        ledger.close()

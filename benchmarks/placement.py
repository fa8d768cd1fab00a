"""Placement: how much of a cluster is allocated, how long a decision takes, and how much memory it needs.

    python -m benchmarks.placement

The first needs the OpenB trace, which is not shipped: HAL_OPENB names the folder that its CSV files are in
(docs/simulator.md says where they come from). HAL_BENCH_SEEDS is how many of its ten seeds are run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# The allocation at 130 % arrived load that Weng et al. (USENIX ATC 2023) publish for FGD, in percent.
PUBLISHED = {"default": 95.39, "multigpu20": 95.65, "gpushare40": 94.15, "gpuspec10": 94.95, "cpu100": 95.35}
NODES, TASKS = "openb_node_list_gpu_node.csv", "openb_pod_list_{}.csv"


def simulate(*arguments: str) -> Any:
    """What ``hal simulate`` finds, from a process of its own: its time and memory are part of the figures."""
    done = subprocess.run(
        [sys.executable, "-m", "hal", "simulate", *arguments, "--json"], stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


def report(name: str, value: float, unit: str, target: float, at_least: bool = False) -> bool:
    met = value >= target if at_least else value <= target
    bound = f"{'at least' if at_least else 'at most'} {target:g} {unit}"
    print(f"{name:<58} {value:>9.3f} {unit:<4} {bound:<18} {'ok' if met else 'MISSED'}", flush=True)
    return met


def decisions() -> list[bool]:
    met = []
    for what, shapes, count in (("64 shapes", "64", "20000"), ("each shape new", "0", "3000")):
        found = simulate(
            "synthetic", "--nodes", "12500", "--devices", "8", "--decisions", count, "--shapes", shapes
        )["measured"]
        met += [
            report(f"one decision, 100 000 devices, {what}, p50", found["p50_milliseconds"], "ms",
                   1 if shapes != "0" else 3),
            report(f"one decision, 100 000 devices, {what}, p99", found["p99_milliseconds"], "ms",
                   5),
            report(f"memory, 100 000 devices, {what}", found["memory_bytes"] / (1 << 20), "MiB", 1024),
        ]  # fmt: skip
    return met


def allocation(folder: Path) -> list[bool]:
    met = []
    seeds = f"42-{41 + int(os.environ.get('HAL_BENCH_SEEDS', '10'))}"
    for workload, published in PUBLISHED.items():
        files = ("--nodes", str(folder / NODES), "--tasks", str(folder / TASKS.format(workload)))
        if workload == "default":
            start = time.perf_counter()
            simulate("openb", *files, "--seeds", "42", "--jobs", "1")
            met.append(report("OpenB default, one run, whole process", time.perf_counter() - start, "s", 10))
        (found,) = simulate("openb", *files, "--seeds", seeds)["policies"]
        name = f"OpenB {workload}, allocated at 130 % (FGD: {published})"
        met.append(report(name, found["allocation_mean"], "%", published, at_least=True))
    return met


def main() -> int:
    met = decisions()
    folder = os.environ.get("HAL_OPENB")
    if folder:
        met += allocation(Path(folder))
    else:
        print("OpenB: not run; set HAL_OPENB to the folder of the trace's CSV files (docs/simulator.md)")
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())

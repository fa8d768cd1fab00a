"""How much of a cluster placement fills, how long one decision takes, and how much memory it needs.

The first needs the OpenB trace, which is not shipped: HAL_OPENB names the folder of its CSV files, and
docs/simulator.md says where they come from. HAL_BENCH_SEEDS is how many of its ten seeds are run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.frame import Figure, NotMeasured, at_least, at_most, progress

# The allocation at 130 % arrived load that Weng et al. (USENIX ATC 2023) publish for FGD, in percent.
PUBLISHED = {"default": 95.39, "multigpu20": 95.65, "gpushare40": 94.15, "gpuspec10": 94.95, "cpu100": 95.35}
NODES, TASKS = "openb_node_list_gpu_node.csv", "openb_pod_list_{}.csv"


def figures() -> Iterator[Figure]:
    yield from _decisions()
    yield from _ticks()
    yield from _allocation()


def _decisions() -> Iterator[Figure]:
    large = ("--nodes", "12500", "--devices", "8")
    for what, shapes, count in (("64 shapes", "64", "20000"), ("each shape new", "0", "3000")):
        progress(what)
        found = _simulate("synthetic", *large, "--decisions", count, "--shapes", shapes)["measured"]
        name, remark = f"a decision among 100,000 devices, {what}", f"{count} decisions, 12,500 nodes"
        yield at_most(f"{name}, p50", found["p50_milliseconds"], "ms", 1, remark)
        yield at_most(f"{name}, p99", found["p99_milliseconds"], "ms", 5, remark)
        memory = found["memory_bytes"] / (1 << 20)
        yield at_most(f"memory with 100,000 devices, {what}", memory, "MiB", 1024, "whole process")


def _ticks() -> Iterator[Figure]:
    """The worst of each: also the ticks at which hundreds of leases have had their time at once."""
    for nodes in ("100", "1000"):
        progress(f"{nodes} nodes, 10,000 waiting")
        found = _simulate("synthetic", "--nodes", nodes, "--devices", "8", "--waiting", "10000")["measured"]
        where = f"10,000 waiting, {found['devices']:,} devices"
        remark = f"worst of {found['ticks']}; {found['leases']:,} leases, all full"
        yield at_most(f"a tick, {where}", found["tick_max_milliseconds"], "ms", 100, remark)
        remark = f"p50 {found['end_p50_milliseconds']:.0f} ms; {found['granted']} granted by it"
        yield at_most(f"the end of a lease, {where}", found["end_max_milliseconds"], "ms", 100, remark)


def _allocation() -> Iterator[Figure]:
    folder = os.environ.get("HAL_OPENB")
    if not folder:
        raise NotMeasured("set HAL_OPENB to the folder of the OpenB trace's CSV files (docs/simulator.md)")
    count = int(os.environ.get("HAL_BENCH_SEEDS", "10"))
    for workload, published in PUBLISHED.items():
        progress(workload)
        tasks = str(Path(folder) / TASKS.format(workload))
        files = ("--nodes", str(Path(folder) / NODES), "--tasks", tasks)
        if workload == "default":
            start = time.perf_counter()
            _simulate("openb", *files, "--seeds", "42", "--jobs", "1")
            taken = time.perf_counter() - start
            yield at_most("OpenB default, one run", taken, "s", 10, "whole process, one core")
        (found,) = _simulate("openb", *files, "--seeds", f"42-{41 + count}")["policies"]
        mean = found["allocation_mean"]
        remark = f"{mean:.2f} %, FGD as published {published:.2f} %; {count} seeds"
        yield at_least(f"OpenB {workload}, allocated at 130 %", mean, "%", published, remark)


def _simulate(*arguments: str) -> Any:
    """What ``hal simulate`` finds, in a process of its own: its time and its memory are the figures."""
    command = [sys.executable, "-m", "hal", "simulate", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NotMeasured(done.stderr.strip()[-200:])
    return json.loads(done.stdout)

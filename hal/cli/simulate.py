"""``hal simulate``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hal.cli.exits import UsageError
from hal.cli.output import print_facts, print_json, print_table
from hal.units import format_bytes

_POLICIES = ("fragmentation", "best-fit", "spread", "random")
_MOST_SEEDS = 10_000


def configure_simulate(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = (
        "Try the scheduler's placement on a cluster that is not there.\n"
        "What decides is the code that the scheduler itself decides with."
    )
    parser.epilog = (
        "examples:\n"
        "  hal simulate openb --nodes openb_node_list_gpu_node.csv --tasks openb_pod_list_default.csv\n"
        "  hal simulate synthetic --nodes 12500 --devices 8"
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)

    openb = kinds.add_parser(
        "openb",
        help="a workload of the OpenB trace",
        description="Let tasks of the OpenB trace (Alibaba, cluster-trace-gpu-v2023) arrive until they have\n"
        "asked for more than the cluster has, and say how much of its GPUs is allocated.",
        epilog="example:\n  hal simulate openb --nodes NODES.csv --tasks TASKS.csv --policy best-fit",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    openb.add_argument("--nodes", metavar="FILE", type=Path, required=True, help="the trace's list of nodes")
    openb.add_argument("--tasks", metavar="FILE", type=Path, required=True, help="one of its lists of tasks")
    openb.add_argument(
        "--arrival",
        metavar="LOAD",
        type=_load,
        default=1.3,
        help="how many times its GPUs is asked for (1.3)",
    )
    openb.add_argument(
        "--seeds",
        metavar="SEEDS",
        type=_seeds,
        default=tuple(range(42, 52)),
        help="as 42-51 or 1,2,5 (42-51)",
    )
    openb.add_argument(
        "--policy", metavar="NAME", nargs="+", choices=_POLICIES, default=["fragmentation"],
        help=f"of {', '.join(_POLICIES)} (fragmentation)",
    )  # fmt: skip
    openb.add_argument("--jobs", metavar="N", type=_count, help="processes at a time (one for each core)")
    openb.add_argument("--plot", metavar="FILE", type=Path, help="draw the curves (.png, .svg, .pdf)")
    openb.add_argument("--json", action="store_true", help="print JSON (schema hal.simulation/1)")
    openb.set_defaults(simulate=_openb)

    synthetic = kinds.add_parser(
        "synthetic",
        help="a made-up cluster of any size",
        description="Make up a cluster, keep it loaded, and measure how long a decision takes.",
        epilog="example:\n  hal simulate synthetic --nodes 12500 --devices 8 --decisions 20000",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    synthetic.add_argument("--nodes", metavar="N", type=_count, default=1000, help="(1000)")
    synthetic.add_argument("--devices", metavar="N", type=_count, default=8, help="of each node (8)")
    synthetic.add_argument("--decisions", metavar="N", type=_count, default=10_000, help="(10000)")
    synthetic.add_argument(
        "--shapes", metavar="N", type=_number, default=64, help="different requests; 0: each is new (64)"
    )
    synthetic.add_argument(
        "--waiting", metavar="N", type=_count, help="fill it until so many wait, and measure ticks (none)"
    )
    synthetic.add_argument("--ticks", metavar="N", type=_count, default=20, help="with --waiting (20)")
    synthetic.add_argument("--seed", metavar="N", type=_number, default=42, help="(42)")
    synthetic.add_argument(
        "--json", action="store_true", help="print JSON (schema hal.simulation-synthetic/1)"
    )
    synthetic.set_defaults(simulate=_synthetic)

    replaying = kinds.add_parser(
        "replay",
        help="what a scheduler has gone through, again",
        description="Replay the journal that 'hal admin journal' wrote, as it was or under another policy.\n"
        "Under another, holders still say what they said; of leases that are not there it is passed over.",
        epilog="examples:\n  hal simulate replay EVENTS.jsonl\n"
        "  hal simulate replay EVENTS.jsonl --policy best-fit",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    replaying.add_argument("events", metavar="EVENTS", type=Path, help="JSON lines (schema hal.journal/1)")
    replaying.add_argument("--policy", metavar="NAME", choices=_POLICIES, help=f"of {', '.join(_POLICIES)}")
    replaying.add_argument("--json", action="store_true", help="print JSON (schema hal.simulation-replay/1)")
    replaying.set_defaults(simulate=_replay)
    return lambda options: options.simulate(options)


def _openb(options: argparse.Namespace) -> int:
    from hal.scheduler.simulator import plot
    from hal.scheduler.simulator.openb import read_nodes, read_tasks
    from hal.scheduler.simulator.series import run_series

    if options.plot:
        plot.check(options.plot)
    nodes, tasks = read_nodes(options.nodes), read_tasks(options.tasks)
    policies = list(dict.fromkeys(options.policy))
    jobs = options.jobs or len(os.sched_getaffinity(0))
    with _bar("simulating", len(policies) * len(options.seeds)) as done:
        series = run_series(nodes, tasks, options.arrival, options.seeds, policies, jobs, lambda: done(1))
    if options.plot:
        plot.draw(options.plot, f"{options.tasks.stem}, {len(options.seeds)} seeds", series)
    if options.json:
        facts = {
            "nodes": str(options.nodes),
            "tasks": str(options.tasks),
            "gpus": sum(len(node.devices) for node in nodes),
            "arrival": options.arrival,
        }
        print_json("hal.simulation/1", workload=facts, policies=series)
        return 0
    print_table(
        ("POLICY", ">ALLOCATED", ">BETWEEN SEEDS", ">TASKS", ">PLACED", ">AT 80 %", ">AT 90 %", ">AT 100 %"),
        (
            (
                one.policy,
                f"{one.allocation_mean:.2f} %",
                "–" if one.allocation_std is None else f"± {one.allocation_std:.2f}",
                f"{one.tasks_mean:.0f}",
                f"{one.placed_mean:.0f}",
                *(
                    next((f"{point.allocation:.2f} %" for point in one.curve if point.arrived == load), "–")
                    for load in (80, 90, 100)
                ),
            )
            for one in series
        ),
    )
    return 0


def _crowded(options: argparse.Namespace) -> int:
    from hal.scheduler.simulator.crowd import crowd

    with _bar("filling", options.waiting) as done:
        found = crowd(
            options.nodes, options.devices, options.waiting, options.ticks, options.seed,
            progress=lambda number: done(100) if number % 100 == 0 else None,
        )  # fmt: skip
    if options.json:
        print_json("hal.simulation-synthetic/1", measured=found)
        return 0
    print_facts(
        (
            ("nodes", f"{options.nodes}"),
            ("devices", f"{found.devices}"),
            ("leases", f"{found.leases}"),
            ("waiting", f"{found.waiting}"),
            ("ticks", f"{found.ticks}"),
            ("granted meanwhile", f"{found.granted}"),
            ("tick, p50", f"{found.tick_p50_milliseconds:.3f} ms"),
            ("tick, max", f"{found.tick_max_milliseconds:.3f} ms"),
            ("end of a lease, p50", f"{found.end_p50_milliseconds:.3f} ms"),
            ("end of a lease, max", f"{found.end_max_milliseconds:.3f} ms"),
            ("request, max", f"{found.submit_max_milliseconds:.3f} ms"),
        )
    )
    return 0


def _synthetic(options: argparse.Namespace) -> int:
    if options.waiting:
        return _crowded(options)
    from hal.scheduler.simulator.synthetic import measure

    with _bar("deciding", options.decisions) as done:
        found = measure(
            options.nodes, options.devices, options.decisions, options.seed, options.shapes,
            progress=lambda number: done(100) if number % 100 == 0 else None,
        )  # fmt: skip
    if options.json:
        print_json("hal.simulation-synthetic/1", measured=found)
        return 0
    print_facts(
        (
            ("nodes", f"{found.nodes}"),
            ("devices", f"{found.devices}"),
            ("decisions", f"{found.decisions}, of which {found.refused} found no room"),
            ("time, p50", f"{found.p50_milliseconds:.3f} ms"),
            ("time, p99", f"{found.p99_milliseconds:.3f} ms"),
            ("time, max", f"{found.max_milliseconds:.3f} ms"),
            ("memory", format_bytes(found.memory_bytes)),
        )
    )
    return 0


def _replay(options: argparse.Namespace) -> int:
    import msgspec

    from hal.scheduler.simulator.replay import replay
    from hal.scheduler.simulator.run import POLICIES

    found = replay(options.events, None if options.policy is None else POLICIES[options.policy])
    if options.json:
        print_json("hal.simulation-replay/1", policy=options.policy, **msgspec.structs.asdict(found))
        return 0
    exact = {
        None: f"no: under policy {options.policy}",
        True: "yes: every commit came to the rows that were written",
        False: f"no: line {found.differs_at_line} came to other rows than were written",
    }
    print_facts(
        (
            ("as it was", exact[found.exact]),
            ("events", f"{found.events} in {found.duration_ms / 1000:.1f} s"),
            ("requests", f"{found.requests}"),
            ("grants", f"{found.grants}"),
            ("refusals", f"{found.refusals}"),
            ("preemptions", f"{found.preemptions}"),
            ("revocations", ", ".join(f"{n} {cause}" for cause, n in found.revocations.items()) or "0"),
            ("passed over", f"{found.passed_over}"),
            ("in the end", f"{found.leases} leases, {found.waiting} waiting"),
            ("wait, mean", _milliseconds(found.wait_mean_ms)),
            ("wait, p50", _milliseconds(found.wait_p50_ms)),
            ("wait, p99", _milliseconds(found.wait_p99_ms)),
            ("allocated, mean", _share(found.allocation_mean)),
            ("  over time", " ".join(_share(part) for part in found.allocation)),
        )
    )
    return 0


def _milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} ms"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


@contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar for the person who waits; nothing where standard error is no terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda steps: progress.advance(task, steps)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UsageError(f"'{text[:40]}' is not a whole number")
    return int(text)


def _count(text: str) -> int:
    if (number := _number(text)) < 1:
        raise UsageError("at least 1 is needed where 0 was given")
    return number


def _load(text: str) -> float:
    try:
        load = float(text)
    except ValueError:
        load = -1.0
    if not 0.0 < load <= 100.0:
        raise UsageError(f"'{text[:40]}' is not a load: 1.3 is 130 % of the cluster's GPUs, and 100 the most")
    return load


def _seeds(text: str) -> tuple[int, ...]:
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        start, end = _number(first), _number(last if dash else first)
        if not start <= end < start + _MOST_SEEDS:
            raise UsageError(f"'{part}' is not a range of seeds: 42-51 is one")
        seeds.extend(range(start, end + 1))
    return tuple(dict.fromkeys(seeds))

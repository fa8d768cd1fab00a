"""A workload with several policies and seeds, in parallel processes, and the figures of all together."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from statistics import fmean, stdev

from msgspec import Struct

from hal.backend import HalError
from hal.scheduler.core.facts import WHOLE_MILLI, NodeFacts
from hal.scheduler.simulator.openb import Task, arrivals
from hal.scheduler.simulator.run import POLICIES, STEP, Run, simulate

__all__ = ["Point", "Series", "run_series"]


class Point(Struct, frozen=True):
    """One point of the curve, both in percent of the fleet's GPUs."""

    arrived: int
    allocation: float


class Series(Struct, frozen=True):
    """A policy's figures, in percent of the fleet's GPUs, over all seeds."""

    policy: str
    seeds: tuple[int, ...]
    allocation_mean: float
    allocation_std: float | None  # between seeds; None with one seed
    allocations: tuple[float, ...]  # one a seed
    tasks_mean: float
    placed_mean: float
    curve: tuple[Point, ...]  # the means of all seeds


def _one(nodes: Sequence[NodeFacts], tasks: list[Task], load: float, seed: int, policy: str) -> Run:
    capacity = sum(len(node.devices) for node in nodes) * WHOLE_MILLI
    return simulate(nodes, arrivals(tasks, capacity, load, seed), POLICIES[policy])


def run_series(
    nodes: Sequence[NodeFacts],
    tasks: list[Task],
    load: float,
    seeds: Sequence[int],
    policies: Sequence[str],
    jobs: int,
    done: Callable[[], None] = lambda: None,
) -> list[Series]:
    """Run each policy with each seed, ``jobs`` at a time; ``done`` is called after each run."""
    pairs = [(policy, seed) for policy in policies for seed in seeds]
    runs: dict[tuple[str, int], Run] = {}
    for pair, run in _all(nodes, tasks, load, pairs, jobs):
        runs[pair] = run
        done()
    return [_series(policy, seeds, [runs[policy, seed] for seed in seeds]) for policy in policies]


def _all(
    nodes: Sequence[NodeFacts], tasks: list[Task], load: float, pairs: list[tuple[str, int]], jobs: int
) -> Iterator[tuple[tuple[str, int], Run]]:
    if jobs == 1 or len(pairs) == 1:
        for policy, seed in pairs:
            yield (policy, seed), _one(nodes, tasks, load, seed, policy)
        return
    with ProcessPoolExecutor(min(jobs, len(pairs)), get_context("spawn"), _leave_interrupts) as pool:
        left: dict[Future[Run], tuple[str, int]] = {
            pool.submit(_one, nodes, tasks, load, seed, policy): (policy, seed) for policy, seed in pairs
        }
        try:
            while left:
                for future in wait(left, return_when=FIRST_COMPLETED).done:
                    yield left.pop(future), future.result()
        except BrokenExecutor:
            raise HalError(
                "a simulating process was killed; with fewer --jobs they need less memory"
            ) from None
        finally:
            for future in left:
                future.cancel()


def _leave_interrupts() -> None:
    """Ctrl-C is for the process that the person started: it ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _series(policy: str, seeds: Sequence[int], runs: Sequence[Run]) -> Series:
    allocations = tuple(100 * run.allocation for run in runs)
    length = min(len(run.curve) for run in runs)
    curve = tuple(
        Point(round(100 * STEP * i), 100 * fmean(run.curve[i] for run in runs)) for i in range(length)
    )
    return Series(
        policy=policy,
        seeds=tuple(seeds),
        allocation_mean=fmean(allocations),
        allocation_std=stdev(allocations) if len(allocations) > 1 else None,
        allocations=allocations,
        tasks_mean=fmean(run.tasks for run in runs),
        placed_mean=fmean(run.placed for run in runs),
        curve=curve,
    )

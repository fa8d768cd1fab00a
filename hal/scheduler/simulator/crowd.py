"""A full cluster with many who wait: how long a tick takes, and what follows from the end of a lease."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from msgspec import Struct, structs

from hal.scheduler.core.decisions import Grant, Preempt, Revoke
from hal.scheduler.core.events import Ended, Event, NodeJoined, Release, SetQueue, Submit, Tick
from hal.scheduler.core.queues import Queue
from hal.scheduler.core.state import State
from hal.scheduler.simulator.synthetic import cluster, request_of

__all__ = ["Crowd", "crowd"]

_QUEUES = ("one", "two", "two/left", "two/right")
_STEP_MS = 5000
_ENDS = 25  # in a step
_SHORT_MS = (60_000, 600_000, None, None)  # what requests say of how long they take


class Crowd(Struct, frozen=True):
    """What was measured, in milliseconds. A tick is also one at which leases or requests run out."""

    devices: int
    waiting: int
    leases: int
    ticks: int
    granted: int  # while it was measured
    tick_p50_milliseconds: float
    tick_max_milliseconds: float
    end_p50_milliseconds: float  # of a lease: what it frees is granted in the same step
    end_max_milliseconds: float
    submit_max_milliseconds: float  # of those that wait


def crowd(
    nodes: int,
    devices_per_node: int,
    waiting: int,
    ticks: int,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Crowd:
    """Fill a cluster until nothing fits and ``waiting`` wait, then let time pass and leases end."""
    chance = random.Random(seed)  # noqa: S311 - a simulation's, to be the same each time
    state, now, number = State(), 0, 0

    def timed(event: Event) -> tuple[float, int]:
        start = time.perf_counter()
        made = state.apply(event, now)
        taken = 1000 * (time.perf_counter() - start)
        over.extend(one.lease.id for one in made if isinstance(one, Revoke | Preempt))
        return taken, sum(isinstance(one, Grant) for one in made)

    over: list[str] = []
    for node in cluster(nodes, devices_per_node):
        timed(NodeJoined(node))
    for name in _QUEUES:
        timed(SetQueue(Queue(name, name.rpartition("/")[0])))
    submits = []
    while len(state.waiting) < waiting:
        number += 1
        request = structs.replace(
            request_of(chance),
            queue=chance.choice(("default", *_QUEUES)),
            priority=chance.choice((0, 0, 1)),
            duration_ms=chance.choice(_SHORT_MS),
            wait=True,
        )
        submits.append(timed(Submit(request, f"r{number}", f"r{number}", 0))[0])
        progress(len(state.waiting))
    submits = submits[-waiting:]
    leases, granted = len(state.leases), 0
    tick_times, end_times = [], []
    for _ in range(ticks):
        now += _STEP_MS
        taken, more = timed(Tick())
        tick_times.append(taken)
        granted += more
        timed(Release(chance.choice(sorted(state.leases)), 0))
        for _ in range(min(len(over), _ENDS)):  # the others' processes take longer
            taken, more = timed(Ended(over.pop(0)))
            end_times.append(taken)
            granted += more
    return Crowd(
        devices=nodes * devices_per_node,
        waiting=waiting,
        leases=leases,
        ticks=ticks,
        granted=granted,
        tick_p50_milliseconds=_middle(tick_times),
        tick_max_milliseconds=max(tick_times),
        end_p50_milliseconds=_middle(end_times),
        end_max_milliseconds=max(end_times),
        submit_max_milliseconds=max(submits),
    )


def _middle(times: list[float]) -> float:
    return sorted(times)[len(times) // 2]

"""One run: tasks arrive one by one, as events of the scheduler's own state machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from msgspec import Struct

from hal.scheduler.core.decisions import Grant
from hal.scheduler.core.events import NodeJoined, Submit
from hal.scheduler.core.facts import WHOLE_MILLI, NodeFacts
from hal.scheduler.core.masks import EVERYTHING
from hal.scheduler.core.placement import Policy, Strategy
from hal.scheduler.core.request import Alternative, Member, Request
from hal.scheduler.core.state import State
from hal.scheduler.simulator.openb import Task

__all__ = ["POLICIES", "STEP", "Run", "request_of", "simulate"]

STEP = 0.01  # of the capacity: at each step of the arrived load the curve has a point
_DAY = 24 * 3600 * 1000

POLICIES: dict[str, Policy] = {
    "fragmentation": Policy(Strategy.FRAGMENTATION),
    "best-fit": Policy(Strategy.BEST_FIT),
    "spread": Policy(Strategy.SPREAD),
    "random": Policy(Strategy.RANDOM),
}


class Run(Struct, frozen=True):
    """What came of it. Shares are of the fleet's GPUs."""

    tasks: int
    placed: int
    allocation: float
    curve: tuple[float, ...]  # the allocation at each STEP of arrived load, from 0 on


def simulate(
    nodes: Sequence[NodeFacts],
    tasks: Sequence[Task],
    policy: Policy,
    progress: Callable[[int], None] = lambda _: None,
) -> Run:
    """Submit the tasks in their order; what fits nowhere is refused. No time passes."""
    state = State(policy, hosts=True)
    for node in nodes:
        state.apply(NodeJoined(node), 0)
    capacity = sum(len(node.devices) for node in nodes) * WHOLE_MILLI
    arrived = allocated = placed = 0
    curve = [0.0]
    requests: dict[Task, Request] = {}
    for number, task in enumerate(tasks):
        request = requests.get(task)
        if request is None:
            request = requests[task] = request_of(task)
        id = f"t{number}"
        decisions = state.apply(Submit(request, id, id, 0), 0)
        arrived += task.milli
        if isinstance(decisions[-1], Grant):
            allocated += task.milli
            placed += 1
        while arrived >= len(curve) * STEP * capacity:
            curve.append(allocated / capacity)
        if number % 100 == 0:
            progress(number)
    return Run(len(tasks), placed, allocated / capacity, tuple(curve))


def request_of(task: Task) -> Request:
    """A task as a request that does not wait. A part of a GPU is a part of its memory and of its compute."""
    shape = task.shape
    models = [] if task.models == EVERYTHING else task.models.split("|")
    part = shape.count and not shape.whole
    one = Alternative(
        selector=f"model in {json.dumps(models)}" if models and shape.count else "",
        memory_bytes=shape.memory_bytes if part else None,
        compute_milli=shape.compute_milli if part else 0,
        count=shape.count,
        cpu_milli=shape.cpu_milli,
        ram_bytes=shape.ram_bytes,
    )
    return Request((Member((one,)),), ttl_ms=_DAY)

"""One run: tasks arrive one by one at a fleet, and are placed as the scheduler places them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from hal.scheduler.core.facts import WHOLE_MILLI, NodeFacts
from hal.scheduler.core.fleet import EVERYTHING, Fleet
from hal.scheduler.core.mix import Mix
from hal.scheduler.core.placement import Policy, Strategy, place
from hal.scheduler.simulator.openb import Task

__all__ = ["POLICIES", "STEP", "Run", "simulate"]

STEP = 0.01  # of the capacity: at each step of the arrived load the curve has a point

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
    """Place the tasks in their order; what fits nowhere is dropped."""
    fleet, mix = Fleet(), Mix()
    for node in nodes:
        fleet.join(node)
    capacity = sum(len(node.devices) for node in nodes) * WHOLE_MILLI
    arrived = allocated = placed = 0
    curve = [0.0]
    for number, task in enumerate(tasks):
        if task.models == EVERYTHING:
            eligible = fleet.everything
        else:
            wanted = frozenset(task.models.split("|"))
            eligible = fleet.select(task.models, lambda device, wanted=wanted: device.model in wanted)  # type: ignore[misc]
        mix.arrived(task.shape, task.models)
        spot = place(fleet, task.shape, eligible, policy, mix)
        arrived += task.milli
        if spot is not None:
            fleet.take(spot)
            allocated += task.milli
            placed += 1
        while arrived >= len(curve) * STEP * capacity:
            curve.append(allocated / capacity)
        if number % 100 == 0:
            progress(number)
    return Run(len(tasks), placed, allocated / capacity, tuple(curve))
